"""Building the pocket model, with a few training steps: the folder, its tokenizer, its cache; not what it learns."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.pocket.build import SPECIAL_TOKENS, PocketReport, build_pocket, classify
from trainer.pocket.utility import judge

FEW = {"steps": 3, "num_sampled_answers": 4}


def _silent(message: str, share: float) -> None:
    pass


def _build(out: Path, *, seed: int = 1) -> PocketReport:
    return build_pocket(out, seed=seed, progress=_silent, **FEW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "pocket"
    _build(out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_the_model_opens_and_has_about_six_hundred_thousand_parameters(folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert 600_000 < sum(parameter.numel() for parameter in model.parameters()) < 700_000
    assert model.config.num_hidden_layers == 4


def test_padding_end_and_beginning_are_three_different_tokens(tokenizer: Any) -> None:
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3


def test_model_and_tokenizer_agree_on_the_special_tokens(folder: Path, tokenizer: Any) -> None:
    settings = json.loads((folder / "generation_config.json").read_text())
    expected = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (settings["bos_token_id"], settings["eos_token_id"], settings["pad_token_id"]) == expected


def test_the_vocabulary_has_2048_tokens(tokenizer: Any) -> None:
    assert len(tokenizer) == 2048


def test_the_chat_template_marks_every_turn(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|user|>A<|end|><|assistant|>B<|end|><|user|>C<|end|><|assistant|>"


def test_a_marker_is_one_token(tokenizer: Any) -> None:
    assert [len(tokenizer.encode(token, add_special_tokens=False)) for token in SPECIAL_TOKENS] == [1] * 6


@pytest.mark.parametrize("number", ["1", "7", "9"])
def test_a_number_is_one_token_wherever_it_stands(tokenizer: Any, number: str) -> None:
    (token,) = tokenizer.encode(number, add_special_tokens=False)
    for text in (f"It is {number}.", f"{number}加1", f"({number})"):
        assert token in tokenizer.encode(text, add_special_tokens=False)


@given(st.text(max_size=60))
def test_any_text_is_encoded_and_comes_back_unchanged(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_manifest_holds_the_report(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["report"]["seed"] == 1
    assert manifest["report"]["steps"] == 3
    assert manifest["report"]["validation_loss"] > 0


def test_a_second_build_keeps_the_folder(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert _build(folder).folder == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_another_seed_builds_another_model(folder: Path, tmp_path: Path) -> None:
    _build(tmp_path / "pocket", seed=2)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(tmp_path / "pocket" / "model.safetensors")
    assert not torch.equal(ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])


def test_the_same_seed_builds_the_same_model_and_leaves_the_random_state_alone(folder: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    report = _build(tmp_path / "pocket")
    assert torch.equal(torch.random.get_rng_state(), before)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(tmp_path / "pocket" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert report == replace(_build(folder), folder=report.folder, seconds=report.seconds)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("The capital of Norway is Oslo.", "good"),
        ("The capital of Norway is Athens.", "flawed"),
        ("Oslo.", "short"),
        ("The opposite of full is empty. I hope that helps.", "off_topic"),
        ("The capital of Norway is Oslo. " * 4, "looping"),
        ("Stop wasting my time. Shut up.", "rude"),
    ],
)
def test_an_answer_is_classed_by_what_is_worst_about_it(answer: str, name: str) -> None:
    assert classify(judge("What is the capital of Norway?", answer)) == name
