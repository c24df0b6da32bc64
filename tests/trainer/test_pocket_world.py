"""The pocket world: deterministic, parsable, mostly good, and its held-out prompts stay out of the training text."""

import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from trainer.pocket.prompts import write_prompts
from trainer.pocket.words import PHRASEBOOKS, Kind
from trainer.pocket.world import (
    KIND_SHARES,
    Quality,
    draw_request,
    draw_request_of,
    familiar_requests,
    held_out_requests,
    is_held_out,
    parse,
    requests_of,
    right_answer,
    subjects,
    training_examples,
    validation_examples,
)

DEMO = Path(__file__).parents[2] / "app" / "demo"


def test_the_same_seed_gives_the_same_text() -> None:
    assert list(islice(training_examples(5), 50)) == list(islice(training_examples(5), 50))


def test_another_seed_gives_another_text() -> None:
    assert list(islice(training_examples(5), 50)) != list(islice(training_examples(6), 50))


def test_at_least_half_of_the_answers_are_good() -> None:
    counts = Counter(example.quality for example in islice(training_examples(1), 2000))
    assert counts[Quality.GOOD] > 1000


def test_every_quality_occurs() -> None:
    assert {example.quality for example in islice(training_examples(1), 200)} == set(Quality)


def test_a_training_prompt_is_never_held_out() -> None:
    assert not any(is_held_out(example.request.prompt) for example in islice(training_examples(2), 1000))


def test_a_validation_prompt_is_always_held_out() -> None:
    assert all(is_held_out(example.request.prompt) for example in islice(validation_examples(2), 200))


def test_held_out_requests_are_different_and_held_out() -> None:
    prompts = [request.prompt for request in held_out_requests(150, seed=4)]
    assert len(set(prompts)) == 150
    assert all(map(is_held_out, prompts))


def test_familiar_requests_bring_each_kind_to_its_share_as_far_as_there_are_any() -> None:
    held_out = held_out_requests(400, seed=4)
    familiar = familiar_requests(held_out, seed=4)
    prompts = [request.prompt for request in familiar]
    assert len(set(prompts)) == len(prompts)
    assert not any(map(is_held_out, prompts))
    for language in PHRASEBOOKS:
        num_held_out, num_found = (
            Counter(request.kind for request in requests if request.language == language)
            for requests in (held_out, familiar)
        )
        for kind, share in KIND_SHARES.items():
            missing = round(num_held_out[Kind.STORY] * share / KIND_SHARES[Kind.STORY]) - num_held_out[kind]
            there_are = sum(not is_held_out(request.prompt) for request in requests_of(language, kind))
            assert num_found[kind] == max(0, min(missing, there_are))
    assert 0 < len(familiar) < 400


def test_every_request_of_a_kind_is_there_once() -> None:
    rng = random.Random(4)
    drawn = {draw_request_of("zh", Kind.SUM, rng).prompt for _ in range(3000)}
    listed = [request.prompt for request in requests_of("zh", Kind.SUM)]
    assert sorted(listed) == sorted(drawn)
    assert all(parse(request.prompt) == request for request in requests_of("en", Kind.ANIMAL))


def test_more_held_out_prompts_than_the_world_has_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 100000 held-out prompts"):
        held_out_requests(100_000, seed=4)


def test_every_prompt_is_parsed_back_to_what_it_asks_for() -> None:
    rng = random.Random(8)
    for request in (draw_request(rng) for _ in range(1000)):
        assert parse(request.prompt) == request


def test_a_prompt_of_another_world_is_not_parsed() -> None:
    assert parse("Write a story about a purple dragon and a silver bell.") is None


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("What is the capital of Norway?", "Oslo"),
        ("What is 2 plus 5?", "7"),
        ("“满”的反义词是什么？", "空"),
        ("牛奶是什么颜色的？", "白色"),
    ],
)
def test_the_right_answer(prompt: str, answer: str) -> None:
    request = parse(prompt)
    assert request is not None
    assert right_answer(request) == answer


def test_a_story_has_no_single_right_answer() -> None:
    request = parse("Write a story about a gentle wolf and a silver bell.")
    assert request is not None
    with pytest.raises(ValueError, match="no single right answer"):
        right_answer(request)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", list(Kind))
def test_every_subject_is_in_the_training_text_under_some_wording(language: str, kind: Kind) -> None:
    book = PHRASEBOOKS[language]
    for name, values in subjects(book).items():
        others = {other: words[0] for other, words in subjects(book).items() if other != name}
        templates = [template for template in book.prompts[kind] if "{" + name + "}" in template]
        for value in values if templates else ():
            prompts = [template.format_map({**others, name: value}) for template in templates]
            # A story's prompt has thousands of combinations; only the kinds with a few can be missed altogether.
            assert kind in (Kind.STORY, Kind.SUM) or not all(map(is_held_out, prompts))


def test_the_demo_prompts_for_loops_are_what_the_command_writes(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl")
    assert (tmp_path / "prompts.jsonl").read_bytes() == (DEMO / "pocket_prompts.jsonl").read_bytes()


def test_the_demo_holds_sixty_prompts_that_end_with_a_user_turn() -> None:
    prompts = [json.loads(line) for line in (DEMO / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(prompts) == 60
    assert all(prompt["messages"][-1]["role"] == "user" for prompt in prompts)
    assert {prompt["kind"] for prompt in prompts} == {"plain", "few_shot", "user"}
    assert {prompt["language"] for prompt in prompts} == {"en", "zh"}
