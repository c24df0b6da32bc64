"""Rankings as quality sees them: what one person said of the answers of one task, and many of these as arrays.

Letters of shapes: N rankings, K answers (as many as the widest task has), P pairs of rankings, Q pairs of answers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Signs = npt.NDArray[np.int8]

MISSING = 9
"""The sign of two answers of which one has no place."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One ranking. What it says of answers follows the order of the task; an answer left out has the place None."""

    task: Hashable
    prompt: Hashable
    annotator: Hashable
    places: Sequence[int | None]
    seats: Sequence[int] = ()
    """Where each answer was shown: 0 is the first card. Empty: not known."""
    lengths: Sequence[int] = ()
    """Bytes of each answer's text: a Chinese character takes about as long to read as three Latin letters."""
    versions: Sequence[str | None] = ()
    """Who wrote each answer."""
    labels: Sequence[frozenset[str]] = ()
    """What was marked on each answer."""
    seconds: float | None = None
    """From opening the task to the answer."""
    at: datetime | None = None
    round: int | None = None
    language: str = ""
    judged: Sequence[int] = ()
    """Where a reward model put each answer before anybody had ranked it: 0 is its best. Empty: it was not asked, or its
    order is shown to nobody here."""
    is_assisted: bool = False
    """The cards stood in that order, so that their seats say nothing of the annotator."""
    key: Hashable = None
    """The ranking's own id."""
    number: int = 0
    """Rankings came in this order."""


@dataclass(frozen=True)
class Table:
    """Judgements as arrays, a row each."""

    places_NK: Floats
    """Smaller is better; nan: no place, or no such answer."""
    task_N: Ints
    prompt_N: Ints
    annotator_N: Ints
    annotators: Sequence[Hashable]
    """Who the numbers in `annotator_N` are."""

    @classmethod
    def of(cls, judgements: Sequence[Judgement]) -> Table:
        """The arrays of these judgements."""
        annotators = number(judgement.annotator for judgement in judgements)
        return cls(
            places_NK=padded([judgement.places for judgement in judgements]),
            task_N=number(judgement.task for judgement in judgements)[0],
            prompt_N=number(judgement.prompt for judgement in judgements)[0],
            annotator_N=annotators[0],
            annotators=annotators[1],
        )

    @cached_property
    def signs_NQ(self) -> Signs:
        """What each ranking says of each two answers: -1 the first is better, 0 they tie, 1 the second is better."""
        return signs_of(self.places_NK)

    @cached_property
    def overlaps_P2(self) -> Ints:
        """All pairs of rankings of one task by two people, as rows of this table."""
        return pairs_within(self.task_N, self.annotator_N)


def number(values: Iterable[Hashable]) -> tuple[Ints, list[Hashable]]:
    """Values as numbers 0, 1, 2 … in the order in which they first come, and what each number stands for."""
    codes: dict[Hashable, int] = {}
    numbers = np.fromiter((codes.setdefault(value, len(codes)) for value in values), dtype=np.int64)
    return numbers, list(codes)


def padded(rows: Sequence[Sequence[float | None]], width: int = 0) -> Floats:
    """Rows of different lengths as one array of at least this width; nan where a row has nothing."""
    table = np.full((len(rows), max((width, *map(len, rows)))), np.nan)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = [np.nan if value is None else value for value in row]
    return table


def signs_of(places_NK: Floats) -> Signs:
    """What rankings say of each two answers i < j, in the order of `np.triu_indices`."""
    one, other = np.triu_indices(places_NK.shape[1], 1)
    difference = places_NK[:, one] - places_NK[:, other]
    return np.where(np.isnan(difference), MISSING, np.sign(np.nan_to_num(difference))).astype(np.int8)


def pairs_within(group_N: Ints, person_N: Ints) -> Ints:
    """Every two rows of the same group by two people, each pair once: shape (P, 2)."""
    order = np.argsort(group_N, kind="stable")
    _, starts, sizes = np.unique(group_N[order], return_index=True, return_counts=True)
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for size in np.unique(sizes[sizes > 1]):
        members = order[starts[sizes == size][:, None] + np.arange(size)]
        one, other = np.triu_indices(size, 1)
        pairs.append(np.stack([members[:, one].ravel(), members[:, other].ravel()], axis=1))
    found = np.concatenate(pairs)
    two_people: Bools = person_N[found[:, 0]] != person_N[found[:, 1]]
    return found[two_people]


def mid_ranks(places_NK: Floats) -> Floats:
    """The rank of each answer within its ranking, 1 is best; answers that tie share the mean of their ranks."""
    better = (places_NK[:, None, :] < places_NK[:, :, None]).sum(axis=2)
    tied = (places_NK[:, None, :] == places_NK[:, :, None]).sum(axis=2)
    return np.where(np.isnan(places_NK), np.nan, better + (tied + 1) / 2)
