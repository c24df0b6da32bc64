"""What reward models say: of held-out rankings, where each is asked about the same pairs, so that they can be compared;
and of answers that nobody has ranked yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer import choosing
from trainer.config import RewardConfig
from trainer.data import Task, all_rankings, encode_rankings, for_each_ranking
from trainer.preferences import Answer, Ranking, to_rankings
from trainer.reporting import Reporter, RunCancelled, stop_if_cancelled
from trainer.reward_model import RewardModel
from trainer.scorer import Scorer, pad_id_of
from trainer.weights import ModelSource, context_length, load_tokenizer

TASKS_AT_ONCE = 64
"""Between two of these a run says how far it is, and hears whether it should stop."""
MOST_SEEN = 2_000
"""Rankings, the newest, that novelty is told from."""


def judge(
    rows: Iterable[Mapping[str, Any] | Ranking],
    sources: Sequence[ModelSource],
    *,
    report: Reporter,
    device: str = "cpu",
    split: str = "validation",
) -> dict[str, Any]:
    """The result of a `score` run (docs/protocol.md): of each held-out ranking its ordered pairs, and on how many of
    them each model is right. Two equal scores are half right.

    What no model can read whole is left out for all of them, and named.
    """
    rankings = [ranking for ranking in to_rankings(rows) if ranking.split == split]
    said: dict[str, list[dict[str, float]]] = {}
    refused: dict[str, dict[str, str]] = {}
    for number, source in enumerate(sources):
        found, left_out = _asked(source, rankings, device)
        refused |= {row["ranking_id"]: row for row in left_out}
        for ranking_id, pairs, right in found:
            said.setdefault(ranking_id, []).append({"num_pairs": pairs, "num_right": right})
        report.progress(number + 1, len(sources), "")
        if report.should_stop():
            raise RunCancelled
    whole = {key: answers for key, answers in said.items() if len(answers) == len(sources)}
    return {
        "rankings": [
            {
                "ranking_id": key,
                "num_pairs": answers[0]["num_pairs"],
                "num_right": [item["num_right"] for item in answers],
            }
            for key, answers in whole.items()
        ],
        "refused": list(refused.values()),
    }


def _asked(
    source: ModelSource, rankings: Sequence[Ranking], device: str
) -> tuple[list[tuple[str, int, float]], list[dict[str, str]]]:
    """(ranking, its ordered pairs, on how many the model is right) of each, and what was left out."""
    model, tokenizer = RewardModel.load(source, device=device), load_tokenizer(source)
    limit = context_length(model.blocks.config)
    tasks, refused = encode_rankings(rankings, tokenizer, max_length=limit, ties="drop")
    scores = Scorer(model, pad_id=pad_id_of(tokenizer), config=RewardConfig(cache_megabytes=0)).score_tasks(tasks)
    return [
        (ranking.ranking_id, len(ranking.ordered_pairs), num_right(ranking, values))
        for ranking, values in zip(all_rankings(tasks), for_each_ranking(tasks, scores), strict=True)
    ], refused


def num_right(ranking: Ranking, scores: Sequence[float]) -> float:
    """On how many ordered pairs the better answer has the higher score; equal scores are half right."""
    return sum(
        1.0 if scores[better] > scores[worse] else 0.5 if scores[better] == scores[worse] else 0.0
        for better, worse in ranking.ordered_pairs
    )


# --- Answers that nobody has ranked ----------------------------------------------------------------------------------


class Judge:
    """A reward model that looks at answers: their scores by each head, and the states that the heads see."""

    def __init__(self, source: ModelSource, device: str) -> None:
        self._model, self._tokenizer = RewardModel.load(source, device=device), load_tokenizer(source)
        config = RewardConfig(cache_megabytes=0)
        self._scorer = Scorer(self._model, pad_id=pad_id_of(self._tokenizer), config=config)

    @property
    def num_heads(self) -> int:
        """1 where it is no ensemble."""
        return 1 if self._model.members is None else self._model.members.out_features

    def encode(self, rankings: Sequence[Ranking]) -> tuple[list[Task], list[dict[str, str]]]:
        """The tasks that it can read whole, and those that are left out, with the reason."""
        limit = context_length(self._model.blocks.config)
        return encode_rankings(rankings, self._tokenizer, max_length=limit, ties="half")

    def states(self, tasks: Sequence[Task]) -> list[Tensor]:
        """state_KD of each task's answers."""
        return self._scorer.states(tasks)

    def say(self, task: Task, state_KD: Tensor, seen_MD: Tensor) -> dict[str, Any]:
        """What it says of one task (docs/protocol.md)."""
        ranking = task.rankings[0]
        score_KE = self._model.member_scores(state_KD)
        return {
            "key": ranking.ranking_id,
            "scores": {
                answer.id: value
                for answer, value in zip(ranking.answers, self._model.score_states(state_KD).tolist(), strict=True)
            },
            "disagreement": choosing.disagreement(score_KE),
            "expected_gain": choosing.expected_gain(score_KE),
            "novelty": choosing.novelty(state_KD, seen_MD) if len(seen_MD) else None,
        }


@torch.no_grad()
def judge_answers(
    rows: Iterable[Mapping[str, Any]],
    source: ModelSource,
    *,
    seen: Iterable[Mapping[str, Any]] = (),
    report: Reporter,
    device: str = "cpu",
) -> dict[str, Any]:
    """The result of a `judge` run (docs/protocol.md): of each row its answers' scores, and what a ranking would teach.

    Args:
        rows: `{"key", "messages", "answers": [{"id", "text", "finish_reason"}]}`.
        seen: a dataset's rows: what novelty is told from; without any it is null.
    """
    judge = Judge(source, device)
    tasks, refused = judge.encode([_unranked(row) for row in rows])
    known, _ = judge.encode(to_rankings(seen)[-MOST_SEEN:])
    seen_MD = torch.cat(judge.states(known)) if known else torch.zeros(0)
    judged: list[dict[str, Any]] = []
    for first in range(0, len(tasks), TASKS_AT_ONCE):
        part = tasks[first : first + TASKS_AT_ONCE]
        judged += [judge.say(task, state, seen_MD) for task, state in zip(part, judge.states(part), strict=True)]
        report.progress(len(judged), len(tasks), "")
        stop_if_cancelled(report)
    left_out = [{"key": row["ranking_id"], "reason": row["reason"]} for row in refused]
    return {"judged": judged, "num_heads": judge.num_heads, "refused": left_out}


def _unranked(row: Mapping[str, Any]) -> Ranking:
    """A row as a ranking that says nothing: its answers stand in the order in which they came."""
    answers = tuple(Answer(item["id"], item["text"], item["finish_reason"]) for item in row["answers"])
    return Ranking(row["key"], row["key"], row["messages"], answers, tuple(range(len(answers))))
