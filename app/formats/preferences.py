"""Preferences as trainers read them: pairs, groups, unpaired answers, demonstrations. The columns are TRL's.

https://huggingface.co/docs/trl/dataset_formats
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.formats.rows import RankedRow

Record = dict[str, Any]


def pairs(ranking: RankedRow) -> Iterator[Record]:
    """`prompt`, `chosen`, `rejected`: what DPOTrainer and RewardTrainer take."""
    found = [*better_records(ranking), *tied_records(ranking)]
    if ranking.options.ids:
        more = ranking.names() | {"weight": 1 / len(found) if found else 0.0}
        found = [record | more for record in found]
    yield from found


def better_records(ranking: RankedRow) -> Iterator[Record]:
    """The pairs in which one is better."""
    keeps_ties, has_margin = ranking.options.ties == "keep", ranking.options.margin != "none"
    for better, worse, distance in ranking.better_pairs():
        record = pair(ranking, better, worse)
        if has_margin:
            record["margin"] = ranking.margin(better, worse, distance)
        if keeps_ties:
            record["tie"] = False
        yield record


def tied_records(ranking: RankedRow) -> Iterator[Record]:
    """The ties as asked for. In both directions, a loss on the difference draws the two together."""
    if ranking.options.ties == "drop":
        return
    more: Record = {} if ranking.options.margin == "none" else {"margin": 0.0}
    for one, other in ranking.tied_pairs():
        if ranking.options.ties == "keep":
            yield pair(ranking, one, other) | more | {"tie": True}
        else:
            yield pair(ranking, one, other) | more
            yield pair(ranking, other, one) | more


def pair(ranking: RankedRow, better: str, worse: str) -> Record:
    """One comparison."""
    return {"prompt": ranking.prompt, "chosen": ranking.answers[better], "rejected": ranking.answers[worse]}


def groups(ranking: RankedRow) -> Iterator[Record]:
    """`prompt`, `completions` and their `ranks`: 1 is best, the same rank is a tie, null is an answer nobody placed."""
    ranks = {key: rank for rank, cell in enumerate(ranking.order, start=1) for key in cell}
    record = {
        "prompt": ranking.prompt,
        "completions": list(ranking.answers.values()),
        "ranks": [ranks.get(key) for key in ranking.answers],
    }
    yield record | ranking.names() if ranking.options.ids else record


def unpaired(ranking: RankedRow) -> Iterator[Record]:
    """`prompt`, `completion`, `label`: what KTOTrainer takes. True: better than more answers than it is worse than.

    An answer in the middle is neither, and is left out.
    """
    num_above, num_placed = 0, sum(map(len, ranking.order))
    for cell in ranking.order:
        num_below = num_placed - num_above - len(cell)
        for key in cell if num_above != num_below else ():
            record = {"prompt": ranking.prompt, "completion": ranking.answers[key], "label": num_below > num_above}
            yield record | ranking.names() if ranking.options.ids else record
        num_above += len(cell)


def demonstrations(ranking: RankedRow) -> Iterator[Record]:
    """`messages` that end with the best answer; one for each of several. All tied: nobody said that any is good."""
    if len(ranking.order) < 2:
        return
    for key in ranking.order[0]:
        record = {
            "messages": [*ranking.row["messages"], {"role": "assistant", "content": ranking.texts[key]}],
        }
        yield record | ranking.names() if ranking.options.ids else record
