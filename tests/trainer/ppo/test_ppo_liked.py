"""PPO that begins with what people liked best: what comes before the first rollout, and what it stays near."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.ppo.tools import TOKENIZER, Diary, train
from trainer.checkpoints import CheckpointError
from trainer.pretraining import encode_texts, hash_passages
from trainer.weights import ModelSource

LIKED = [
    {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "d d"}]} for word in ("a", "b")
]
SETTINGS = {"epochs": 30, "learning_rate": 1e-2, "conversations_per_batch": 2, "validation_ratio": 0.0}


def test_the_first_rollout_is_of_a_policy_that_learned_what_people_liked(
    base: ModelSource, reward: ModelSource, tmp_path: Path
) -> None:
    plain, learned = Diary(), Diary()
    train(base, reward, tmp_path / "plain", report=plain)
    train(base, reward, tmp_path / "learned", report=learned, liked_answers=LIKED, liked=SETTINGS)
    assert [point["loss/sft"] for point in learned.points if "loss/sft" in point][-1] < 0.5
    # It is as far from the SFT version as it has learned, and that counts as KL: the reference has not moved along.
    first = [next(point for point in diary.points if "objective/kl" in point) for diary in (plain, learned)]
    assert first[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert first[1]["objective/kl"] > 1.0


def test_a_run_goes_on_only_with_the_same_liked_answers(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    train(base, reward, tmp_path / "v2", liked_answers=LIKED, liked=SETTINGS)
    checkpoint = tmp_path / "v2.checkpoint"
    train(base, reward, tmp_path / "again", liked_answers=LIKED, liked=SETTINGS, resume_from=checkpoint)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("v2", "again")]
    assert weights[0] == weights[1]
    assert not list(tmp_path.glob("*.liked*")), "where PPO begins is of no use after it has begun"
    with pytest.raises(CheckpointError, match="liked_sha256"):
        train(base, reward, tmp_path / "other", liked_answers=LIKED[:1], liked=SETTINGS, resume_from=checkpoint)


@pytest.mark.parametrize("texts", [[], [{"text": "a b c d"}]])
def test_with_ppo_ptx_they_are_text_that_the_policy_goes_on_learning(
    base: ModelSource, reward: ModelSource, tmp_path: Path, texts: list[dict[str, str]]
) -> None:
    diary = Diary()
    wishes = {"ptx_coefficient": 1.0, "ptx_examples_per_episode": 1, "liked": SETTINGS}
    train(base, reward, tmp_path / "v2", report=diary, liked_answers=LIKED, ptx_texts=texts, **wishes)
    assert [point for point in diary.points if "ppo/ptx/loss" in point]
    learned, _ = encode_texts([*texts, *LIKED], TOKENIZER, max_tokens=64)
    manifest = json.loads((tmp_path / "v2" / "manifest.json").read_text())
    assert manifest["ptx_texts_sha256"] == hash_passages(learned)


def test_answers_that_people_liked_need_the_setting(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set liked"):
        train(base, reward, tmp_path / "v2", liked_answers=LIKED)


@pytest.mark.parametrize("coefficient", [0.0, 0.1])
def test_where_people_liked_nothing_that_can_be_learned_ppo_begins_as_ever(
    base: ModelSource, reward: ModelSource, tmp_path: Path, coefficient: float
) -> None:
    diary = Diary()
    train(base, reward, tmp_path / "v2", report=diary, liked=SETTINGS, ptx_coefficient=coefficient)
    assert any("liked no answer" in text for level, text in diary.lines if level == "warning")
    assert diary.points[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
