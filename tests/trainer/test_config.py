"""Settings of training runs: refused by name, filled in for the model, the same after a trip through JSON."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import trainer.config
from trainer.config import BestOfNConfig, DPOConfig, LoraConfig, PPOConfig, RewardConfig, SFTConfig, StarConfig

SMALL, LARGE = 600_000, 135_000_000


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown key learning_rat; RewardConfig has adam_beta2, .*learning_rate"):
        RewardConfig.from_overrides({"learning_rat": 1e-4})


def test_an_unknown_key_of_the_adapter_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown key dropout; LoraConfig has alpha"):
        RewardConfig.from_overrides({"lora": {"dropout": 0.1}})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epochs": "three"}, "epochs: 'three' is not a whole number"),
        ({"epochs": True}, "epochs: True is not a whole number"),
        ({"epochs": 0}, "epochs: must be greater than 0, and is 0"),
        ({"ties": "win"}, 'ties: \'win\' is not "drop" or "half" or "davidson"'),
        ({"loss": "plackett_luce", "ties": "half"}, 'are settings of "pairs"'),
        ({"loss": "plackett_luce", "margin": 0.1}, 'are settings of "pairs"'),
        ({"label_smoothing": 0.5}, "label_smoothing: must be between 0 and 0.49, and is 0.5"),
        ({"margin": -1}, "margin: must be at least 0, and is -1"),
        ({"text_coefficient": -1}, "text_coefficient: must be at least 0, and is -1"),
        ({"text_coefficient": 0.1, "sharding": "full"}, 'text_coefficient: not with sharding: "full"'),
        ({"likelihood_weight": -1}, "likelihood_weight: must be at least 0, and is -1"),
        ({"likelihood_weight": 1, "sharding": "full"}, 'likelihood_weight: not with sharding: "full"'),
        ({"learning_rate": float("nan")}, "learning_rate: must be greater than 0"),
        ({"warmup_ratio": 1.5}, "warmup_ratio: must be between 0 and 1, and is 1.5"),
        ({"lora": "full"}, "lora: 'full' is not"),
    ],
)
def test_a_wrong_value_names_field_and_rule(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig.from_overrides(overrides)


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        (SFTConfig, {"patience": 0}, "patience: must be greater than 0"),
        (SFTConfig, {"validation_ratio": 2}, "validation_ratio: must be between 0 and 1"),
        (DPOConfig, {"beta": 0}, "beta: must be greater than 0"),
        (DPOConfig, {"ties": "last"}, 'ties: \'last\' is not "drop" or "half" or "davidson"'),
        (BestOfNConfig, {"n": 0}, "n: must be greater than 0"),
        (BestOfNConfig, {"temperature": 0.0}, "temperature: must be greater than 0"),
        (StarConfig, {"answers_per_prompt": 0}, "answers_per_prompt: must be greater than 0"),
        (StarConfig, {"sft": {"epoch": 1}}, "unknown key epoch; SFTConfig has"),
    ],
)
def test_a_wrong_value_of_the_others_names_field_and_rule(kind: Any, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind.from_overrides(overrides)


def test_a_gpu_multiplies_in_bfloat16() -> None:
    assert SFTConfig().for_model(LARGE, "cuda").precision == "bfloat16"
    assert DPOConfig(precision="float32").for_model(LARGE, "cuda").precision == "float32"
    assert SFTConfig().for_model(LARGE, "cpu").precision == "float32"
    assert SFTConfig().for_model(LARGE, "cpu").lora == LoraConfig()


def test_minibatches_must_divide_a_rollout() -> None:
    with pytest.raises(ValueError, match="episodes_per_batch: must be a multiple of minibatch_size"):
        PPOConfig.from_overrides({"episodes_per_batch": 10, "minibatch_size": 4})


def test_a_whole_number_serves_as_a_number() -> None:
    assert PPOConfig.from_overrides({"beta": 1}).beta == 1.0


@pytest.mark.parametrize(
    "config",
    [
        RewardConfig(),
        RewardConfig(lora=LoraConfig(rank=4)),
        PPOConfig(lora=None),
        SFTConfig(patience=None),
        DPOConfig(ties="davidson"),
        BestOfNConfig(sft=SFTConfig(lora=LoraConfig(rank=4))),
        StarConfig(),
    ],
)
def test_json_and_back_is_the_same(config: Any) -> None:
    assert type(config).from_overrides(json.loads(json.dumps(config.as_json()))) == config


def test_a_large_model_on_a_cpu_gets_adapters_and_few_episodes() -> None:
    assert RewardConfig().for_model(LARGE, "cpu").lora == LoraConfig(num_last_blocks=4)
    assert PPOConfig().for_model(LARGE, "cpu").num_episodes == 64
    assert PPOConfig().for_model(LARGE, "cpu").num_epochs == 4
    assert PPOConfig().for_model(SMALL, "cpu").num_epochs == 1


@pytest.mark.parametrize(("num", "epochs"), [(1, 3), (400, 3), (500, 2), (1_000, 1), (33_000, 1)])
def test_few_rankings_are_read_more_often(num: int, epochs: int) -> None:
    assert RewardConfig().for_rankings(num, goes_on=False).epochs == epochs
    assert RewardConfig(epochs=5).for_rankings(num, goes_on=False).epochs == 5


@pytest.mark.parametrize(("wishes", "epochs"), [({}, 3), ({"epochs": 2}, 2), ({"epochs": 2, "warm_epochs": 1}, 1)])
def test_a_reward_model_that_goes_on_may_read_less_often(wishes: dict[str, int], epochs: int) -> None:
    assert RewardConfig(**wishes).for_rankings(100, goes_on=True).epochs == epochs
    assert RewardConfig(**wishes).for_rankings(100, goes_on=False).epochs == wishes.get("epochs", 3)


def test_a_small_model_or_a_gpu_gets_full_weights() -> None:
    assert RewardConfig().for_model(SMALL, "cpu").lora is None
    assert PPOConfig().for_model(LARGE, "cuda").lora is None


def test_what_was_set_is_kept_for_every_model() -> None:
    config = PPOConfig(num_episodes=16, learning_rate=1e-5, lora=None).for_model(LARGE, "cpu")
    assert (config.num_episodes, config.learning_rate, config.value_learning_rate) == (16, 1e-5, 1e-5)
    assert config.lora is None


def test_every_field_says_what_the_paper_has() -> None:
    tree = ast.parse(Path(trainer.config.__file__).read_text(encoding="utf-8"))
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        for field, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{node.name}.{ast.unparse(field.target)} needs a line below it"
