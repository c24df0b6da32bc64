"""`benchmarks/overoptimisation.py`: its figures by hand, its drawing, and a slice of the whole with a tiny model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch

from benchmarks.overoptimisation import (
    QUICK,
    People,
    Point,
    Story,
    World,
    figures_of,
    make_world,
    plot,
    questions_of,
    tell,
)
from tests.trainer.tiny import WORDS, save_tiny
from trainer.pocket.world import Quality, answer_of_quality, held_out_requests
from trainer.preferences import Answer, Ranking
from trainer.weights import ModelSource, load_tokenizer

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


def test_a_guard_keeps_weights_that_were_examined_and_the_run_goes_on(tmp_path: Path) -> None:
    """Where the guard stops, the run goes on as it would have gone without one: a point for each exam, to the end."""
    source = ModelSource(save_tiny(tmp_path / "tiny"))
    impatient = replace(QUICK, guard_patience=1, max_new_tokens=8)
    world = make_world(source, impatient)
    found = tell(world, 1, tmp_path / "one")
    patient = replace(world, setting=replace(impatient, guard_patience=99))
    assert found.points == tell(patient, 1, tmp_path / "other").points
    assert [point.episodes for point in found.points] == [0, QUICK.batch, 2 * QUICK.batch]
    assert abs(found.points[0].kl) < 1e-4
    assert found.kept.utility in [point.utility for point in found.points if point.episodes == found.kept.episodes]


def test_people_who_guard_prefer_a_better_answer(tmp_path: Path) -> None:
    """The score is the share of the SFT policy's answers that an answer is preferred to."""
    requests = [request for request in held_out_requests(60, 7) if request.language == "en"]
    rng = random.Random(1)
    good, rude = (
        [answer_of_quality(request, quality, rng) for request in requests] for quality in (Quality.GOOD, Quality.RUDE)
    )
    rankings = [
        Ranking(
            item.prompt, item.prompt, [{"role": "user", "content": item.prompt}], (Answer("x", text, "stop"),) * 4, ()
        )
        for item, text in zip(requests, rude, strict=True)
    ]
    words = {word for text in (*good, *rude, *(item.prompt for item in requests)) for word in text.split()}
    source = ModelSource(save_tiny(tmp_path / "tiny", words=(*WORDS, *sorted(words))))
    world = World(source, QUICK, rankings, [])
    people, tokenizer = People(world, rankings, seed=1), load_tokenizer(source)

    def score(texts: Sequence[str]) -> float:
        asked = zip(questions_of(world, rankings), texts, strict=True)
        rows = [torch.tensor([[*question.tokens, *tokenizer.encode(text)]]) for question, text in asked]
        return torch.cat([people(row, torch.ones_like(row, dtype=torch.bool)) for row in rows]).mean().item()

    assert score(good) > 0.95
    assert score(rude) == pytest.approx(0.5, abs=0.1)
