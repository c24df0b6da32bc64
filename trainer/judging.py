"""What reward models say of held-out rankings: each is asked about the same pairs, so that they can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.config import RewardConfig
from trainer.data import all_rankings, encode_rankings, for_each_ranking
from trainer.models import RewardModel
from trainer.preferences import Ranking, to_rankings
from trainer.reporting import Reporter, RunCancelled
from trainer.scorer import Scorer, pad_id_of
from trainer.weights import ModelSource, context_length, load_tokenizer


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
