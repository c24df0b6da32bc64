"""What the commands say of files and folders that they can't use: at once, by the option that names them, and without a
loss of what is there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rankloop.cli import build
from tests.trainer.tiny import save_tiny
from trainer.config import LoraConfig
from trainer.reward_model import RewardModel
from trainer.weights import ModelSource


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def reward(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    RewardModel.from_sft(ModelSource(tiny), LoraConfig(rank=2, num_last_blocks=1)).save(folder)
    return folder


@pytest.fixture
def run(tiny: Path, reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """A command line in a folder with good and bad files; MODEL and REWARD stand for folders of such."""
    monkeypatch.chdir(tmp_path)
    Path("good.jsonl").write_text('{"prompt": "a", "completion": "a b"}\n')
    Path("folder").mkdir()
    Path("folder/mine.txt").write_text("mine")
    Path("empty.jsonl").write_text("\n \n")
    Path("binary.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    Path("broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt"\n')
    Path("other.jsonl").write_text('{"question": "a"}\n')
    Path("list.jsonl").write_text("[1]\n")

    def invoke(line: str) -> Result:
        words = [{"MODEL": str(tiny), "REWARD": str(reward)}.get(word, word) for word in line.split()]
        return CliRunner().invoke(build(), words)

    return invoke


LEARNING = {
    "train reward": "--out out",
    "train sft": "--out out",
    "train dpo": "--out out",
    "train ppo": "--reward REWARD --out out",
    "train best-of-n": "--reward REWARD --out out",
    "train star": "--out out",
    "sample": "--out out.jsonl",
    "best-of-n": "--reward REWARD --out out.jsonl",
}


@pytest.mark.parametrize("command", LEARNING)
@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("none.jsonl", "file 'none.jsonl' does not exist"),
        ("folder", "file 'folder' is a directory"),
        ("empty.jsonl", "empty.jsonl is empty"),
        ("binary.jsonl", "binary.jsonl is no file of JSON lines: its byte 13 is no UTF-8"),
        ("broken.jsonl", "broken.jsonl, line 2: not valid JSON"),
        ("other.jsonl", "other.jsonl"),
        ("list.jsonl", "list.jsonl, line 1"),
    ],
)
def test_a_file_that_cannot_be_learned_from_is_named_before_anything_is_loaded(
    run: Callable[[str], Result], command: str, file: str, sentence: str
) -> None:
    # A model that is not there: who looks at it first says so, and the test is red.
    options = LEARNING[command]
    result = run(f"{command} {file} --model not-there {options}")
    assert result.exit_code > 0
    assert sentence in result.stderr
    assert "Traceback" not in result.output
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("line", "option", "sentence"),
    [
        ("train ppo good.jsonl --model MODEL --out out --reward none", "--reward", "'none' does not exist"),
        ("train ppo good.jsonl --model MODEL --out out --reward folder", "--reward", "folder is no reward model"),
        ("train best-of-n good.jsonl --model MODEL --out out --reward MODEL", "--reward", "is no reward model"),
        (
            "train ppo good.jsonl --model MODEL --out out --reward REWARD --guard folder",
            "--guard",
            "folder is no reward model",
        ),
        (
            "train ppo good.jsonl --model MODEL --out out --reward REWARD --ptx none.jsonl",
            "--ptx",
            "'none.jsonl' does not exist",
        ),
        (
            "train ppo good.jsonl --model MODEL --out out --reward REWARD --guard REWARD --guard-prompts none.jsonl",
            "--guard-prompts",
            "'none.jsonl' does not exist",
        ),
        ("train sft --data none.jsonl --model MODEL --out out", "--data", "'none.jsonl' does not exist"),
        ("train sft good.jsonl --model MODEL --policy folder --out out", "--policy", "folder is no version of a model"),
        ("train dpo good.jsonl --model MODEL --sft good.jsonl --out out", "--sft", "is a file"),
        ("train sft good.jsonl --model folder --out out", "--model", "folder is no folder of a model"),
        ("train sft good.jsonl --model ./none --out out", "--model", "./none is no folder of a model"),
        ("train sft good.jsonl --model MODEL --out out --json none/x.json", "--json", "there is no folder none"),
        ("train sft good.jsonl --model MODEL --out out --json folder", "--json", "'folder' is a directory"),
        ("train sft good.jsonl --model MODEL --out good.jsonl/out", "--out", "good.jsonl is no folder"),
        ("sample good.jsonl --model MODEL --out none/out.jsonl", "--out", "there is no folder none"),
        ("sample good.jsonl --model MODEL --out folder", "--out", "'folder' is a directory"),
        ("import prompts none.jsonl --project x", "'file'", "'none.jsonl' does not exist"),
        ("export none/x.jsonl --project x", "'out'", "there is no folder none"),
        ("simulate --json none/x.json", "--json", "there is no folder none"),
        ("serve-reward none", "none", "neither a folder that is here, nor the id of a version"),
        ("serve-reward folder --model MODEL", "folder", "is no folder of a version"),
        ("model export none new --model MODEL", "none", "is no folder of a version"),
    ],
)
def test_what_an_option_names_is_looked_at_first(
    run: Callable[[str], Result], line: str, option: str, sentence: str
) -> None:
    result = run(line)
    assert result.exit_code > 0
    assert option in result.stderr
    assert sentence in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize("out", ["folder", "good.jsonl", "."])
def test_what_is_no_version_never_gives_way_to_one(run: Callable[[str], Result], out: str) -> None:
    result = run(f"train sft good.jsonl --model MODEL --out {out}")
    assert result.exit_code == 2
    assert "Invalid value for '--out'" in result.stderr
    assert "it would be lost" in result.stderr
    assert Path("folder/mine.txt").read_text() == "mine"
    assert Path("good.jsonl").is_file()


def test_an_empty_folder_and_an_older_version_give_way(run: Callable[[str], Result]) -> None:
    Path("out").mkdir()
    for seed in (1, 2):
        result = run(f"train sft good.jsonl --model MODEL --out out --set epochs=1 --set seed={seed}")
        assert result.exit_code == 0, result.output
        assert json.loads(Path("out/manifest.json").read_text())["config"]["seed"] == seed


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_what_this_user_may_not_read_or_write_is_said(run: Callable[[str], Result]) -> None:
    Path("good.jsonl").chmod(0)
    assert "is not readable" in run("train sft good.jsonl --model MODEL --out out").stderr
    Path("folder").chmod(0o500)
    assert "this user may not write in" in run("train sft other.jsonl --model MODEL --out folder/out").stderr
