"""How surely the detectors flag who answers without reading, and how rarely they flag the honest: simulated annotators.

100 people rank 60 tasks each; 8 of them rank at random, in reverse, by the first card, by length, or in a hurry. Two
honest people agree on 70 to 78 of 100 pairs; what an answer is worth correlates 0.3 with its length; 30 % of the tasks
are ranked by three people, 10 % of everybody's rankings are of gold tasks. The checks are the product's own.

    python benchmarks/poisoning.py [--quick] [--seeds 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.quality.detectors import Check, crowd_of, examine, flags_of, read
from app.quality.orders import Judgement

K = 4
LENGTH_CORRELATION = 0.3


@dataclass(frozen=True)
class Setting:
    """One simulated project."""

    num_people: int = 100
    num_attackers: int = 8
    num_rankings: int = 60
    overlap: int = 3
    overlap_share: float = 0.3
    """Of the tasks; of the rankings it is 3 * 0.3 / (3 * 0.3 + 0.7) = 56 %."""
    gold_share: float = 0.1
    """Of everybody's rankings."""
    num_gold_tasks: int = 50
    agreement: tuple[float, float] = (0.70, 0.78)


@dataclass(frozen=True)
class Person:
    """How somebody ranks."""

    kind: Check | None
    noise: float
    slowness: float


@dataclass
class World:
    """What happened, and who was who."""

    judgements: list[Judgement] = field(default_factory=list)
    gold: dict[Any, list[int]] = field(default_factory=dict)
    truth: dict[Any, list[int]] = field(default_factory=dict)
    attackers: dict[int, Check] = field(default_factory=dict)


def noise_of(agreement: float) -> float:
    """The noise with which two people agree so often on a pair: 1/2 + asin(1 / (1 + noise^2)) / pi."""
    return math.sqrt(1 / math.sin((agreement - 0.5) * math.pi) - 1)


def simulate(seed: int, setting: Setting) -> World:
    """A project in which everybody ranked the same number of tasks, in the order in which it happened."""
    rng = random.Random(f"poisoning {seed}")
    world = World()
    kinds = rng.sample(list(Check), len(Check)) * setting.num_attackers
    world.attackers = dict(zip(rng.sample(range(setting.num_people), setting.num_attackers), kinds, strict=False))
    loud, quiet = (noise_of(agreement) for agreement in setting.agreement)
    people = [
        Person(world.attackers.get(number), rng.uniform(quiet, loud), rng.gauss(0, 0.3))
        for number in range(setting.num_people)
    ]
    for task, shift in enumerate(shifts(rng, setting)):
        lengths, worths = answers(rng)
        world.truth[task] = places_of(worths)
        if shift[:1] == ["gold"]:
            world.gold[task] = world.truth[task]
        for number in shift:
            if number != "gold":
                world.judgements.append(rank(rng, task, number, people[number], lengths, worths))
    return world


def shifts(rng: random.Random, setting: Setting) -> list[list[Any]]:
    """Who ranks which task: everybody `num_rankings` of them, nobody one twice. A gold task begins with "gold"."""
    num_gold = round(setting.num_rankings * setting.gold_share)
    gold: list[list[Any]] = [["gold"] for _ in range(setting.num_gold_tasks)]
    for person in range(setting.num_people):
        for task in rng.sample(gold, num_gold):
            task.append(person)
    left = [setting.num_rankings - num_gold] * setting.num_people
    tasks: list[list[Any]] = []
    while any(left):
        wanted = setting.overlap if rng.random() < setting.overlap_share else 1
        waiting = [person for person in range(setting.num_people) if left[person]]
        # Whoever has most left comes first, as people work side by side.
        chosen = sorted(waiting, key=lambda person: (-left[person], rng.random()))[:wanted]
        for person in chosen:
            left[person] -= 1
        tasks.append(chosen)
    for task in gold:
        tasks.insert(rng.randrange(len(tasks)), task)
    return tasks


def answers(rng: random.Random) -> tuple[list[int], list[float]]:
    """Lengths in bytes, and what the answers are worth."""
    sizes = [rng.gauss(0, 1) for _ in range(K)]
    rest = math.sqrt(1 - LENGTH_CORRELATION**2)
    return [round(500 * math.exp(0.5 * size)) for size in sizes], [
        LENGTH_CORRELATION * size + rest * rng.gauss(0, 1) for size in sizes
    ]


def places_of(worths: Sequence[float]) -> list[int]:
    """Places by worth, best first."""
    order = sorted(range(len(worths)), key=lambda index: -worths[index])
    return [order.index(index) + 1 for index in range(len(worths))]


def rank(
    rng: random.Random, task: int, number: int, person: Person, lengths: Sequence[int], worths: Sequence[float]
) -> Judgement:
    """One person's ranking of one task."""
    seats = rng.sample(range(K), K)
    seen = [worth + rng.gauss(0, person.noise) for worth in worths]
    if person.kind in {Check.RANDOM, Check.SPEEDING}:
        seen = [rng.gauss(0, 1) for _ in worths]
    elif person.kind == Check.REVERSED:
        seen = [-value for value in seen]
    elif person.kind == Check.FIRST_CARD:
        seen[seats.index(0)] = math.inf
    elif person.kind == Check.LONGEST:
        seen = [float(length) for length in lengths]
    seconds = (sum(lengths) + 400) / 60 * math.exp(person.slowness + rng.gauss(0, 0.4))
    if person.kind == Check.SPEEDING:
        seconds = rng.uniform(2, 5)
    places = places_of(seen)
    return Judgement(task, task, number, places, seats=seats, lengths=lengths, seconds=seconds)


def play(seed: int, setting: Setting) -> dict[str, Any]:
    """One seed: who was flagged, of the attackers by kind and of the honest, and how long it took."""
    world = simulate(seed, setting)
    readings = read(world.judgements, world.gold)
    found = examine(readings, crowd_of(readings))
    caught = {person: flags_of(checks) for person, checks in found.items() if flags_of(checks)}
    return {
        "seed": seed,
        "attackers": len(world.attackers),
        "caught": sum(person in caught for person in world.attackers),
        "missed": sorted(str(kind) for person, kind in world.attackers.items() if person not in caught),
        "by_name": sum(kind in caught.get(person, []) for person, kind in world.attackers.items()),
        "honest_flagged": {str(check): num_flagged(caught, world, check) for check in Check},
        "num_honest_flagged": sum(person not in world.attackers for person in caught),
        "after": [
            min(item.flagged_after for item in found[person].values() if item.flagged_after is not None)
            for person in world.attackers
            if person in caught
        ],
    }


def num_flagged(caught: dict[Any, list[Check]], world: World, check: Check) -> int:
    """How many honest people a check flags."""
    return sum(check in checks for person, checks in caught.items() if person not in world.attackers)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All seeds together."""
    attackers = sum(row["attackers"] for row in rows)
    after = [number for row in rows for number in row["after"]]
    return {
        "seeds": len(rows),
        "attackers": attackers,
        "caught": sum(row["caught"] for row in rows),
        "named": sum(row["by_name"] for row in rows),
        "missed": sorted(kind for row in rows for kind in row["missed"]),
        "honest_flagged_a_seed": float(np.mean([row["num_honest_flagged"] for row in rows])),
        "honest_flagged_by": {str(check): sum(row["honest_flagged"][check] for row in rows) for check in Check},
        "rankings_until_flagged": {
            name: float(np.quantile(after, share)) if after else None
            for name, share in (("median", 0.5), ("p95", 0.95), ("most", 1.0))
        },
    }


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="three seeds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    settings = {
        "as in threats.md": Setting(),
        "3 people on 30 % of the rankings": Setting(overlap_share=1 / 8),
        "no gold": Setting(gold_share=0.0),
        "honest for 200 rankings": Setting(num_rankings=200, num_attackers=0),
    }
    results = {}
    for name, setting in settings.items():
        rows = [play(seed, setting) for seed in range(3 if options.quick else options.seeds)]
        results[name] = summary(rows)
        print(f"\n{name}")
        for key, value in results[name].items():
            print(f"  {key:<24} {value}")
    print(f"\n{time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
