"""Whole rounds of the loop in a world whose truth is known, as `rankloop simulate` turns them: minutes a seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak

HOURS = 3600
COVERED = 0.85
"""Of the room between one half and the ceiling (docs/loop.md)."""
MOST_NATS = 10.0
REWARD_SHARE = 0.95
"""Of the accuracy that the true utilities have on the same noisy rankings (docs/loop.md)."""


@pytest.mark.timeout(3 * HOURS)
def test_four_rounds_lead_near_to_the_best_that_the_policy_can_say(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "rankloop", "simulate", "--rounds", "4", "--seeds", "3", "--json", str(figures)]
    subprocess.run(command, check=True, env=os.environ | {"RANKLOOP_DATA_DIR": str(tmp_path)})
    found = json.loads(figures.read_text())
    for name in ("win_rate", "ceiling", "best_of_16", "room", "kl", "reward_share", "rounds", "seconds"):
        record_property(name, found[name])
    assert found["room"] >= COVERED
    assert found["kl"] <= MOST_NATS
    assert found["reward_share"] >= REWARD_SHARE
