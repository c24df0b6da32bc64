"""How surely a position bias is reported, and how rarely one where none is: simulated rankings, the product's own test.

In every seed people rank four answers in a random order; the first card takes the first place at the chance rate (25 %)
and some points more, else any other alike.

    python benchmarks/position_bias.py [--quick] [--seeds 200] [--rankings 2000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from app.quality.bias import position_test
from app.quality.orders import Floats

K = 4
POINTS = (0, 1, 2, 3, 4, 5)


def planted(seed: int, first_rate: float, num_rankings: int = 2_000) -> tuple[Floats, Floats]:
    """Shares of the first place and places on the page, both (rankings, K): the first card wins at this rate."""
    rng = np.random.default_rng(seed)
    seats = rng.permuted(np.tile(np.arange(K), (num_rankings, 1)), axis=1)
    winner = np.where(rng.random(num_rankings) < first_rate, 0, rng.integers(1, K, size=num_rankings))
    return (seats == winner[:, None]).astype(float), seats.astype(float)


def num_reported(first_rate: float, *, seeds: int = 200, num_rankings: int = 2_000) -> int:
    """In how many seeds the test reports a bias."""
    tests = [position_test(*planted(seed, first_rate, num_rankings)) for seed in range(seeds)]
    return sum(test is not None and test.is_biased for test in tests)


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--rankings", type=int, default=2_000)
    parser.add_argument("--quick", action="store_true", help="20 seeds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = 20 if options.quick else options.seeds
    results = {}
    for points in POINTS:
        reported = num_reported(1 / K + points / 100, seeds=seeds, num_rankings=options.rankings)
        results[f"+{points} points"] = {"reported": reported, "seeds": seeds, "rankings": options.rankings}
        print(f"+{points} points: reported in {reported} of {seeds} seeds after {options.rankings:,} rankings")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
