"""PPO's rollouts: prompts in their order, an answer for each, tensors of all, and models that read them part by part.

Everything follows from (seed, episode): whoever draws an answer, in whatever batch, draws the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer.config import PPOConfig
from trainer.data import chunk_by_length
from trainer.distributed import add_up_tensor, part_of, put_together, whole, with_spares, world
from trainer.reporting import Reporter, stop_if_cancelled
from trainer.reward_model import RewardModel
from trainer.sampling import Draw, Generated, LocalSampler, decode, left_pad

SAMPLED_TOKENS = 4
"""How many times as many tokens sampling holds at once as training: it keeps keys and values, and no graph."""
SHOWN_CHARACTERS = 200
"""Of a sampled text in the log."""

Item = TypeVar("Item")

Score = Callable[[Tensor, Tensor], Tensor]
"""(tokens_BL, attention_BL) -> score_B: what a conversation with its answer is worth. A `RewardModel` is one, and also
knows prompts that several answers share."""


class TrainingFailed(ValueError):
    """The run cannot go on; the message says why, and what is still good."""


@dataclass(frozen=True)
class Question:
    """A prompt in tokens, up to where the answer begins."""

    prompt_id: str
    tokens: list[int]


def hash_questions(questions: Sequence[Question]) -> str:
    """What names these questions in a manifest."""
    lines = "\n".join(json.dumps(asdict(question), sort_keys=True) for question in questions)
    return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class Rollout:
    """B episodes. Prompts are left-padded to P tokens, completions right-padded to T tokens; L = P + T."""

    tokens_BL: Tensor
    """Prompt and completion."""
    attention_BL: Tensor
    """True on real tokens."""
    mask_BT: Tensor
    """True on the completion's tokens, its EOS among them."""
    sampled_BT: Tensor
    """What the sampler took for log pi_old."""
    has_eos_B: Tensor
    """False where the length cut the completion."""
    num_shared: int = 1
    """Of each so many neighbours the prompt is one and the same; they go through everything together."""

    @property
    def num_prompt_tokens(self) -> int:
        """P, the width of the padded prompts."""
        return self.tokens_BL.shape[1] - self.mask_BT.shape[1]

    def select(self, row_R: Tensor) -> Rollout:
        """These rows without the columns that are padding in all of them."""
        width = self.num_prompt_tokens
        num_prompt = int(self.attention_BL[row_R, :width].sum(1).amax())
        num_new = int(self.mask_BT[row_R].sum(1).amax())
        columns = slice(width - num_prompt, width + num_new)
        return Rollout(
            self.tokens_BL[row_R, columns],
            self.attention_BL[row_R, columns],
            self.mask_BT[row_R, :num_new],
            self.sampled_BT[row_R, :num_new],
            self.has_eos_B[row_R],
            self.num_shared,
        )

    def micro_batches(self, row_R: Tensor, tokens_per_forward: int) -> Iterator[tuple[Tensor, Rollout]]:
        """Parts of these rows, alike in length, each of about `tokens_per_forward` tokens at most (or of one prompt).

        The rows are whole groups of neighbours that share a prompt.
        """
        row_GS = row_R.view(-1, self.num_shared)
        num_prompt_G = self.attention_BL[row_GS[:, 0], : self.num_prompt_tokens].sum(1)
        num_new_G = self.mask_BT.sum(1)[row_GS].amax(1)
        length_G = (num_prompt_G + self.num_shared * num_new_G).tolist()
        for part in chunk_by_length(length_G, tokens_per_forward):
            part_R = row_GS[part].flatten()
            yield part_R, self.select(part_R)


# --- Drawing answers -------------------------------------------------------------------------------------------------


def sequences_per_batch(questions: Sequence[Question], config: PPOConfig) -> int:
    """How many of the longest question's answers are drawn at once."""
    longest = max(len(question.tokens) for question in questions)
    return max(1, SAMPLED_TOKENS * config.tokens_per_forward // (longest + config.max_new_tokens))


def walk(items: Sequence[Item], start: int, num: int, seed: int, name: str) -> list[Item]:
    """Places start .. start + num of an endless walk over the items, shuffled anew in every pass."""
    chosen: list[Item] = []
    while len(chosen) < num:
        number, place = divmod(start + len(chosen), len(items))
        order = torch.randperm(len(items), generator=seeded(seed, f"{name} {number}"))
        chosen += [items[index] for index in order[place : place + num - len(chosen)].tolist()]
    return chosen


def roll_out(
    sampler: LocalSampler,
    asked: Sequence[Question],
    first_episode: int,
    config: PPOConfig,
    report: Reporter,
    *,
    is_episode: bool = True,
    num_shared: int = 1,
) -> Rollout:
    """One completion for each question. Alike lengths are generated together; rows keep the order of `asked`. Each
    process draws a part; an answer follows from its seed, whoever draws it.

    Answers that are no episodes are drawn with other seeds, and do not count as the run's progress.
    """
    prefix = "" if is_episode else "guard "
    draws = [
        Draw(question.tokens, prefix + question.prompt_id, first_episode + number, config.seed)
        for number, question in enumerate(asked)
    ]
    # The order is stable: those that share a prompt stay together.
    waiting = sorted(range(len(draws)), key=lambda row: len(draws[row].prompt_tokens))
    size = max(1, sampler.sequences_per_batch // num_shared) * num_shared
    groups = [waiting[start : start + num_shared] for start in range(0, len(waiting), num_shared)]
    mine = [row for group in part_of(groups) for row in group]
    results: dict[int, Generated] = {}
    with whole(sampler.model):
        # The first process has as many as any: all ask equally often whether to stop.
        for start in range(0, num_shared * math.ceil(len(groups) / world().size), size):
            stop_if_cancelled(report)
            rows = mine[start : start + size]
            generated = sampler.draw(
                [draws[row] for row in rows],
                temperature=config.temperature,
                top_p=1.0,
                max_new_tokens=config.max_new_tokens,
                num_shared=num_shared,
            )
            results |= dict(zip(rows, generated, strict=True))
            if is_episode:
                num_done = min(len(asked), len(results) * world().size)
                report_progress(report, config, first_episode + num_done / 2, f"{num_done} of {len(asked)} answers")
    if world().size > 1:
        drawn = _from_all([results[row] for row in mine], [len(group) for group in groups], config)
        results = dict(zip(waiting, drawn, strict=True))
    ordered = [results[row] for row in range(len(draws))]
    pad_id, device = sampler.tokenizer.pad_token_id, sampler.model.device
    return make_rollout(asked, ordered, pad_id=pad_id, device=device, num_shared=num_shared)


def _from_all(mine: Sequence[Generated], counts: Sequence[int], config: PPOConfig) -> list[Generated]:
    """The answers of all processes. They travel as numbers: length, whether it stopped, tokens, log-probabilities."""
    width = config.max_new_tokens
    rows = torch.zeros(len(mine), 2 + 2 * width, dtype=torch.float64)
    for row, answer in zip(rows, mine, strict=True):
        length = len(answer.tokens)
        row[0], row[1] = length, answer.finish_reason == "stop"
        row[2 : 2 + length] = torch.tensor(answer.tokens)
        row[2 + width : 2 + width + length] = torch.tensor(answer.logprobs, dtype=torch.float64)
    found: list[Generated] = []
    for row in put_together(rows, counts).tolist():
        length, tokens, logprobs = int(row[0]), row[2 : 2 + width], row[2 + width :]
        reason: Literal["stop", "length"] = "stop" if row[1] else "length"
        found.append(Generated([int(token) for token in tokens[:length]], logprobs[:length], reason))
    return found


def make_rollout(
    asked: Sequence[Question],
    answers: Sequence[Generated],
    *,
    pad_id: int,
    device: torch.device,
    num_shared: int = 1,
) -> Rollout:
    """The tensors of these questions and answers. Masks come from lengths: a model may say the padding token."""
    prompt_BP, prompt_mask_BP = left_pad([question.tokens for question in asked], pad_id=pad_id)
    # Right padding is left padding, mirrored.
    reversed_BT, reversed_mask_BT = left_pad([answer.tokens[::-1] for answer in answers], pad_id=pad_id)
    answer_BT, answer_mask_BT = reversed_BT.flip(1), reversed_mask_BT.flip(1)
    sampled_BT = torch.zeros(answer_BT.shape)
    for row, answer in enumerate(answers):
        sampled_BT[row, : len(answer.logprobs)] = torch.tensor(answer.logprobs)
    return Rollout(
        tokens_BL=torch.cat([prompt_BP, answer_BT], dim=1).to(device),
        attention_BL=torch.cat([prompt_mask_BP, answer_mask_BT], dim=1).to(device),
        mask_BT=answer_mask_BT.to(device),
        sampled_BT=sampled_BT.to(device),
        has_eos_B=torch.tensor([answer.finish_reason == "stop" for answer in answers], device=device),
        num_shared=num_shared,
    )


def log_samples(
    report: Reporter, tokenizer: PreTrainedTokenizerBase, rollout: Rollout, score_B: Tensor, log_ratio_BT: Tensor
) -> None:
    """The best and the worst answer of a rollout, with score and KL: a reader sees what the policy is after."""
    width = rollout.num_prompt_tokens
    for name, row in (("best", int(score_B.argmax())), ("worst", int(score_B.argmin()))):
        prompt = rollout.tokens_BL[row, :width][rollout.attention_BL[row, :width]].tolist()
        answer = rollout.tokens_BL[row, width:][rollout.mask_BT[row]].tolist()
        question, text = decode(tokenizer, prompt)[-SHOWN_CHARACTERS:], decode(tokenizer, answer)[:SHOWN_CHARACTERS]
        kl = log_ratio_BT[row].sum().item()
        report.log(
            "info", f"{name} of {len(score_B)}: score {score_B[row].item():.3f}, KL {kl:.2f}: {question!r} -> {text!r}"
        )


# --- Reading them part by part ----------------------------------------------------------------------------------------


class PerToken(Protocol):
    """A model that says one number for each of the last `num_new` tokens."""

    def __call__(self, tokens_BL: Tensor, attention_BL: Tensor, *, num_new: int, num_shared: int) -> Tensor:
        """[rows, num_new], in fp32."""
        ...


def per_token(rollout: Rollout, model: PerToken, config: PPOConfig, name: str) -> Tensor:
    """`model` on the whole rollout, part by part: [B, T], 0 outside the mask."""
    result_BT = torch.zeros(rollout.mask_BT.shape, device=rollout.mask_BT.device)
    for (part_R, part), is_spare in own_parts(rollout, all_rows(rollout), config):
        values = model(part.tokens_BL, part.attention_BL, num_new=part.mask_BT.shape[1], num_shared=part.num_shared)
        if not is_spare:
            result_BT[part_R, : part.mask_BT.shape[1]] = values.masked_fill(~part.mask_BT, 0.0)
    return require_finite(add_up_tensor(result_BT), name)


def score_answers(rollout: Rollout, score: Score, config: PPOConfig) -> Tensor:
    """score_B of a rollout's answers; TrainingFailed where one is no finite number."""
    result_B = torch.zeros(len(rollout.tokens_BL), device=rollout.tokens_BL.device)
    for (part_R, part), is_spare in own_parts(rollout, all_rows(rollout), config):
        if isinstance(score, RewardModel):
            score_R = score.score_answers(
                part.tokens_BL, part.attention_BL, num_new=part.mask_BT.shape[1], num_shared=part.num_shared
            )
        else:
            score_R = score(part.tokens_BL, part.attention_BL)
        if not is_spare:
            result_B[part_R] = score_R.float()
    return require_finite(add_up_tensor(result_B), "the reward model's score")


def all_rows(rollout: Rollout) -> Tensor:
    """The numbers of a rollout's rows."""
    return torch.arange(len(rollout.tokens_BL), device=rollout.tokens_BL.device)


def own_rows(row_R: Tensor, rollout: Rollout) -> Tensor:
    """Of these rows those that this process computes; whole groups that share a prompt."""
    here = world()
    return row_R.view(-1, rollout.num_shared)[here.rank :: here.size].flatten()


def own_parts(rollout: Rollout, row_R: Tensor, config: PPOConfig) -> Iterator[tuple[tuple[Tensor, Rollout], bool]]:
    """This process's part of these rows in micro-batches, (their numbers, the rows), and whether each is spare."""
    mine = list(rollout.micro_batches(own_rows(row_R, rollout), config.tokens_per_forward))
    spare_R = row_R[: rollout.num_shared]
    return with_spares(mine, lambda: (spare_R, rollout.select(spare_R)), is_spread=config.sharding == "full")


def require_finite(values: Tensor, name: str) -> Tensor:
    """The values; TrainingFailed, which calls them by this name, where one is NaN or infinite."""
    if not bool(values.isfinite().all()):
        raise TrainingFailed(
            f"PPO failed: {name} is NaN or infinite. No step was applied with it; the last checkpoint is good. "
            "Look at the metrics before it; a lower learning rate often helps."
        )
    return values


def report_progress(report: Reporter, config: PPOConfig, episode: float, message: str) -> None:
    """Sampling an episode counts as one half of it, learning from it as the other."""
    assert config.num_episodes is not None
    report.progress(int(2 * episode), 2 * config.num_episodes, message)


def seeded(seed: int, name: str) -> torch.Generator:
    """A generator that follows from the run's seed and this name."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
