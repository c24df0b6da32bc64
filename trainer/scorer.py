"""What a reward model says of many answers: how its forward passes are cut, shared and remembered. Knows no loss."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer.config import RewardConfig
from trainer.data import (
    Task,
    all_rankings,
    chunk_by_length,
    encode_answer,
    for_each_ranking,
    group_by_tokens,
    right_pad,
)
from trainer.distributed import even_passes, part_of, put_together
from trainer.fitting import autocast
from trainer.preferences import Accuracy, Answer, pairwise_accuracy
from trainer.reward_model import RewardModel
from trainer.sampling import encode_prompt
from trainer.shared_prompt import CannotShare, SharedPrompt, share_prompt

TOKENS_PER_STEP = 4
"""Forward passes of separate rows whose graphs one backward pass may hold at once."""

Row = tuple[Sequence[int], Sequence[int]]
"""A conversation in tokens: the prompt, and the answer."""
StateCache = dict[str, Tensor]
"""What the frozen blocks say of a task's prompt and answers, [N, D], by the SHA-256 of its tokens."""


class Scorer:
    """Scores tasks by a reward model: a prompt is computed once for its answers wherever the model allows it.

    Where only an adapter on the last blocks learns, what the blocks below say of a task is computed apart (so that
    it does not depend on what else is in the batch) and kept while there is room.
    """

    way: str
    """Which way was taken, for the run's log."""

    def __init__(
        self, model: RewardModel, *, pad_id: int, config: RewardConfig, cache: StateCache | None = None
    ) -> None:
        self.model = model
        self.pad_id = pad_id
        self._tokens_per_forward = config.tokens_per_forward
        self._is_sharded = config.sharding == "full"
        self._autocast = partial(autocast, config)
        self._cache = {} if cache is None else cache
        self._room = config.cache_megabytes * 2**20 - sum(state.nbytes for state in self._cache.values())
        self._shared = self._share(config)

    def _share(self, config: RewardConfig) -> SharedPrompt | None:
        if not config.share_prompt:
            self.way = "Every answer is computed with a prompt of its own (share_prompt is off)."
            return None
        try:
            # Blocks that are spread over processes can't be cut in two.
            keep_states = config.cache_megabytes > 0 and not self._is_sharded
            shared = share_prompt(self.model.blocks, keep_states=keep_states)
        except CannotShare as error:
            self.way = f"Every answer is computed with a prompt of its own, as this model can't share one: {error}."
            return None
        kept = " What the frozen blocks say is kept between epochs." if shared.lower is not None else ""
        self.way = f"A prompt is computed once for all its answers (checked: the scores are the same).{kept}"
        return shared

    def separate_states(self, rows: Sequence[Row]) -> Tensor:
        """state_ND of N rows, in their order; each computed on its own, in chunks by length."""
        # One pass where the model is spread over processes: all must make as many.
        tokens_per_forward = sys.maxsize if self._is_sharded else self._tokens_per_forward
        chunks = chunk_by_length([len(prompt) + len(answer) for prompt, answer in rows], tokens_per_forward)
        device = self.model.head.weight.device
        found: list[Tensor] = []
        for chunk in chunks:
            chosen = [rows[index] for index in chunk]
            tokens_BL, mask_BL = right_pad([[*prompt, *answer] for prompt, answer in chosen], pad_id=self.pad_id)
            start_B1 = torch.tensor([[len(prompt)] for prompt, _ in chosen])
            is_answer_BL = mask_BL & (torch.arange(mask_BL.shape[1]) >= start_B1)
            found.append(self.model.states(tokens_BL.to(device), mask_BL.to(device), is_answer_BL.to(device)))
        order = torch.tensor([index for chunk in chunks for index in chunk])
        return torch.cat(found)[order.argsort().to(device)]

    def scores(self, rows: Sequence[Row]) -> Tensor:
        """score_N of N rows, each computed on its own."""
        return self.model.score_states(self.separate_states(rows))

    def groups(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """The tasks in their order, in parts that `group_scores` takes at once."""
        shares_prompt = self._shared is not None
        max_tokens = self._tokens_per_forward * (1 if shares_prompt or self._is_sharded else TOKENS_PER_STEP)
        return group_by_tokens(tasks, max_tokens, shares_prompt=shares_prompt)

    def even(self, groups: list[list[Task]], spare: Sequence[Task]) -> list[list[Task]]:
        """With the model spread over processes: spare groups where others have more, since all must compute alike."""
        return even_passes(groups, list(spare)) if self._is_sharded else groups

    def group_scores(self, group: Sequence[Task]) -> Tensor:
        """scores_BKE of tasks by each of the E heads; 0 where a task has fewer than K answers."""
        scores_NE = self.model.member_scores(self._group_states(group))
        parts = torch.split(scores_NE, [len(task.rows) for task in group])
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)

    @torch.no_grad()
    def score_tasks(self, tasks: Sequence[Task]) -> list[list[float]]:
        """The scores of each task's answers."""
        values = iter(self._all_scores(tasks, self.model.score_states).tolist())
        return [[next(values) for _ in task.rows] for task in tasks]

    @torch.no_grad()
    def states(self, tasks: Sequence[Task]) -> list[Tensor]:
        """state_KD of each task's answers, which the heads score."""
        states_ND = self._all_scores(tasks, lambda hidden_ND: hidden_ND)
        return list(states_ND.split([len(task.rows) for task in tasks]))

    @torch.no_grad()
    def score_members(self, tasks: Sequence[Task]) -> Tensor:
        """score_NE of all the tasks' answers, one after another, by each head."""
        return self._all_scores(tasks, self.model.member_scores)

    def _all_scores(self, tasks: Sequence[Task], head: Callable[[Tensor], Tensor]) -> Tensor:
        """What a head says of all the tasks' answers, one after another; each process computes a part."""
        none_ND = self.model.head.weight.new_zeros(0, self.model.head.in_features)
        groups = self.groups(part_of(tasks))
        parts = [head(self._group_states(group)) for group in self.even(groups, tasks[:1])]
        return put_together(torch.cat([head(none_ND), *parts[: len(groups)]]), [len(task.rows) for task in tasks])

    def accuracy(self, tasks: Sequence[Task]) -> Accuracy | None:
        """Pairwise accuracy on the rankings; None when they hold no pair."""
        if not tasks:
            return None
        return pairwise_accuracy(all_rankings(tasks), for_each_ranking(tasks, self.score_tasks(tasks)))

    def _group_states(self, group: Sequence[Task]) -> Tensor:
        """state_ND of all answers of these tasks, one after another."""
        # Heads and losses stay in fp32.
        with self._autocast(self.model.head.weight.device.type):
            return self._states_of(group)

    def _states_of(self, group: Sequence[Task]) -> Tensor:
        if self._shared is None:
            return self.separate_states([(task.prompt, answer) for task in group for answer in task.answers])
        packed = self._shared.pack([(task.prompt, task.answers) for task in group])
        kept = None
        if self._shared.lower is not None:
            kept = torch.cat([self._states(task, self._shared) for task in group])
        return self.model.states_of_packed(packed, self._shared.hidden(packed, kept))

    def _states(self, task: Task, shared: SharedPrompt) -> Tensor:
        """What the frozen blocks say of this task alone; kept up to `cache_megabytes`."""
        key = hashlib.sha256(json.dumps([task.num_prompt_tokens, *task.rows]).encode()).hexdigest()
        if key in self._cache:
            return self._cache[key]
        states_ND = shared.states(shared.pack([(task.prompt, task.answers)]))
        if states_ND.nbytes <= self._room:
            self._room -= states_ND.nbytes
            self._cache[key] = states_ND
        return states_ND


def score(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[tuple[Sequence[Mapping[str, str]], Answer]],
    *,
    tokens_per_forward: int = 512,
) -> list[float]:
    """What each (messages, answer) is worth, in their order."""
    return score_with_doubt(model, tokenizer, conversations, tokens_per_forward=tokens_per_forward)[0]


def score_with_doubt(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[tuple[Sequence[Mapping[str, str]], Answer]],
    *,
    tokens_per_forward: int = 512,
) -> tuple[list[float], list[float]]:
    """(scores, doubts) of each (messages, answer): a doubt is the standard deviation of an ensemble's heads, and 0
    where there is one head."""
    rows = [
        (encode_prompt(tokenizer, messages), encode_answer(tokenizer, answer)) for messages, answer in conversations
    ]
    config = RewardConfig(tokens_per_forward=tokens_per_forward, share_prompt=False)
    with torch.no_grad():
        states_ND = Scorer(model, pad_id=pad_id_of(tokenizer), config=config).separate_states(rows)
        return model.score_states(states_ND).tolist(), model.member_scores(states_ND).std(dim=1, correction=0).tolist()


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of the padding token."""
    return int(str(tokenizer.pad_token_id))
