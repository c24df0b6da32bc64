"""Which consensus of several people's orders is the best: the product's, majority vote, and crowd-kit's models.

Two questions, with 95 % intervals over prompts. *Truth*: of simulated tasks, how many pairs of answers does the
consensus put in the true order? *The one left out*: how often does the consensus of all others agree with a person's
own ordered pairs? The second can be asked of real data, too. Every method is told the same rankings; a tie in a
consensus counts half.

    python benchmarks/consensus.py [--quick] [--seeds 10] [--data FILE.jsonl] [--json FILE]

crowd-kit is compared where it is installed (benchmarks/requirements-consensus.txt); nothing else needs it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from app.quality.agreement import Estimate, ratio
from app.quality.consensus import agree_on, majority
from app.quality.orders import Judgement
from benchmarks.poisoning import Setting, World, simulate

Scores = Mapping[Hashable, Sequence[float]]
Method = Callable[[Sequence[Judgement]], Scores]


def ours(judgements: Sequence[Judgement]) -> Scores:
    """The product's: Bradley-Terry with reliabilities."""
    return {task: [worth or 0.0 for worth in found.worths] for task, found in agree_on(judgements)[0].items()}


def votes(judgements: Sequence[Judgement]) -> Scores:
    """Majority vote on pairs, then Copeland's score."""
    return {task: [worth or 0.0 for worth in found.worths] for task, found in majority(judgements).items()}


def crowd_kit(name: str) -> Method:
    """A pairwise model of crowd-kit; an answer of a task is an item of its own."""

    def scores(judgements: Sequence[Judgement]) -> Scores:
        import pandas as pd
        from crowdkit.aggregation import BradleyTerry, NoisyBradleyTerry

        rows = [
            (str(judgement.annotator), f"{judgement.task}#{i}", f"{judgement.task}#{j}", won)
            for judgement in judgements
            for i, j in combinations(range(len(judgement.places)), 2)
            for won in winners(judgement, i, j)
        ]
        frame = pd.DataFrame(rows, columns=["worker", "left", "right", "label"])
        model = BradleyTerry(n_iter=100) if name == "Bradley-Terry" else NoisyBradleyTerry(n_iter=100, random_state=0)
        found = model.fit_predict(frame)
        return {
            judgement.task: [float(found.get(f"{judgement.task}#{i}", 0.0)) for i in range(len(judgement.places))]
            for judgement in judgements
        }

    return scores


def winners(judgement: Judgement, i: int, j: int) -> list[str]:
    """The better of two answers as crowd-kit names it; both for a tie, none where one has no place."""
    one, other = judgement.places[i], judgement.places[j]
    names = [f"{judgement.task}#{i}", f"{judgement.task}#{j}"]
    if one is None or other is None:
        return []
    return names if one == other else [names[0] if one < other else names[1]]


def methods() -> dict[str, Method]:
    """All that can be compared here."""
    found: dict[str, Method] = {"majority vote": votes, "ours": ours}
    if importlib.util.find_spec("crowdkit"):
        found["crowd-kit Bradley-Terry"] = crowd_kit("Bradley-Terry")
        found["crowd-kit noisy Bradley-Terry"] = crowd_kit("noisy Bradley-Terry")
    return found


# Measuring


def right(scores: Sequence[float], places: Sequence[int | None]) -> tuple[float, int]:
    """Of the pairs that `places` put in order: how many the scores put in the same order, and how many there are."""
    won, num = 0.0, 0
    for i, j in combinations(range(len(places)), 2):
        one, other = places[i], places[j]
        if one is not None and other is not None and one != other:
            gap = (scores[i] - scores[j]) * (1 if one < other else -1)
            won += 0.5 if abs(gap) < 1e-9 else float(gap > 0)
            num += 1
    return won, num


def truth(method: Method, worlds: Sequence[World]) -> tuple[Estimate, Estimate]:
    """Right pairs of all tasks with three people; and of those of them on which an attacker is."""
    rows = judged(method, worlds)
    return estimate([row[:3] for row in rows]), estimate([row[:3] for row in rows if row[3]])


def gain(method: Method, worlds: Sequence[World]) -> Estimate:
    """How many more pairs are right than by majority vote, task by task: both judge the same ones."""
    pairs = zip(judged(method, worlds), judged(votes, worlds), strict=True)
    return estimate([(key, won - plain, num) for (key, won, num, _), (_, plain, _, _) in pairs])


def judged(method: Method, worlds: Sequence[World]) -> list[tuple[Any, float, int, bool]]:
    """Of each task that several people ranked: right pairs, all pairs, whether an attacker is among them."""
    everything: list[tuple[Any, float, int, bool]] = []
    for number, world in enumerate(worlds):
        # What is gold is known: a consensus is of what is not.
        rows = [row for row in world.judgements if row.task not in world.gold]
        people: dict[Any, list[Any]] = {}
        for row in rows:
            people.setdefault(row.task, []).append(row.annotator)
        scores = method(rows)
        for task, theirs in people.items():
            if len(theirs) > 1:
                is_attacked = bool(set(theirs) & set(world.attackers))
                everything.append(((number, task), *right(scores[task], world.truth[task]), is_attacked))
    return everything


def left_out(method: Method, worlds: Sequence[Sequence[Judgement]]) -> Estimate:
    """Leave one annotator out: their pairs against the consensus of all others on the same tasks.

    People are left out ten folds at a time, so that a method is fitted ten times a world and not once a person.
    """
    found = []
    for number, rows in enumerate(worlds):
        names = sorted({row.annotator for row in rows}, key=str)
        folds = [set(names[start :: min(10, len(names))]) for start in range(min(10, len(names)))]
        for fold in folds:
            kept = [row for row in rows if row.annotator not in fold]
            scores = method(kept)
            found += [
                ((number, row.prompt), *right(scores[row.task], row.places))
                for row in rows
                if row.annotator in fold and row.task in scores
            ]
    return estimate(found)


def estimate(rows: Sequence[tuple[Any, float, int]]) -> Estimate:
    """The share of right pairs, with its interval over prompts."""
    codes = {key: index for index, key in enumerate(dict.fromkeys(row[0] for row in rows))}
    cluster = np.array([codes[row[0]] for row in rows])
    result = ratio(cluster, np.array([row[1] for row in rows]), np.array([row[2] for row in rows], dtype=float))
    assert result is not None
    return result


def read_pairs(path: Path) -> list[Judgement]:
    """Pairs by several annotators, as `annotations` of JSON lines (docs/protocol.md has the shape)."""
    judgements = []
    for line in path.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        for annotation in item["annotations"]:
            for pair in annotation["pairs"]:
                places = [1, 1] if pair["pref"] == "tie" else [1, 2] if pair["pref"] == pair["a"] else [2, 1]
                task = (item["id"], pair["a"], pair["b"])
                judgements.append(Judgement(task, item["id"], annotation["annotator"], places))
    return judgements


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two seeds")
    parser.add_argument("--data", type=Path, help="pairs that several annotators judged, as JSON lines")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = range(2 if options.quick else options.seeds)
    worlds = [simulate(seed, Setting()) for seed in seeds]
    hostile = [simulate(seed, Setting(num_attackers=30)) for seed in seeds]
    results: dict[str, Any] = {}
    for name, method in methods().items():
        started = time.monotonic()
        everything, attacked = truth(method, worlds)
        seconds = (time.monotonic() - started) / len(worlds)
        figures = {
            "truth": everything,
            "truth, more than majority vote": gain(method, worlds),
            "truth, attacked tasks": attacked,
            "truth, 30 of 100 attack": truth(method, hostile)[0],
            "the one left out": left_out(method, [overlapping(world) for world in worlds[:3]]),
        }
        if options.data:
            figures[f"the one left out, {options.data.stem}"] = left_out(method, [read_pairs(options.data)])
        print(f"\n{name} ({seconds:.2f} s a project)")
        for key, found in figures.items():
            print(f"  {key:<52} {found.value:.4f} [{found.low:.4f}, {found.high:.4f}]  {found.num} pairs")
        results[name] = {"seconds": seconds} | {key: found.__dict__ for key, found in figures.items()}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def overlapping(world: World) -> list[Judgement]:
    """The rankings of tasks that are not gold and that more than one person ranked."""
    num: dict[Any, int] = {}
    for row in world.judgements:
        num[row.task] = num.get(row.task, 0) + 1
    return [replace(row) for row in world.judgements if num[row.task] > 1 and row.task not in world.gold]


if __name__ == "__main__":
    main()
