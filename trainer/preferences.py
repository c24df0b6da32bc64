"""Rankings as a trainer sees them: rows of a dataset or of a file, groups and pairs, and how well scores agree.

No torch: whoever counts pairs needs no GPU library.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.jsonl import named_by, read_objects

Ties = Literal["drop", "half", "davidson"]

NUM_RESAMPLES = 2_000


@dataclass(frozen=True)
class Answer:
    """One completion that was ranked."""

    id: str
    text: str
    finish_reason: str | None = None
    """"length" when it was cut; "stop" or None when it is whole."""
    policy: str | None = None
    """Who wrote it: a version's id or a model's name; None where it is not known, or a person."""


@dataclass(frozen=True)
class Ranking:
    """One person's (or one merged) order of K answers to one prompt."""

    ranking_id: str
    prompt_id: str
    messages: list[dict[str, str]]
    answers: tuple[Answer, ...]
    places: tuple[int | None, ...]
    """Of each answer: 0 is best, equal places are a tie, None is missing (which is not last)."""
    split: str = "train"
    annotator: str | None = None
    """Who ranked, by pseudonym; None where it is not known or where several were merged."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """Names the conversation: prompts that continue the same first turn share it."""
        first = next((turn for turn in self.messages if turn["role"] != "system"), self.messages[0])
        return hashlib.sha256(f"{first['role']}\0{first['content']}".encode()).hexdigest()

    @property
    def ordered_pairs(self) -> list[tuple[int, int]]:
        """(better, worse), as indices of answers; what is missing or tied is in none."""
        return [(i, j) for i, j in self._placed_pairs() if self.places[i] < self.places[j]]  # type: ignore[operator]

    @property
    def named_pairs(self) -> set[tuple[str, str]]:
        """(better, worse), as ids of answers."""
        return {(self.answers[i].id, self.answers[j].id) for i, j in self.ordered_pairs}

    @property
    def tied_pairs(self) -> list[tuple[int, int]]:
        """Pairs in the same place, each once."""
        return [(i, j) for i, j in self._placed_pairs() if i < j and self.places[i] == self.places[j]]

    def _placed_pairs(self) -> Iterator[tuple[int, int]]:
        placed = [index for index, place in enumerate(self.places) if place is not None]
        return ((i, j) for i in placed for j in placed if i != j)

    def weights(self, ties: Ties) -> list[list[float]]:
        """[K][K]: how much it counts that row beats column: 1 for an ordered pair; a tie counts one half both ways
        ("half", "davidson"), or nothing ("drop", as in InstructGPT)."""
        size = len(self.answers)
        weights = [[0.0] * size for _ in range(size)]
        for better, worse in self.ordered_pairs:
            weights[better][worse] = 1.0
        if ties != "drop":
            for one, other in self.tied_pairs:
                weights[one][other] = weights[other][one] = 0.5
        return weights

    def num_pairs(self, ties: Ties) -> int:
        """Pairs that count in the loss."""
        return len(self.ordered_pairs) + (len(self.tied_pairs) if ties != "drop" else 0)

    @property
    def asked(self) -> str:
        """Names what was asked: the messages, as JSON."""
        return json.dumps(self.messages, sort_keys=True)

    def age(self, since: Mapping[str | None, int]) -> int:
        """The place of the newest policy that wrote one of the answers, in an `order_of_policies`."""
        return max(since[answer.policy] for answer in self.answers)

    def arranged_as(self, other: Ranking) -> Ranking:
        """The same order of the same answers, which stand as they do in `other`."""
        place_of = {answer.id: place for answer, place in zip(self.answers, self.places, strict=True)}
        return replace(self, answers=other.answers, places=tuple(place_of[answer.id] for answer in other.answers))


def hash_rankings(rankings: Sequence[Ranking]) -> str:
    """What names these rankings in a manifest where no dataset does."""
    lines = [json.dumps(asdict(ranking), sort_keys=True, default=dict) for ranking in rankings]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def group_by_task(rankings: Sequence[Ranking]) -> list[list[Ranking]]:
    """The rankings of each task together, their answers in one order: the same answers to the same prompt, by however
    many people. Tasks come in the order of their first rankings."""
    tasks: dict[Hashable, list[Ranking]] = {}
    for ranking in rankings:
        key = (ranking.asked, ranking.split, frozenset(ranking.answers))
        together = tasks.setdefault(key, [])
        together.append(ranking.arranged_as(together[0]) if together else ranking)
    return list(tasks.values())


def liked(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """The favourite answer of each training task behind what was asked, as `{"messages": […]}`; none where it was cut
    by length, or where no answer is preferred to another.

    Where several policies' answers to a prompt were ranked, only those of the newest count: the best of what an earlier
    one wrote has faults that were mended since.
    """
    since = order_of_policies(rankings)
    learnable: list[tuple[str, int, dict[str, Any]]] = []
    for together in group_by_task([ranking for ranking in rankings if ranking.split == "train"]):
        best = favourite(together)
        answers = together[0].answers
        if best is None or answers[best].finish_reason == "length" or not answers[best].text.strip():
            continue
        row = {"messages": [*together[0].messages, {"role": "assistant", "content": answers[best].text}]}
        learnable.append((together[0].asked, together[0].age(since), row))
    newest: dict[str, int] = {}
    for prompt, age, _ in learnable:
        newest[prompt] = max(age, newest.get(prompt, age))
    return [row for prompt, age, row in learnable if age == newest[prompt]]


def order_of_policies(rankings: Iterable[Ranking]) -> dict[str | None, int]:
    """Of each policy, how many are older than it: those whose answers were ranked for the first time before. Rankings
    stand in the order of their time."""
    since: dict[str | None, int] = {}
    for ranking in rankings:
        for answer in ranking.answers:
            since.setdefault(answer.policy, len(since))
    return since


def replayed(tasks: Sequence[Sequence[Ranking]], share: float, *, seed: int) -> list[int]:
    """The indices of the tasks that are read where a training goes on from an earlier one: all with answers of the
    newest policy, and of each older policy's those of a `share` of its prompts.

    What is drawn follows from the seed, from what was asked, and from how many policies there are (so that each round
    draws anew): whoever draws, in whatever order, draws the same.
    """
    since = order_of_policies(ranking for together in tasks for ranking in together)
    by_age: dict[int, dict[str, list[int]]] = {}
    for index, together in enumerate(tasks):
        by_age.setdefault(together[0].age(since), {}).setdefault(together[0].asked, []).append(index)
    newest = max(by_age)
    kept: list[int] = []
    for age, by_prompt in by_age.items():
        drawn = sorted(
            by_prompt, key=lambda asked: hashlib.sha256(f"{seed}\0{newest}\0{age}\0{asked}".encode()).digest()
        )
        num = len(drawn) if age == newest else round(share * len(drawn))
        kept += [index for asked in drawn[:num] for index in by_prompt[asked]]
    return sorted(kept)


def favourite(together: Sequence[Ranking]) -> int | None:
    """The index of the answer that the rankings of a task prefer to most others; of several, the first; None where none
    is preferred to another."""
    preferred = Counter(better for ranking in together for better, _ in ranking.ordered_pairs)
    return max(preferred, key=lambda index: (preferred[index], -index)) if preferred else None


# --- Reading ---------------------------------------------------------------------------------------------------------


def to_rankings(rows: Iterable[Mapping[str, Any] | Ranking]) -> list[Ranking]:
    """Rows of a dataset (docs/protocol.md) or of the public interchange shape; rankings pass through.

    ValueError names the row, the field and the rule.
    """
    rankings: list[Ranking] = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Ranking):
            rankings.append(row)
            continue
        try:
            rankings += _parse_row(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"Row {number}: {_said(error)}") from error
    return rankings


def _said(error: Exception) -> str:
    """What is wrong with a row, for the person who wrote it."""
    if isinstance(error, KeyError):
        return f"the field {error} is missing"
    if isinstance(error, (TypeError, AttributeError)):
        return f"{error} (docs/data.md has the shape of a row)"
    return str(error)


def read_rankings(path: Path) -> list[Ranking]:
    """The rankings of a JSONL file. ValueError names the line, the field and the rule."""
    rows = read_objects(path)
    with named_by(path):
        return to_rankings(rows)


def _parse_row(row: Mapping[str, Any]) -> list[Ranking]:
    if "responses" in row:
        return _parse_interchange(row)
    if "completions" not in row:
        raise ValueError("must have `completions` with `order`, or `responses` with `aggregate` or `annotations`.")
    answers = [
        Answer(str(item["id"]), _text(item), item.get("finish_reason"), _policy(item)) for item in row["completions"]
    ]
    return [_ranking(row, str(row["ranking_id"]), str(row["prompt_id"]), answers, row["order"])]


def _parse_interchange(row: Mapping[str, Any]) -> list[Ranking]:
    """The merged order where there is one, else each annotator's ranks, scores or pairs."""
    answers = [Answer(str(item["id"]), _text(item), policy=_policy(item)) for item in row["responses"]]
    name = str(row["id"])
    merged = (row.get("aggregate") or {}).get("ranking")
    orders = [(merged, None)] if merged else list(_annotated_orders(row.get("annotations") or []))
    return [
        _ranking({**row, "annotator": who}, name if len(orders) == 1 else f"{name}#{number}", name, answers, order)
        for number, (order, who) in enumerate(orders)
    ]


def _annotated_orders(annotations: Sequence[Mapping[str, Any]]) -> Iterator[tuple[list[list[str]], str | None]]:
    for annotation in annotations:
        who = annotation.get("annotator")
        if annotation.get("ranks"):
            yield _order_by(annotation["ranks"]), who
        elif annotation.get("scores"):
            yield _order_by({name: -score for name, score in annotation["scores"].items()}), who
        for pair in annotation.get("pairs") or []:
            other = {pair["a"]: pair["b"], pair["b"]: pair["a"]}
            yield [[pair["a"], pair["b"]]] if pair["pref"] == "tie" else [[pair["pref"]], [other[pair["pref"]]]], who


def _order_by(values: Mapping[str, float]) -> list[list[str]]:
    """Smallest first; equal values share a place."""
    return [[name for name, value in values.items() if value == step] for step in sorted(set(values.values()))]


def _ranking(
    row: Mapping[str, Any], ranking_id: str, prompt_id: str, answers: list[Answer], order: Sequence[Sequence[str]]
) -> Ranking:
    split = str(row.get("split") or "train")
    if split not in ("train", "validation"):
        raise ValueError(f"split: must be train or validation, and is {split}; test prompts never train a model.")
    return Ranking(
        ranking_id=ranking_id,
        prompt_id=prompt_id,
        messages=_messages(row),
        answers=tuple(answers),
        places=_places([answer.id for answer in answers], order),
        split=split,
        annotator=None if row.get("annotator") is None else str(row["annotator"]),
        meta=row.get("meta") or {},
    )


def _places(ids: Sequence[str], order: Sequence[Sequence[str]]) -> tuple[int | None, ...]:
    if len(set(ids)) < len(ids):
        raise ValueError("completions: every id must be there once.")
    places: dict[str, int] = {}
    for place, cell in enumerate(order):
        for name in cell:
            if name not in ids:
                raise ValueError(f"order: {name} is none of the completions.")
            if name in places:
                raise ValueError(f"order: {name} has two places.")
            places[name] = place
    return tuple(places.get(name) for name in ids)


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = row.get("messages") or ([{"role": "user", "content": row["prompt"]}] if row.get("prompt") else [])
    if not messages:
        raise ValueError("messages: must hold at least one turn.")
    return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in messages]


def _policy(item: Mapping[str, Any]) -> str | None:
    name = item.get("version_id") or item.get("model")
    return str(name) if name else None


def _text(item: Mapping[str, Any]) -> str:
    if not isinstance(item["text"], str):
        raise TypeError(f"text: must be a string, and is {type(item['text']).__name__}.")
    return item["text"]


# --- Agreement of people with each other -----------------------------------------------------------------------------

PRIOR_PAIRS = 10
"""An annotator's agreement starts as that of all, with the weight of so many pairs."""


def agreements(rankings: Sequence[Ranking]) -> Iterator[tuple[Ranking, Ranking, bool]]:
    """(one, other, same) for every two rankings of a prompt by different people and every pair that both put in order.

    What either left out or tied is passed over. Rankings whose annotator is not known are nobody's.
    """
    by_prompt: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        if ranking.annotator is not None:
            by_prompt.setdefault(ranking.prompt_id, []).append(ranking)
    for together in by_prompt.values():
        orders = [ranking.named_pairs for ranking in together]
        for number, one in enumerate(together):
            for index in range(number + 1, len(together)):
                if one.annotator == together[index].annotator:
                    continue
                for pair in orders[number]:
                    if pair in orders[index] or pair[::-1] in orders[index]:
                        yield one, together[index], pair in orders[index]


def annotator_weights(rankings: Sequence[Ranking]) -> dict[str | None, float]:
    """How much each annotator's rankings count, by agreement with the others: 1 on average, from 0 to 3.

    Two people who are right with the chances a and b agree with the chance p, and 2p - 1 = (2a - 1)(2b - 1). So
    somebody's 2p - 1, over that of all, is how reliable they are. With few pairs it stays near 1; who has none counts
    1, and so does everybody where people agree no better than by chance.
    """
    same: dict[str | None, int] = {}
    total: dict[str | None, int] = {}
    for one, other, is_same in agreements(rankings):
        for name in (one.annotator, other.annotator):
            same[name] = same.get(name, 0) + is_same
            total[name] = total.get(name, 0) + 1
    mean = sum(same.values()) / max(1, sum(total.values()))
    if mean <= 0.5:
        return dict.fromkeys(total, 1.0)
    smoothed = {name: (same[name] + PRIOR_PAIRS * mean) / (total[name] + PRIOR_PAIRS) for name in total}
    return {name: min(3.0, max(0.0, (2 * value - 1) / (2 * mean - 1))) for name, value in smoothed.items()}


# --- Agreement of scores with people ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """The share of ordered pairs whose scores are in the same order, with its 95 % interval."""

    value: float
    low: float
    high: float
    num_pairs: int
    num_prompts: int
    """Clusters that were resampled."""

    def as_json(self) -> dict[str, float | int]:
        """As docs/protocol.md has it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pairwise_accuracy(
    rankings: Sequence[Ranking],
    scores: Sequence[Sequence[float]],
    *,
    cluster: Callable[[Ranking], Hashable] = lambda ranking: ranking.prompt_id,
    seed: int = 17,
) -> Accuracy | None:
    """How often a better answer has the higher score; None without a pair. Equal scores count one half.

    The interval resamples whole prompts (`cluster`), never pairs: the pairs of a prompt depend on each other.
    """
    won = (
        (cluster(ranking), 0.5 if score[better] == score[worse] else float(score[better] > score[worse]))
        for ranking, score in zip(rankings, scores, strict=True)
        for better, worse in ranking.ordered_pairs
    )
    return estimate_accuracy(won, seed=seed)


def estimate_accuracy(won: Iterable[tuple[Hashable, float]], *, seed: int = 17) -> Accuracy | None:
    """The mean of (cluster, right or not) with an interval that resamples clusters; None when there is nothing."""
    counts: dict[Hashable, list[float]] = {}
    for cluster, is_right in won:
        right, total = counts.setdefault(cluster, [0.0, 0.0])
        counts[cluster] = [right + is_right, total + 1]
    if not counts:
        return None
    table = np.array(list(counts.values()))
    chosen = np.random.default_rng(seed).integers(len(table), size=(NUM_RESAMPLES, len(table)))
    right_total = table[chosen].sum(axis=1)
    low, high = np.quantile(right_total[:, 0] / right_total[:, 1], [0.025, 0.975])
    value, num_pairs = table[:, 0].sum() / table[:, 1].sum(), int(table[:, 1].sum())
    return Accuracy(float(value), float(low), float(high), num_pairs, len(table))


def make_folds(rankings: Sequence[Ranking], num_folds: int, *, seed: int = 17) -> list[list[int]]:
    """Indices of rankings in `num_folds` parts of about equal size; a conversation is never in two of them.

    ValueError when there are fewer conversations than folds.
    """
    roots: dict[str, list[int]] = {}
    for index, ranking in enumerate(rankings):
        roots.setdefault(ranking.root, []).append(index)
    if not 2 <= num_folds <= len(roots):
        raise ValueError(f"folds: must be between 2 and {len(roots)}, the number of conversations, and is {num_folds}.")
    names = np.random.default_rng(seed).permutation(sorted(roots))
    folds: list[list[int]] = [[] for _ in range(num_folds)]
    for name in names:
        min(folds, key=len).extend(roots[name])
    return folds
