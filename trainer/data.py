"""Rankings as tensors: what a reward model reads of an answer, what is too long for it, and how rows are batched.

Owns no model; prompts are encoded by `trainer.sampling`, so that both see the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer.preferences import Answer, Ranking, Ties, favourite, group_by_task
from trainer.reporting import Reporter
from trainer.sampling import encode_prompt

Item = TypeVar("Item")


@dataclass(frozen=True)
class Task:
    """K answers to one prompt, in tokens, and all rankings of them: an answer is computed once for all of them."""

    rankings: tuple[Ranking, ...]
    """Their answers stand in the order of `rows`."""
    rows: list[list[int]]
    """K conversations, each with its answer."""
    num_prompt_tokens: int
    """The first tokens of every row, which all K share."""
    weights: list[list[list[float]]]
    """[R][K][K]: how much it counts in a ranking that row beats column."""

    @property
    def split(self) -> str:
        """Where the prompt belongs: "train" or "validation"."""
        return self.rankings[0].split

    @property
    def prompt(self) -> list[int]:
        """The tokens before every answer."""
        return self.rows[0][: self.num_prompt_tokens]

    @property
    def answers(self) -> list[list[int]]:
        """The tokens of each answer."""
        return [row[self.num_prompt_tokens :] for row in self.rows]

    @property
    def favourite(self) -> int:
        """The answer that the rankings prefer to most others; the first, where they prefer none."""
        return favourite(self.rankings) or 0

    def num_tokens(self, *, shares_prompt: bool) -> int:
        """Of all K rows; of the prompt only once where they share it."""
        repeated = self.num_prompt_tokens * (len(self.rows) - 1) if shares_prompt else 0
        return sum(len(row) for row in self.rows) - repeated


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: Answer) -> list[int]:
    """The answer's tokens and EOS; without EOS when its length cut it.

    Text that looks like a special token is taken for text: an answer cannot end itself early.
    """
    eos_id = int(str(tokenizer.eos_token_id))
    tokens = tokenizer.encode(answer.text, add_special_tokens=False, split_special_tokens=True)
    # Some vocabularies hold the EOS as a word, too.
    inner = [token for token in tokens if token != eos_id]
    return inner if answer.finish_reason == "length" else [*inner, eos_id]


def encode_rankings(
    rankings: Sequence[Ranking], tokenizer: PreTrainedTokenizerBase, *, max_length: int, ties: Ties
) -> tuple[list[Task], list[dict[str, str]]]:
    """The tasks with their rankings that can be learned from, and the rankings that can't, each with its `reason`.

    A ranking is refused as a whole when one of its answers, with the prompt, is over `max_length` tokens, or when it
    holds no pair that counts.
    """
    tasks: list[Task] = []
    refused: list[dict[str, str]] = []
    for together in group_by_task(rankings):
        prompt = encode_prompt(tokenizer, together[0].messages)
        rows = [prompt + encode_answer(tokenizer, answer) for answer in together[0].answers]
        kept: list[Ranking] = []
        for ranking in together:
            reason = _refusal(ranking, rows, max_length, ties)
            if reason is None:
                kept.append(ranking)
            else:
                refused.append({"ranking_id": ranking.ranking_id, "prompt_id": ranking.prompt_id, "reason": reason})
        if kept:
            tasks.append(Task(tuple(kept), rows, len(prompt), [ranking.weights(ties) for ranking in kept]))
    return tasks, refused


def split_tasks(
    tasks: Sequence[Task], refused: Sequence[Mapping[str, str]], report: Reporter
) -> tuple[list[Task], list[Task]]:
    """(training, validation); says which rankings were left out. ValueError when there is nothing to learn from."""
    for row in refused:
        report.log("warning", f"Ranking {row['ranking_id']} was left out: {row['reason']}")
    training, validation = ([task for task in tasks if task.split == split] for split in ("train", "validation"))
    if not training:
        num_held_out = len(all_rankings(validation))
        raise ValueError(
            f"There is no ranking to learn from: {num_held_out + len(refused)} rankings, of them {len(refused)} "
            f"refused and {num_held_out} held out for validation. Collect rankings first."
        )
    return training, validation


def _refusal(ranking: Ranking, rows: Sequence[Sequence[int]], max_length: int, ties: Ties) -> str | None:
    length, answer = max(zip((len(row) for row in rows), (answer.id for answer in ranking.answers), strict=True))
    if length > max_length:
        return f"The answer {answer} has {length} tokens with its prompt, over the limit of {max_length} (max_length)."
    if not ranking.num_pairs(ties):
        return "No answer is better than another, so there is nothing to learn from it."
    return None


def right_pad(rows: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """(tokens_BL, mask_BL): rows that all begin at the left edge; the mask is true on real tokens."""
    width = max(len(row) for row in rows)
    tokens_BL = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    length_B1 = torch.tensor([[len(row)] for row in rows])
    return tokens_BL, torch.arange(width)[None] < length_B1


def chunk_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in parts that are alike in length, each of at most `max_tokens` padded tokens, or of one row."""
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if chunks and lengths[index] * (len(chunks[-1]) + 1) <= max_tokens:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks


def group_by_tokens(tasks: Sequence[Task], max_tokens: int, *, shares_prompt: bool) -> list[list[Task]]:
    """Whole tasks in parts of at most `max_tokens` tokens, or of one task, in their order."""
    groups: list[list[Task]] = []
    room = 0
    for task in tasks:
        num_tokens = task.num_tokens(shares_prompt=shares_prompt)
        if not groups or num_tokens > room:
            groups.append([])
            room = max_tokens
        groups[-1].append(task)
        room -= num_tokens
    return groups


# --- From tasks to rankings ------------------------------------------------------------------------------------------
# B = tasks, R = their rankings, one task's after another's; K = answers


def all_rankings(tasks: Sequence[Task]) -> list[Ranking]:
    """The rankings of these tasks, one task's after another's."""
    return [ranking for task in tasks for ranking in task.rankings]


def for_each_ranking(tasks: Sequence[Task], values: Sequence[Item]) -> list[Item]:
    """What is known of a task's answers, for each of its rankings."""
    return [value for task, value in zip(tasks, values, strict=True) for _ in task.rankings]


def spread_over_rankings(value_BK: Tensor, tasks: Sequence[Task]) -> Tensor:
    """value_RK of the answers of every ranking, from what was computed once for a task. Gradients add up."""
    counts = torch.tensor([len(task.rankings) for task in tasks], device=value_BK.device)
    return value_BK.repeat_interleave(counts, dim=0)


def stack_places(tasks: Sequence[Task]) -> Tensor:
    """place_RK, 0 the best; -1 where an answer has no place, or where a task has fewer than K."""
    rankings = all_rankings(tasks)
    place_RK = torch.full((len(rankings), _most_answers(tasks)), -1)
    for number, ranking in enumerate(rankings):
        places = [-1 if place is None else place for place in ranking.places]
        place_RK[number, : len(places)] = torch.tensor(places)
    return place_RK


def stack_weights(tasks: Sequence[Task]) -> Tensor:
    """weights_RKK of the rankings, 0 where a task has fewer than K answers."""
    weights = [each for task in tasks for each in task.weights]
    size = _most_answers(tasks)
    weights_RKK = torch.zeros(len(weights), size, size)
    for number, each in enumerate(weights):
        weights_RKK[number, : len(each), : len(each)] = torch.tensor(each)
    return weights_RKK


def _most_answers(tasks: Sequence[Task]) -> int:
    return max(len(task.rows) for task in tasks)
