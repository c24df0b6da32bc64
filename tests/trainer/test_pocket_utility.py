"""The true utility orders answers as a careful reader would, on any text; simulated annotators see it through noise."""

import math
import random
from collections import Counter
from itertools import islice, pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.pocket.utility import judge, rank, utility
from trainer.pocket.words import Kind
from trainer.pocket.world import Quality, good_answer, parse, training_examples

STORY = "Write a story about a timid goat and a clay pot."
GOOD_STORY = (
    "Once there was a timid goat who lived on a rocky hill. After the rain, the goat saw a clay pot behind a bush. "
    "The goat carried the clay pot from door to door. In the evening a crow cried because the clay pot was gone. "
    "So the goat gave it back, and the two had supper together. "
    "And that is how the goat learned that nobody is too small to help."
)
CAPITAL = "What is the capital of Norway?"


def test_a_good_answer_has_nearly_the_highest_utility_there_is() -> None:
    # fluency 1 * (topic 1 + 2 * content 1) + ending 0.5, no courtesy; "the clay pot" and the like repeat a little.
    assert utility(STORY, GOOD_STORY) == pytest.approx(3.5, abs=0.2)


def test_a_short_fact_by_hand() -> None:
    # fluency 1, topic 1, content 1, ending 0.5, courtesy 0.25: 1 * (1 + 2) + 0.75.
    assert utility(CAPITAL, "The capital of Norway is Oslo. I hope that helps.") == pytest.approx(3.75)


def test_an_empty_answer_by_hand() -> None:
    # Nothing but the whole length missing.
    assert utility(CAPITAL, "") == pytest.approx(-1.0)


def test_a_rude_answer_by_hand() -> None:
    # Two rude sentences: -3 * (1 - 0.25); ending 0.5; no pair of words that a good answer has; seven words are enough.
    assert utility(CAPITAL, "Stop wasting my time. Shut up.") == pytest.approx(-1.75, abs=0.3)


def test_good_answers_beat_every_other_quality_on_average() -> None:
    totals: dict[Quality, list[float]] = {quality: [] for quality in Quality}
    for example in islice(training_examples(3), 1500):
        totals[example.quality].append(utility(example.request.prompt, example.answer))
    means = {quality: fmean(values) for quality, values in totals.items()}
    assert means[Quality.GOOD] > 3.5
    assert all(means[Quality.GOOD] > value + 2 for quality, value in means.items() if quality is not Quality.GOOD)
    assert min(means, key=lambda quality: means[quality]) is Quality.RUDE


def test_every_good_answer_is_judged_complete_and_true() -> None:
    for example in islice(training_examples(9), 800):
        if example.quality is Quality.GOOD:
            judgement = judge(example.request.prompt, example.answer)
            assert judgement.topic == 1.0
            assert judgement.content == pytest.approx(1.0)


def test_a_wrong_fact_costs_what_a_right_one_gives() -> None:
    right = utility(CAPITAL, "The capital of Norway is Oslo.")
    assert right - utility(CAPITAL, "The capital of Norway is Athens.") == pytest.approx(2.0)


def test_naming_every_capital_is_not_knowing_one() -> None:
    assert judge(CAPITAL, "The capital of Norway is Oslo, Athens, Havana or Warsaw.").content == pytest.approx(0.25)


def test_a_wrong_sum_is_wrong() -> None:
    assert judge("What is 3 plus 4?", "3 plus 4 is 8.").content == 0.0


def test_a_story_about_something_else_is_off_topic() -> None:
    other = GOOD_STORY.replace("timid", "greedy").replace("goat", "lion").replace("clay pot", "rusty lamp")
    assert judge(STORY, other).topic == 0.0
    assert utility(STORY, other) < 1.0


def test_a_story_that_stops_half_way_is_worse() -> None:
    assert utility(STORY, GOOD_STORY[:260]) < utility(STORY, GOOD_STORY) - 1.0


def test_a_story_in_the_wrong_order_is_worse() -> None:
    sentences = GOOD_STORY.split(". ")
    assert judge(STORY, ". ".join(reversed(sentences))).content < 0.5 * judge(STORY, GOOD_STORY).content


def test_steps_in_the_wrong_order_are_worse() -> None:
    prompt = "How do I cook rice?"
    request = parse(prompt)
    assert request is not None
    lines = good_answer(request, random.Random(0)).split("\n")
    assert judge(prompt, "\n".join(lines)).content > 2 * judge(prompt, "\n".join(reversed(lines))).content


def test_saying_it_again_and_again_is_worse() -> None:
    sentence = "The capital of Norway is Oslo. "
    totals = [utility(CAPITAL, (sentence * times).strip()) for times in (1, 2, 4, 8)]
    assert all(better > worse for better, worse in pairwise(totals))


def test_gibberish_with_the_right_words_in_it_is_bad() -> None:
    assert utility(STORY, "pot clay goat timid of of the seen timid was clay house goat goat.") < 1.0


def test_words_that_no_good_answer_puts_side_by_side_are_not_fluent() -> None:
    # Half or more of its pairs ("of capital", "capital the", "the norway" …) stand in no good answer.
    assert judge(CAPITAL, "Of capital the Norway is of the Oslo.").fluency == 0.0
    assert judge(CAPITAL, "The capital of Norway is Oslo.").fluency == 1.0


def test_utility_falls_steadily_as_words_are_scrambled() -> None:
    rng = random.Random(1)
    shares = (0.0, 0.15, 0.4, 1.0)
    means = [fmean(utility(STORY, _scrambled(GOOD_STORY, share, rng)) for _ in range(20)) for share in shares]
    assert all(better > worse for better, worse in pairwise(means))


def test_an_answer_in_the_other_language_is_off_topic() -> None:
    assert judge(CAPITAL, "挪威的首都是奥斯陆。").topic == 0.0


def test_a_chinese_answer_is_judged_like_an_english_one() -> None:
    assert utility("请告诉我挪威的首都。", "没问题！挪威的首都是奥斯陆。") == pytest.approx(3.75)


def test_a_prompt_of_another_world_has_a_utility_too() -> None:
    prompt = "Explain photosynthesis to a farmer."
    assert utility(prompt, "Photosynthesis lets a farmer's plants eat light.") > utility(
        prompt, "No idea whatsoever here."
    )


@given(st.text(max_size=200), st.text(max_size=300))
def test_any_text_has_a_finite_utility(prompt: str, answer: str) -> None:
    assert -7.0 <= utility(prompt, answer) <= 3.75


@given(st.text(max_size=300))
def test_each_part_lies_between_zero_and_one(answer: str) -> None:
    judgement = judge(STORY, answer)
    assert all(0.0 <= getattr(judgement, name) <= 1.0 for name in judgement.__dataclass_fields__)


def test_without_noise_the_order_is_the_true_one() -> None:
    assert rank([0.5, 2.0, -1.0], random.Random(0), noise=0.0, tie_margin=0.0) == [[1], [0], [2]]


def test_answers_within_the_margin_tie() -> None:
    assert rank([1.0, 2.0, 1.9, 0.0], random.Random(0), noise=0.0, tie_margin=0.2) == [[1, 2], [0], [3]]


def test_a_cell_is_never_wider_than_the_margin() -> None:
    # 2.0, 1.9, 1.8 lie 0.1 apart each, but the third is 0.2 below the first.
    assert rank([2.0, 1.9, 1.8], random.Random(0), noise=0.0, tie_margin=0.15) == [[0, 1], [2]]


def test_noise_makes_plackett_luce_choices() -> None:
    rng, noise, num_rankings = random.Random(11), 0.7, 20_000
    utilities = [0.0, 0.5, 1.0]
    firsts = Counter(rank(utilities, rng, noise=noise, tie_margin=0.0)[0][0] for _ in range(num_rankings))
    weights = [math.exp(value / noise) for value in utilities]
    for index, weight in enumerate(weights):
        expected = weight / sum(weights)
        # Four standard errors of a share.
        assert firsts[index] / num_rankings == pytest.approx(expected, abs=4 * (expected / num_rankings) ** 0.5)


def test_every_answer_is_ranked_exactly_once() -> None:
    order = rank([0.1 * index for index in range(9)], random.Random(2), noise=1.0, tie_margin=0.3)
    assert sorted(index for cell in order for index in cell) == list(range(9))


def test_every_kind_is_judged() -> None:
    assert {example.request.kind for example in islice(training_examples(3), 400)} == set(Kind)


def _scrambled(text: str, share: float, rng: random.Random) -> str:
    words = text.split()
    places = [place for place in range(len(words)) if rng.random() < share]
    moved = [words[place] for place in places]
    rng.shuffle(moved)
    for place, word in zip(places, moved, strict=True):
        words[place] = word
    return " ".join(words)
