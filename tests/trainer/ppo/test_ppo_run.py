"""A whole run of PPO, from models and prompts to a version; killed, refused, resumed."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.ppo.tools import LORA, PROMPTS, QUESTIONS, TOO_LONG, Diary, all_answers, log_law, train
from trainer.checkpoints import CheckpointError
from trainer.models import load_policy
from trainer.ppo_guard import Judgement, Look
from trainer.ppo_learner import Interval, Progress
from trainer.reporting import RunCancelled
from trainer.reward_model import RewardModel
from trainer.rollout import TrainingFailed
from trainer.weights import ModelSource


def test_a_run_writes_a_version_and_reports(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    report = Diary()
    result = train(base, reward, tmp_path / "v2", prompts=[*PROMPTS, TOO_LONG], report=report, lora=LORA.as_json())
    assert result.num_episodes == 16
    assert [row["prompt_id"] for row in result.refused] == ["p3"]
    assert "context of 64" in result.refused[0]["reason"]
    assert set(result.as_json()) == {
        "num_episodes",
        "reward",
        "kl",
        "kl_interval",
        "seconds",
        "refused",
        "is_average",
        "guard",
        "stopped_by",
    }
    assert result.as_json()["guard"] is None
    assert {"objective/reward", "objective/kl", "objective/entropy", "objective/length"} <= set(report.points[0])
    assert {
        "ppo/policy/loss",
        "ppo/policy/clipfrac",
        "ppo/policy/approxkl",
        "ppo/value/loss",
        "ppo/beta",
        "sample/tokens_per_second",
    } <= set(report.points[0])
    assert [point["step"] for point in report.points] == [8, 16]
    assert report.steps[-1] == (32, 32)
    assert [step for step, _ in report.steps] == sorted(step for step, _ in report.steps)
    assert any(text.startswith("best of 8: score") for _, text in report.lines)
    manifest = json.loads((tmp_path / "v2" / "manifest.json").read_text())
    assert manifest["kind"] == "ppo"
    assert set(manifest["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = load_policy(replace(base, version=tmp_path / "v2"), lora=None, reference=base)
    with torch.no_grad(), loaded.reference():
        reference = log_law(loaded, QUESTIONS[0], all_answers(1))
    assert not torch.equal(log_law(loaded, QUESTIONS[0], all_answers(1)), reference)


def test_the_reference_is_the_sft_model_not_the_policy_that_the_run_began_with(
    base: ModelSource, reward: ModelSource, tmp_path: Path
) -> None:
    train(base, reward, tmp_path / "v2", lora=LORA.as_json(), learning_rate=0.1)
    report = Diary()
    train(base, reward, tmp_path / "v3", policy=replace(base, version=tmp_path / "v2"), report=report, num_episodes=8)
    assert abs(report.points[0]["objective/kl"]) > 1e-3


@pytest.mark.parametrize("lora", [None, LORA.as_json()])
def test_a_killed_run_that_goes_on_ends_as_if_it_had_not_been_killed(
    base: ModelSource, reward: ModelSource, tmp_path: Path, lora: Any
) -> None:
    fields = {"num_episodes": 32, "lora": lora, "target_kl": 1.0, "num_epochs": 2}
    if lora:
        fields |= {"ema_decay": 0.9, "guard": reward, "guard_answers": 4, "guard_patience": 9}
        fields |= {
            "tax_texts": 1,
            "ptx_coefficient": 2.0,
            "ptx_texts": [{"text": "a b c a b"}, {"text": "c c"}, {"text": "b a"}],
        }
    whole = train(base, reward, tmp_path / "whole", **fields)
    with pytest.raises(RunCancelled):
        train(base, reward, tmp_path / "killed", report=Diary(stop_at_progress=44), **fields)  # in the third update
    assert not (tmp_path / "killed").exists()
    torch.manual_seed(99)
    resumed = train(base, reward, tmp_path / "resumed", resume_from=tmp_path / "killed.checkpoint", **fields)
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    expected, found = load_file(tmp_path / "whole" / name), load_file(tmp_path / "resumed" / name)
    assert set(expected) == set(found)
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    assert replace(resumed, seconds=0.0) == replace(whole, seconds=0.0)


def test_another_run_s_checkpoint_is_refused(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    train(base, reward, tmp_path / "one")
    with pytest.raises(CheckpointError, match="config"):
        train(base, reward, tmp_path / "two", resume_from=tmp_path / "one.checkpoint", beta=0.7)


def test_a_reward_model_that_says_nan_leaves_no_version(base: ModelSource, tmp_path: Path) -> None:
    broken = RewardModel.from_sft(base, LORA, seed=3)
    with torch.no_grad():
        broken.head.weight.fill_(math.nan)
    (tmp_path / "reward").mkdir()
    broken.save(tmp_path / "reward")
    with pytest.raises(TrainingFailed, match="NaN or infinite"):
        train(base, replace(base, version=tmp_path / "reward"), tmp_path / "v2")
    assert not (tmp_path / "v2").exists()
    assert not (tmp_path / "v2.checkpoint").exists()


def test_a_run_says_how_sure_its_last_means_are(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    said = train(base, reward, tmp_path / "v2").as_json()
    for value, interval in ((said["kl"], said["kl_interval"]), (said["reward"]["last"], said["reward"]["interval"])):
        assert (interval["low"] + interval["high"]) / 2 == pytest.approx(value, abs=1e-6)
        assert interval["high"] > interval["low"]
    # Eight answers of one prompt say nothing of other prompts.
    fields = {"num_episodes": 8, "minibatch_size": 8, "samples_per_prompt": 8}
    assert train(base, reward, tmp_path / "v3", **fields).as_json()["kl_interval"] is None


def test_an_interval_is_that_of_the_mean() -> None:
    found = Interval.of(torch.tensor([0.0, 1.0] * 50))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.5 - 1.96 * 0.05025, 0.5 + 1.96 * 0.05025), abs=1e-4)
    assert Interval.of(torch.tensor([3.0])) is None


def test_a_run_without_a_prompt_that_fits_is_refused(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no prompt to learn on: 1 prompts, of them 1 over"):
        train(base, reward, tmp_path / "v2", prompts=[TOO_LONG])


def test_progress_survives_json() -> None:
    progress = Progress(beta=0.3, num_iterations=2, num_episodes=16, first_reward=0.1, last_reward=0.2, last_kl=0.4)
    progress.intervals = {"kl": Interval(0.3, 0.5), "reward": None}
    assert Progress.from_json(json.loads(json.dumps(asdict(progress)))) == progress
    guard = Judgement.begin(Look([0.1, 0.3], 0.3, 8))
    for _ in range(2):
        judged = replace(progress, guard=guard, stopped_by="guard")
        assert Progress.from_json(json.loads(json.dumps(asdict(judged)))) == judged
        guard.hear(Look([0.2, 1 / 3], 0.4, 16))
