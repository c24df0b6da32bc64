"""PPO pushed too far in a world whose truth is known, three seeds: minutes a seed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak

HOURS = 3600
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/overoptimisation.py"
KEPT = 0.85
"""Of the best gain of true utility, by a guard that is blind to it: what was expected, less a margin. The goal is 0.9
(docs/loop.md)."""


@pytest.mark.timeout(2 * HOURS)
def test_the_true_utility_falls_and_a_guard_keeps_what_was_gained(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    figures = tmp_path / "figures.json"
    options = ["--pocket", str(tmp_path / "pocket"), "--json", str(figures), "--plot", str(tmp_path / "drawn.svg")]
    subprocess.run([sys.executable, str(SCRIPT), *options], check=True)
    found = json.loads(figures.read_text())
    for name in ("gain_at_best", "gain_at_end", "gain_kept", "share_kept"):
        record_property(name, found[name])
    assert found["gain_at_end"] < found["gain_at_best"]
    assert found["share_kept"] >= KEPT
