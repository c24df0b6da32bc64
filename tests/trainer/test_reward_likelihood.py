"""A reward model that reads how likely it finds an answer: what it reads, however it is read, kept and refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from torch import Tensor

from tests.trainer.test_reward import CONFIG, make_rankings, train
from tests.trainer.tiny import save_tied, save_tiny
from trainer.config import LoraConfig
from trainer.data import Task
from trainer.export import merge_to_folder
from trainer.preferences import Answer
from trainer.reward_model import REWARD_OUTPUT, RewardModel, ValueModel
from trainer.reward_server import create_app
from trainer.scorer import Scorer, score
from trainer.shared_prompt import allow_packing
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer

PROMPT, ANSWERS = [5, 4, 3, 4], [[6, 3, 1], [4], [3, 3, 3, 4, 5, 6, 1]]
LORA = LoraConfig(rank=4, alpha=8, num_last_blocks=1)
MESSAGES = [{"role": "user", "content": "a b"}]
TEXTS = ["c", "a a a", "d b c a", "b"]


@pytest.fixture(params=["tied", "untied"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ModelSource:
    return ModelSource(save_tied(tmp_path) if request.param == "tied" else save_tiny(tmp_path, spread=0.1))


def make_model(source: ModelSource, weight: float = 1.5, lora: LoraConfig | None = None) -> RewardModel:
    model = RewardModel.from_sft(source, lora, seed=3)
    model.read_likelihood(weight, source)
    return model


def save(model: RewardModel, folder: Path) -> ModelSource:
    folder.mkdir()
    model.save(folder)
    return ModelSource(model.source.base, folder)


def likelihoods(source: ModelSource, prompt: list[int], answers: list[list[int]]) -> Tensor:
    """Of each answer the mean log-probability a token, from a plain language model's softmax."""
    model = load_causal_lm(source)
    means = []
    for answer in answers:
        laws = model(torch.tensor([prompt + answer])).logits[0].log_softmax(dim=1)
        of_each = [laws[len(prompt) + place - 1, token] for place, token in enumerate(answer)]
        means.append(torch.stack(of_each).mean())
    return torch.stack(means)


def in_rows(model: RewardModel, left: int = 0) -> Tensor:
    """The scores, in rows that are padded at the right, and with so many columns at the left."""
    width = left + len(PROMPT) + max(map(len, ANSWERS))
    rows = [[0] * left + PROMPT + answer for answer in ANSWERS]
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    is_real = torch.tensor([[left <= place < len(row) for place in range(width)] for row in rows])
    return model.score_answers(tokens, is_real, num_new=width - left - len(PROMPT), num_shared=len(rows))


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_score_has_the_mean_log_probability_of_the_answer(source: ModelSource, lora: LoraConfig | None) -> None:
    plain, reading = RewardModel.from_sft(source, lora, seed=3), make_model(source, 1.5, lora)
    expected = in_rows(plain) + 1.5 * likelihoods(source, PROMPT, ANSWERS)
    torch.testing.assert_close(in_rows(reading), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(in_rows(reading, left=2), expected, rtol=1e-5, atol=1e-5)
    allow_packing(reading.blocks)
    torch.testing.assert_close(in_rows(reading), expected, rtol=1e-5, atol=1e-5)


def test_an_empty_answer_has_no_likelihood_but_0(source: ModelSource) -> None:
    plain, reading = RewardModel.from_sft(source, None, seed=3), make_model(source)
    task = Task(rankings=(), rows=[PROMPT, [*PROMPT, 6]], num_prompt_tokens=len(PROMPT), weights=[])
    for is_shared in (False, True):
        config = dataclasses.replace(CONFIG, share_prompt=is_shared)
        found = [Scorer(model, pad_id=0, config=config).score_tasks([task])[0] for model in (plain, reading)]
        assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
        assert found[1][1] != pytest.approx(found[0][1], abs=1e-3)


def test_every_way_of_scoring_says_the_same(source: ModelSource, tmp_path: Path) -> None:
    version = save(make_model(source), tmp_path / "reward")
    model, tokenizer = RewardModel.load(version), load_tokenizer(version)
    asked = [(MESSAGES, Answer("", text, "stop")) for text in TEXTS]
    expected = score(model, tokenizer, asked)
    assert len(set(expected)) == len(TEXTS)
    with TestClient(create_app(version)) as client:
        rows = [{"messages": MESSAGES, "completion": text} for text in TEXTS]
        assert client.post("/score", json={"conversations": rows}).json()["scores"] == pytest.approx(expected, abs=1e-5)
        queries = [f"User: a b\nAssistant: {text} <eos>" for text in TEXTS]
        body = {"query": queries, "prompts": ["User: a b\nAssistant:"] * 4}
        assert client.post("/get_reward", json=body).json()["rewards"] == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    source = ModelSource(save_tiny(tmp_path / "base"))
    with TestClient(create_app(save(make_model(source), tmp_path / "reward"))) as client:
        yield client


@pytest.mark.parametrize("prompts", [None, ["User: b b\nAssistant:"], [7], [""]])
def test_a_query_must_say_where_its_answer_begins(client: TestClient, prompts: list[Any] | None) -> None:
    refused = client.post("/get_reward", json={"query": ["User: a b\nAssistant: c <eos>"], "prompts": prompts})
    assert refused.status_code == 422
    assert "prompts: this reward model reads how likely an answer is" in refused.json()["detail"]


def test_a_saved_one_says_what_it_said(source: ModelSource, tmp_path: Path) -> None:
    model = make_model(source, weight=-0.5)
    model.have_members(3, seed=1)
    version = save(model, tmp_path / "reward")
    is_tied = load_causal_lm(source).config.get_text_config().tie_word_embeddings
    assert (tmp_path / "reward" / REWARD_OUTPUT).is_file() is not is_tied
    again = RewardModel.load(version)
    torch.testing.assert_close(in_rows(again), in_rows(model))
    facts = json.loads((tmp_path / "reward" / "reward.json").read_text())
    assert facts["likelihood_weight"] == pytest.approx(-0.5)
    assert (again.num_members, again.members is not None) == (3, True)


def test_heads_of_an_ensemble_begin_with_the_same_weight(source: ModelSource) -> None:
    model = make_model(source, weight=2.0)
    model.have_members(5, seed=1)
    assert model.members is not None
    assert model.members.weight[:, -1].tolist() == [2.0] * 5
    assert model.members.weight[:, 0].unique().numel() == 5


def test_one_that_has_learned_begins_to_read_it(source: ModelSource, tmp_path: Path) -> None:
    plain = RewardModel.from_sft(source, None, seed=3)
    plain.have_members(2, seed=1)
    plain.shift(torch.tensor([0.5, -1.0]))
    model = RewardModel.load(save(plain, tmp_path / "reward"))
    model.read_likelihood(1.5, source)
    model.average_members()
    expected = in_rows(plain) + 1.5 * likelihoods(source, PROMPT, ANSWERS)
    torch.testing.assert_close(in_rows(model), expected, rtol=1e-5, atol=1e-5)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "trunk" not in name}
    assert learning == {"members.weight"}


def test_its_weight_learns_and_the_transformer_does_not_learn_to_write_by_it(source: ModelSource) -> None:
    model = make_model(source, weight=1.0)
    with torch.no_grad():
        model.head.weight[:, :-1] = 0.0
    in_rows(model).sum().backward()
    assert model.head.weight.grad is not None
    assert model.head.weight.grad[0, -1].item() == pytest.approx(likelihoods(source, PROMPT, ANSWERS).sum().item())
    assert all(p.grad is None or not p.grad.any() for p in model.blocks.parameters())


def test_values_begin_without_the_likelihood_of_what_is_not_yet_written(source: ModelSource) -> None:
    plain, reading = RewardModel.from_sft(source, None, seed=3), make_model(source, weight=9.0)
    row = torch.tensor([PROMPT])
    is_real = torch.ones_like(row).bool()
    values = [ValueModel.from_reward(model)(row, is_real, num_new=2) for model in (plain, reading)]
    torch.testing.assert_close(values[0], values[1])


def test_training_learns_it_keeps_it_and_goes_on_bit_for_bit(source: ModelSource, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, likelihood_weight=1.0, text_coefficient=0.5, checkpoint_every=3, num_heads=2)
    kept: list[Path] = []
    rankings = make_rankings(40)
    whole = train(rankings, source, tmp_path / "whole", config=config, on_checkpoint=kept.append)
    resumed = train(rankings, source, tmp_path / "resumed", config=config, resume_from=kept[-1])
    one, other = (RewardModel.load(ModelSource(source.base, run.folder)) for run in (whole, resumed))
    assert torch.equal(in_rows(one), in_rows(other))
    assert one.head.weight[0, -1].item() != 1.0
    # A warm start reads it, whether it is told to or not.
    config = dataclasses.replace(config, likelihood_weight=0.0, epochs=1)
    start = ModelSource(source.base, whole.folder)
    warm = RewardModel.load(
        ModelSource(source.base, train(rankings, source, tmp_path / "warm", config=config, start=start).folder)
    )
    assert warm.reads_likelihood
    assert warm.head.weight[0, -1].item() == pytest.approx(one.head.weight[0, -1].item(), abs=0.1)


def test_what_can_not_read_it_says_so(source: ModelSource, tmp_path: Path) -> None:
    model = make_model(source)
    row = torch.tensor([PROMPT])
    with pytest.raises(ValueError, match="must know where it begins"):
        model(row, torch.ones_like(row))
    with pytest.raises(ValueError, match='sharding: "full" is not for'):
        model.require_no_likelihood()
    RewardModel.from_sft(source, None).require_no_likelihood()
    with pytest.raises(ValueError, match="a plain classifier has no place"):
        merge_to_folder(save(model, tmp_path / "reward"), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
