"""Text in a PPO run: what the policy goes on learning to write (PPO-ptx), and what PPO costs it in writing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainer.config import PPOConfig
from trainer.distributed import add_up, part_of, with_spares
from trainer.losses import pretraining_loss
from trainer.models import Policy
from trainer.pretraining import Passage, passage_batches

Row = Mapping[str, Any]


def accumulate_pretraining(policy: Policy, passages: Sequence[Passage], config: PPOConfig) -> dict[str, float]:
    """gamma times the gradient of these passages' loss, on top of what PPO left in the policy's parameters."""
    total = 0.0
    for loss in _losses(policy, passages, config):
        torch.autograd.backward([config.ptx_coefficient * loss])
        total += loss.item()
    return {"ppo/ptx/loss": add_up(total)[0]}


class AlignmentTax:
    """What PPO costs the policy in writing: its loss on text that no step learns from, beside the SFT model's.

    InstructGPT reads its alignment tax off public data sets (4.2); this needs none, and is what PPO-ptx lowers (C.4).
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages
        self._reference_loss: float | None = None

    @torch.no_grad()
    def measure(self, policy: Policy, config: PPOConfig) -> dict[str, float]:
        """The mean loss over the passages' learned tokens, in nats, of the policy of now and of the SFT model."""
        if self._reference_loss is None:
            with policy.reference():
                self._reference_loss = self._loss(policy, config)
        return {"tax/loss": self._loss(policy, config), "tax/reference_loss": self._reference_loss}

    def _loss(self, policy: Policy, config: PPOConfig) -> float:
        return add_up(sum(loss.item() for loss in _losses(policy, self.passages, config)))[0]


def hold_out(rows: Sequence[Row], config: PPOConfig) -> tuple[list[Row], list[Row]]:
    """What PPO-ptx learns of these texts, and the `tax_texts` of them that it does not. Their hashes draw these, so
    that a run on the same texts holds out the same.

    Raises:
        ValueError: there are no texts to hold out, or too few to learn from as well.
    """
    if not config.tax_texts:
        return list(rows), []
    learns = config.ptx_coefficient > 0
    num = min(config.tax_texts, len(rows) // 2 if learns else len(rows))
    if not num:
        given = "no text is given" if not rows else "the only text can't be learned and held out"
        raise ValueError(f"tax_texts is set, and {given}.")
    drawn = sorted(range(len(rows)), key=lambda index: _hash(rows[index]))[:num]
    held = set(drawn)
    learned = [row for index, row in enumerate(rows) if index not in held] if learns else []
    return learned, [rows[index] for index in sorted(held)]


def _hash(row: Row) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _losses(policy: Policy, passages: Sequence[Passage], config: PPOConfig) -> Iterator[Tensor]:
    """This process's parts of the passages' mean loss over all their learned tokens, one for each forward pass."""
    num_tokens = sum(passage.num_learned for passage in passages)
    # Masks decide what padding is: any token may stand there.
    batches = partial(
        passage_batches, tokens_per_forward=config.tokens_per_forward, pad_id=0, device=policy.model.device
    )
    mine = list(batches(part_of(passages)))
    is_spread = config.sharding == "full"
    for part, is_spare in with_spares(mine, lambda: next(batches(passages[:1])), is_spread=is_spread):
        logprobs_BT = policy.logprobs(
            part.tokens_BL, part.attention_BL, num_new=part.learned_BT.shape[1], temperature=1.0
        )
        loss = pretraining_loss(logprobs_BT, part.learned_BT, num_tokens=num_tokens)
        yield 0.0 * loss if is_spare else loss
