"""What a reward model's scores are worth, told by more than one number, beside how well people agree. No torch.

Every accuracy counts ordered pairs only (pairs that people tied are left out), and its interval resamples prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.preferences import Accuracy, Ranking, agreements, estimate_accuracy

NUM_PARTS = 4
"""Parts of equal size that margins and lengths are cut into."""
NUM_BINS = 10
"""Bins of equal width between one half and one, in which confidence is held against truth."""


@dataclass(frozen=True)
class ScoredPair:
    """Two answers that a person put in order, and what the model says of them."""

    prompt_id: str
    better_id: str
    worse_id: str
    gap: float
    """The better one's score less the worse one's."""
    longer: int
    """The better one's tokens less the worse one's."""
    policies: tuple[str, str] | None
    """Who wrote the two, sorted; None where it is not known of both."""
    doubt: float
    """Standard deviation of the gap over an ensemble's heads; 0 without an ensemble."""

    @property
    def won(self) -> float:
        """1 where the model agrees, one half where it cannot tell."""
        return 0.5 if self.gap == 0 else float(self.gap > 0)


def make_report(
    rankings: Sequence[Ranking],
    scores: Sequence[Sequence[float]],
    lengths: Sequence[Sequence[int]],
    *,
    people: Sequence[Ranking],
    members: Sequence[Sequence[Sequence[float]]] | None = None,
) -> dict[str, Any]:
    """The `report` of docs/protocol.md, ready for JSON.

    Args:
        rankings: held-out rankings, with the `scores` of their answers and the answers' `lengths` in tokens.
        people: the rankings in which people's own agreement is looked for: as many as there are.
        members: of each ranking's answers, the scores by the heads of an ensemble.
    """
    pairs = list(_scored_pairs(rankings, scores, lengths, members or [[[value] for value in row] for row in scores]))
    return {
        "accuracy": _as_json(_accuracy(pairs)),
        "by_agreement": _by_agreement(rankings, pairs),
        "by_margin": _by_quantile(pairs, lambda pair: abs(pair.gap)),
        "by_doubt": _by_quantile(pairs, lambda pair: pair.doubt) if members else [],
        "by_length_difference": _by_quantile(pairs, lambda pair: pair.longer),
        "by_policies": _by_policies(pairs),
        "calibration": _calibration(pairs),
        "length": {
            "correlation": _correlation(_flatten(lengths), _flatten(scores)),
            "longer_is_better": _as_json(_accuracy(pairs, lambda pair: _sign(pair.longer))),
        },
        "people": {
            "agreement": _as_json(people_agree(people)),
            "num_annotators": len({ranking.annotator for ranking in people} - {None}),
        },
    }


def _scored_pairs(
    rankings: Sequence[Ranking],
    scores: Sequence[Sequence[float]],
    lengths: Sequence[Sequence[int]],
    members: Sequence[Sequence[Sequence[float]]],
) -> Iterator[ScoredPair]:
    for ranking, score, length, heads in zip(rankings, scores, lengths, members, strict=True):
        for better, worse in ranking.ordered_pairs:
            one, other = ranking.answers[better], ranking.answers[worse]
            known = one.policy is not None and other.policy is not None
            low, high = sorted((str(one.policy), str(other.policy)))
            yield ScoredPair(
                ranking.prompt_id,
                one.id,
                other.id,
                gap=score[better] - score[worse],
                longer=length[better] - length[worse],
                policies=(low, high) if known else None,
                doubt=float(np.std(np.subtract(heads[better], heads[worse]))),
            )


def _accuracy(pairs: Sequence[ScoredPair], won: Callable[[ScoredPair], float] | None = None) -> Accuracy | None:
    return estimate_accuracy((pair.prompt_id, won(pair) if won else pair.won) for pair in pairs)


def _as_json(accuracy: Accuracy | None) -> dict[str, Any] | None:
    return accuracy.as_json() if accuracy else None


def _group(pairs: Sequence[ScoredPair], key: Callable[[ScoredPair], Any]) -> list[tuple[Any, list[ScoredPair]]]:
    groups: dict[Hashable, list[ScoredPair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return sorted(groups.items(), key=lambda item: str(item[0]))


def _by_agreement(rankings: Sequence[Ranking], pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    """Accuracy against the majority, by how many of a pair's annotators are in it; a draw is nobody's majority."""
    votes: dict[tuple[str, str, str], list[ScoredPair]] = {}
    for pair in pairs:
        votes.setdefault((pair.prompt_id, pair.better_id, pair.worse_id), []).append(pair)
    found: dict[tuple[int, int], list[ScoredPair]] = {}
    for (prompt_id, better, worse), agreeing in votes.items():
        against = len(votes.get((prompt_id, worse, better), []))
        if len(agreeing) > against:
            found.setdefault((len(agreeing) + against, len(agreeing)), []).append(agreeing[0])
    return [
        {"agreeing": agreeing, "of": num_people} | (_as_json(_accuracy(group)) or {})
        for (num_people, agreeing), group in sorted(found.items())
    ]


def _by_quantile(pairs: Sequence[ScoredPair], value: Callable[[ScoredPair], float]) -> list[dict[str, Any]]:
    """Accuracy in parts of about equal size, from the smallest values to the largest."""
    if not pairs:
        return []
    values = np.array([value(pair) for pair in pairs])
    edges = np.unique(np.quantile(values, np.linspace(0, 1, NUM_PARTS + 1)[1:-1]))
    part = np.searchsorted(edges, values, side="left")
    found = []
    for number in np.unique(part):
        chosen = np.flatnonzero(part == number)
        limits = {"from": float(values[chosen].min()), "to": float(values[chosen].max())}
        found.append(limits | (_as_json(_accuracy([pairs[int(index)] for index in chosen])) or {}))
    return found


def _by_policies(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    known = [pair for pair in pairs if pair.policies is not None]
    return [
        {"policies": list(policies)} | (_as_json(_accuracy(group)) or {})
        for policies, group in _group(known, lambda pair: pair.policies)
    ]


def _calibration(pairs: Sequence[ScoredPair]) -> dict[str, Any] | None:
    """Expected calibration error: how far sigmoid(|gap|), the chance that the higher score is better, is from how often
    it was, averaged over pairs (1706.04599, eq. 3)."""
    if not pairs:
        return None
    confidence = np.array([1 / (1 + math.exp(-min(abs(pair.gap), 700.0))) for pair in pairs])
    won = np.array([pair.won for pair in pairs])
    number = np.minimum(((confidence - 0.5) * 2 * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for index in np.unique(number):
        chosen = number == index
        predicted, observed = float(confidence[chosen].mean()), float(won[chosen].mean())
        bins.append({"predicted": predicted, "observed": observed, "num_pairs": int(chosen.sum())})
    error = sum(item["num_pairs"] * abs(item["predicted"] - item["observed"]) for item in bins) / len(pairs)
    return {"error": error, "bins": bins}


def _correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's; None where one of the two does not vary."""
    if len(one) < 2 or np.std(one) == 0 or np.std(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _flatten(values: Sequence[Sequence[float]]) -> list[float]:
    return [value for row in values for value in row]


def _sign(number: int) -> float:
    return 0.5 if number == 0 else float(number > 0)


def people_agree(rankings: Sequence[Ranking]) -> Accuracy | None:
    """How often two people put two answers of a prompt in the same order, of those that both put in order."""
    return estimate_accuracy((one.prompt_id, float(is_same)) for one, _, is_same in agreements(rankings))
