"""`benchmarks/overoptimisation.py`: its figures by hand, its drawing, and a slice of the whole with a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.overoptimisation import QUICK, Point, Story, figures_of, make_world, plot, tell
from tests.trainer.tiny import save_tiny
from trainer.weights import ModelSource

SVG = "{http://www.w3.org/2000/svg}"


def story(*utilities: float, kept: float) -> Story:
    """A seed whose policy was examined after every 100 episodes."""
    points = [Point(100 * i, value, kl=float(i), reward=float(i)) for i, value in enumerate(utilities)]
    return Story(points, Point(100, kept), stopped=200)


STORIES = [story(1.0, 2.0, 1.5, kept=1.9), story(2.0, 2.5, 1.0, kept=2.5)]


def test_gains_are_means_over_seeds_of_what_lies_over_the_sft_policy() -> None:
    found = figures_of(STORIES)
    assert found["gain_at_best"] == pytest.approx((1.0 + 0.5) / 2)
    assert found["gain_at_end"] == pytest.approx((0.5 - 1.0) / 2)
    assert found["share_kept"] == pytest.approx((0.9 + 0.5) / 1.5, abs=1e-4)


def test_the_drawing_has_a_line_a_seed_and_a_dot_where_the_guard_stayed() -> None:
    drawn = ET.fromstring(plot(STORIES))
    lines = [path.get("class") for path in drawn.iter(f"{SVG}path")]
    assert lines.count("true") == len(STORIES) + 1
    assert lines.count("reward") == 1
    assert len(list(drawn.iter(f"{SVG}circle"))) == len(STORIES)
    assert "prefers-color-scheme:dark" in "".join(style.text or "" for style in drawn.iter(f"{SVG}style"))


def test_a_guard_keeps_weights_that_the_run_without_it_had_too(tmp_path: Path) -> None:
    """The guarded run is the first part of the other one, and the exam is always the same."""
    source = ModelSource(save_tiny(tmp_path / "tiny"))
    world = make_world(source, replace(QUICK, guard_patience=1, max_new_tokens=8))
    found = tell(world, 1, tmp_path)
    assert [point.episodes for point in found.points] == [0, QUICK.batch, 2 * QUICK.batch]
    assert abs(found.points[0].kl) < 1e-4
    assert found.kept.episodes < QUICK.num_rollouts * QUICK.batch
    assert found.kept.utility in [point.utility for point in found.points if point.episodes == found.kept.episodes]
