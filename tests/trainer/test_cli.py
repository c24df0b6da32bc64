"""The trainer's commands: what they say, write and return."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rankloop.cli import build
from tests.trainer.tiny import make_model, make_tokenizer
from trainer.folders import sha256_file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rankings(tmp_path: Path) -> Path:
    """Twelve rankings in the interchange shape; the longer answer is better."""
    rows = [
        {
            "id": f"row-{number}",
            "messages": [{"role": "user", "content": " ".join("abcd"[(number >> bit) % 4] for bit in range(3))}],
            "responses": [{"id": "x", "text": "a b c d"}, {"id": "y", "text": "a"}],
            "aggregate": {"ranking": [["x"], ["y"]]},
        }
        for number in range(12)
    ]
    path = tmp_path / "rankings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a b"}\n\n{"id": "two", "messages": [{"role": "user", "content": "c d"}]}\n')
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def test_help_is_there_without_torch() -> None:
    code = (
        "import sys; from rankloop.cli import build; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(build(), ['--help']).exit_code == 0; "
        "assert not {'torch', 'transformers', 'trainer.models'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "command",
    [
        ["worker"],
        ["sample"],
        ["best-of-n"],
        ["serve-reward"],
        ["train", "reward"],
        ["train", "ppo"],
        ["train", "sft"],
        ["train", "dpo"],
        ["train", "best-of-n"],
        ["train", "star"],
        ["model", "fetch"],
    ],
)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_a_missing_argument_is_a_usage_error() -> None:
    assert run("train", "reward").exit_code == 2


def test_sample_writes_completions_that_import_takes(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = run("sample", prompts, "--model", tiny, "--k", 3, "--max-new-tokens", 4, "--out", out)
    assert result.exit_code == 0, result.output
    rows = {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert set(rows) == {"1", "two"}
    assert rows["1"]["messages"] == [{"role": "user", "content": "a b"}]
    first = rows["1"]["completions"][0]
    assert set(first) == {"text", "seed", "finish_reason", "num_tokens", "sampling", "model"}
    assert len(rows["two"]["completions"]) == 3


def test_a_line_that_is_no_prompt_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    result = run("sample", tmp_path / "bad.jsonl", "--model", tiny, "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert "bad.jsonl, line 2: needs `messages` or `prompt`" in result.stderr


def test_an_unknown_model_is_refused_in_one_line(prompts: Path, tmp_path: Path) -> None:
    result = run("sample", prompts, "--model", "nowhere", "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert "“nowhere” is not in this worker's list" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_reward_model_is_measured_and_trained(tiny: Path, rankings: Path, tmp_path: Path) -> None:
    out, figures = tmp_path / "reward", tmp_path / "figures.json"
    named = ["--data", rankings, "--model", tiny]
    result = run("train", "reward", *named, "--out", out, "--folds", 3, "--json", figures)
    assert result.exit_code == 0, result.output
    measured = json.loads(figures.read_text())
    assert measured["num_rankings"] == 12
    assert measured["held_out_accuracy"]["num_prompts"] == 12
    assert 0 <= measured["held_out_accuracy"]["low"] <= measured["held_out_accuracy"]["value"]
    assert {"reward.json", "reward_head.safetensors", "manifest.json"} <= {path.name for path in out.iterdir()}
    result = run("train", "reward", *named, "--start", out, "--out", tmp_path / "next")
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "next" / "manifest.json").read_text())
    assert facts["start"] == sha256_file(out / "reward_head.safetensors")
    result = run("train", "reward", *named, "--start", out, "--folds", 3)
    assert (result.exit_code, "fresh models only" in result.output) == (1, True)


def test_json_on_the_terminal_is_all_that_stands_there(tiny: Path, rankings: Path) -> None:
    result = run("train", "reward", rankings, "--model", tiny, "--folds", 2, "--json", "-")
    assert json.loads(result.stdout)["num_rankings"] == 12


def test_a_setting_that_does_not_exist_is_named(tiny: Path, rankings: Path, tmp_path: Path) -> None:
    result = run("train", "reward", rankings, "--model", tiny, "--out", tmp_path / "r", "--set", "epoch=2")
    assert result.exit_code == 1
    assert "unknown key epoch" in result.stderr


def test_training_needs_something_to_do(tiny: Path, rankings: Path) -> None:
    result = run("train", "reward", rankings, "--model", tiny)
    assert result.exit_code == 1
    assert "--out FOLDER" in result.stderr


@pytest.mark.parametrize("kind", ["reward", "ppo", "sft", "dpo", "best-of-n", "star"])
def test_what_is_learned_from_is_named_once(kind: str, tiny: Path, rankings: Path, tmp_path: Path) -> None:
    rest = ["--model", tiny, "--out", tmp_path / "out"]
    if kind in ("ppo", "best-of-n"):
        (tmp_path / "reward_head.safetensors").touch()  # nobody reads it
        rest += ["--reward", tmp_path]
    for files in ([], [rankings, "--data", rankings]):
        result = run("train", kind, *files, *rest)
        assert result.exit_code == 1
        assert result.stderr == "Name the file to learn from: once, first or by --data FILE.\n"


def test_a_policy_is_trained_on_files_and_exported(tiny: Path, rankings: Path, prompts: Path, tmp_path: Path) -> None:
    reward, policy, exported = tmp_path / "reward", tmp_path / "policy", tmp_path / "exported"
    assert run("train", "reward", rankings, "--model", tiny, "--out", reward).exit_code == 0
    sizes = ["--set", "num_episodes=4", "--set", "episodes_per_batch=4", "--set", "minibatch_size=4"]
    length = ["--set", "max_new_tokens=4"]
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a b c"}\n')
    models = ["--model", tiny, "--reward", reward, "--ptx", texts, "--liked", rankings]
    result = run("train", "ppo", "--data", prompts, *models, "--out", policy, *sizes, *length)
    assert result.exit_code == 0, result.output
    manifest = json.loads((policy / "manifest.json").read_text())
    assert manifest["config"]["ptx_coefficient"] == 27.8
    assert manifest["liked_sha256"]
    result = run("model", "export", policy, exported, "--model", tiny)
    assert result.exit_code == 0, result.output
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in exported.iterdir()}


def test_a_run_on_files_goes_on_from_its_last_checkpoint(tiny: Path, rankings: Path, tmp_path: Path) -> None:
    every = ["--set", "checkpoint_every=1", "--set", "epochs=2", "--set", "rankings_per_batch=4", "--json", "-"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run("train", "reward", rankings, "--model", tiny, "--out", whole, *every).exit_code == 0
    # What a run leaves that was killed before its last step. Without a checkpoint, --resume begins.
    shutil.copytree(whole.with_name("whole.checkpoint"), again.with_name("again.checkpoint"))
    for out in (again, tmp_path / "fresh"):
        result = run("train", "reward", rankings, "--model", tiny, "--out", out, "--resume", *every)
        assert result.exit_code == 0, result.output
        assert sha256_file(out / "model.safetensors") == sha256_file(whole / "model.safetensors")
    # The checkpoint was read: one of other settings is refused.
    other = run("train", "reward", rankings, "--model", tiny, "--out", again, "--resume", *every, "--set", "seed=3")
    assert other.exit_code == 1
    assert "another run's: config differ" in other.stderr


def test_sft_learns_from_a_file_and_dpo_goes_on_from_it(tiny: Path, rankings: Path, tmp_path: Path) -> None:
    data, sft, dpo = tmp_path / "data.jsonl", tmp_path / "sft", tmp_path / "dpo"
    rows = [{"prompt": f"a {word}", "completion": f"{word} b"} for word in "abcd"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("train", "sft", data, "--model", tiny, "--out", sft, "--json", "-", "--set", "validation_ratio=0")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_conversations"] == 4
    result = run("train", "dpo", rankings, "--model", tiny, "--sft", sft, "--out", dpo, "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_rankings"] == 12
    assert json.loads((dpo / "manifest.json").read_text())["parents"] == {"sft": "sft", "policy": "sft"}


def test_a_policy_learns_its_best_and_its_right_answers(
    tiny: Path, rankings: Path, prompts: Path, tmp_path: Path
) -> None:
    reward, best, checked = tmp_path / "reward", tmp_path / "best.jsonl", tmp_path / "checked.jsonl"
    assert run("train", "reward", rankings, "--model", tiny, "--out", reward).exit_code == 0
    options = ["--model", tiny, "--json", "-"]
    result = run("best-of-n", prompts, *options, "--reward", reward, "--out", best, "-n", 4, "--max-new-tokens", 8)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["best"] > json.loads(result.stdout)["mean"]
    rows = [json.loads(line) for line in best.read_text().splitlines()]
    assert [len(row["scores"]) for row in rows] == [4, 4]
    assert [len(row["completions"]) for row in rows] == [1, 1]
    settings = ["--set", "max_new_tokens=30", "--set", "n=8", "--set", 'sft={"validation_ratio": 0}']
    result = run("train", "best-of-n", prompts, *options, "--reward", reward, "--out", tmp_path / "raft", *settings)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_answers"] == 16
    checked.write_text('{"prompt": "a", "check": {"kind": "regex", "value": "."}}\n')
    result = run("train", "star", checked, *options, "--out", tmp_path / "star", *settings)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_kept"] == 1
    result = run("train", "star", prompts, *options, "--out", tmp_path / "none")
    assert result.exit_code == 1
    assert "Prompt 1: meta.check: must be an object" in result.stderr


def test_a_reward_server_needs_a_base_and_a_reward_model(tiny: Path, tmp_path: Path) -> None:
    result = run("serve-reward", tmp_path)
    assert result.exit_code == 1
    assert "Name the base model of the folder with --model" in result.stderr
    result = run("serve-reward", tiny, "--model", tiny)
    assert result.exit_code == 1
    assert "is no reward model" in result.stderr


def test_export_never_writes_over_a_folder(tiny: Path, tmp_path: Path) -> None:
    result = run("model", "export", tiny, tmp_path, "--model", tiny)
    assert result.exit_code == 1
    assert "exists already" in result.stderr


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    result = run("model", "export", str(uuid.uuid4()), tmp_path / "out", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "does not answer at http://127.0.0.1:9" in result.stderr
