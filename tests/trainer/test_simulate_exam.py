"""What the truth says of a loop: wins by hand, accuracy by hand, and an exam of tiny models that really answer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.trainer.tiny import save_tiny
from trainer.pocket.world import Quality, answer_of_quality, held_out_requests
from trainer.reward_model import RewardModel
from trainer.simulate_exam import NUM_ANSWERS, NUM_BEST, Exam, reward_marks, share_of_wins
from trainer.weights import ModelSource

PROMPTS = ["a b", "c d a", "b"]
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 6}


def test_wins_are_counted_over_all_pairs_and_a_tie_is_half_a_win() -> None:
    assert share_of_wins(after=[3.0, 1.0], before=[1.0, 2.0], tie_margin=0.0) == (1 + 1 + 0.5 + 0) / 4


@pytest.mark.parametrize(("difference", "seen", "exact"), [(0.05, 0.5, 1.0), (-0.05, 0.5, 0.0), (0.2, 1.0, 1.0)])
def test_a_difference_that_nobody_can_see_is_a_tie(difference: float, seen: float, exact: float) -> None:
    assert share_of_wins([1.0 + difference], [1.0], tie_margin=0.1) == seen
    assert share_of_wins([1.0 + difference], [1.0], tie_margin=0.0) == exact


def test_the_truth_is_asked_about_the_held_out_rankings_alone() -> None:
    """Of two held-out rankings one is upside down; the third, of the training rows, says nothing."""
    rng = random.Random(17)
    rows = []
    for number, request in enumerate(held_out_requests(3, 17)):
        texts = {name: answer_of_quality(request, Quality(name), rng) for name in ("good", "rude")}
        order = [["rude"], ["good"]] if number == 1 else [["good"], ["rude"]]
        rows.append(
            {
                "ranking_id": str(number),
                "prompt_id": str(number),
                "split": "train" if number == 2 else "validation",
                "messages": [{"role": "user", "content": request.prompt}],
                "completions": [{"id": name, "text": text} for name, text in texts.items()],
                "order": order,
            }
        )
    found = reward_marks(rows, 0.4)
    assert (found.reward, found.truth) == (0.4, 0.5)


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return ModelSource(save_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def exam(sft: ModelSource) -> Exam:
    return Exam(PROMPTS, sft, sampling=SAMPLING, tie_margin=0.1, seed=17)


def test_the_sft_policy_beside_itself_ties(exam: Exam) -> None:
    assert exam.sft.win_rate == 0.5
    assert {prompt: len(values) for prompt, values in exam.sft.utilities.items()} == dict.fromkeys(PROMPTS, NUM_ANSWERS)


def test_the_ceiling_is_the_best_of_many_other_answers(exam: Exam, sft: ModelSource) -> None:
    many = exam.others
    assert {prompt: len(values) for prompt, values in many.items()} == dict.fromkeys(PROMPTS, NUM_BEST)
    assert exam.ceiling.utilities == {prompt: [max(values)] for prompt, values in many.items()}
    assert exam.ceiling.win_rate >= exam.sit(sft).win_rate


def test_a_reward_model_chooses_among_the_first_sixteen(exam: Exam, sft: ModelSource, tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    folder.mkdir()
    RewardModel.from_sft(sft, None).save(folder)
    chosen = exam.best_of_16(ModelSource(sft.base, folder))
    assert all(value in exam.others[prompt][:16] for prompt, (value,) in chosen.utilities.items())
    assert chosen.win_rate <= exam.ceiling.win_rate


def test_a_policy_sits_with_seeds_that_nobody_had_before(exam: Exam, sft: ModelSource) -> None:
    assert exam.sit(sft).utilities != exam.sit(sft).utilities
