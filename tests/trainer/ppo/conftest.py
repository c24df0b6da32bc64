"""A tiny model and a reward model on it, one for each file."""

from dataclasses import replace

import pytest

from tests.trainer.ppo.tools import LORA, save_base
from trainer.reward_model import RewardModel
from trainer.weights import ModelSource


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return save_base(tmp_path_factory.mktemp("base"), seed=0)


@pytest.fixture(scope="module")
def reward(base: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("reward-v1")
    RewardModel.from_sft(base, LORA, seed=3).save(folder)
    return replace(base, version=folder)
