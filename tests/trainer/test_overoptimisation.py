"""`benchmarks/overoptimisation.py`: its figures by hand, its drawing, and a slice of the whole with a tiny model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
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
    tell,
)
from tests.trainer.tiny import WORDS, save_tiny
from trainer.config import PPOConfig
from trainer.pocket.world import Quality, answer_of_quality, held_out_requests
from trainer.preferences import Answer, Ranking
from trainer.rollout import make_rollout
from trainer.sampling import Generated
from trainer.simulate import K
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


class Asked(NamedTuple):
    """People who guard, and how they score an answer to each of their prompts."""

    people: People
    score: Callable[[Sequence[str]], float]
    good: list[str]
    rude: list[str]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """The SFT policy is rude to everybody."""
    requests = [request for request in held_out_requests(60, 7) if request.language == "en"]
    rng = random.Random(1)
    good, rude = (
        [answer_of_quality(request, quality, rng) for request in requests] for quality in (Quality.GOOD, Quality.RUDE)
    )
    rankings = [
        Ranking(
            item.prompt, item.prompt, [{"role": "user", "content": item.prompt}], (Answer("x", text, "stop"),) * K, ()
        )
        for item, text in zip(requests, rude, strict=True)
    ]
    words = {word for text in (*good, *rude, *(item.prompt for item in requests)) for word in text.split()}
    source = ModelSource(save_tiny(tmp_path_factory.mktemp("people") / "tiny", words=(*WORDS, *sorted(words))))
    people, tokenizer = People(World(source, QUICK, rankings, []), rankings, seed=1), load_tokenizer(source)

    def score(texts: Sequence[str]) -> float:
        said = [Generated(tokenizer.encode(text), [], "stop") for text in texts]
        each = len(texts) // len(people.questions)
        questions = [question for question in people.questions for _ in range(each)]
        rows = make_rollout(questions, said, pad_id=tokenizer.pad_token_id, device=torch.device("cpu"))
        return people.judge(rows, PPOConfig()).mean().item()

    return Asked(people, score, good, rude)


def test_people_who_guard_prefer_a_better_answer(asked: Asked) -> None:
    """The score is the share of the SFT policy's answers that an answer is preferred to."""
    assert asked.score(asked.good) > 0.95
    assert asked.score(asked.rude) == pytest.approx(0.5, abs=0.1)


def test_people_rank_two_answers_at_a_time_and_none_twice(asked: Asked) -> None:
    before = asked.people.num_rankings
    news = [f"{text} {number}" for text in asked.good for number in ("one", "two", "three")]
    first = asked.score(news)
    assert asked.people.num_rankings - before == 2 * len(asked.good)
    assert asked.score(news) == first
    assert asked.people.num_rankings - before == 2 * len(asked.good)
