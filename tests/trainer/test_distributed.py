"""Two processes (gloo) give the weights and the figures of one, whatever doesn't divide evenly."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer import two_processes
from tests.trainer.tiny import save_tiny
from trainer.distributed import World, add_up, joined, part_of, put_together, world

ROOT = Path(__file__).resolve().parents[2]
GATE = 1e-6


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launch, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170, check=False
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", spread=0.1)


@pytest.fixture(scope="module")
def outs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of all trainings, by one process and by two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    names = list(two_processes.TRAININGS)
    two_processes.run(names, base, one)
    done = torchrun(str(ROOT / "tests/trainer/two_processes.py"), str(base), str(two), *names)
    assert done.returncode == 0, done.stderr
    return one, two


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{p.name}/{name}": t for p in sorted(folder.glob("*.safetensors")) for name, t in load_file(p).items()}


def numbers(value: Any) -> list[float]:
    """All numbers of a JSON value, in order."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize("name", list(two_processes.TRAININGS))
def test_two_processes_learn_what_one_learns(name: str, outs: tuple[Path, Path], base: Path) -> None:
    one, two = (weights(out / name) for out in outs)
    start = weights(base)
    assert one.keys() == two.keys()
    assert one
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=0, atol=GATE)
    moved = [key for key in one if key in start and not torch.equal(one[key], start[key])]
    assert moved or not set(one) & set(start)


@pytest.mark.parametrize("name", list(two_processes.TRAININGS))
def test_two_processes_report_what_one_reports(name: str, outs: tuple[Path, Path]) -> None:
    one, two = (json.loads((out / f"{name}.json").read_text()) for out in outs)
    # Figures of the whole batch, once each: not those of a process, and not twice.
    assert [point[0] for point in two["points"]] == [point[0] for point in one["points"]]
    assert numbers(two) == pytest.approx(numbers(one), rel=1e-4, abs=1e-5)


def test_the_checkpoints_are_the_same(outs: tuple[Path, Path]) -> None:
    one, two = (weights(out / "reward.checkpoint") for out in outs)
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        if not key.startswith("random"):
            torch.testing.assert_close(two[key], tensor, rtol=0, atol=GATE)


# --- Parts and sums ---


@pytest.mark.parametrize(("num", "size"), [(7, 2), (1, 2), (0, 3), (9, 4)])
def test_the_parts_are_the_whole(num: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for rank in range(size):
        monkeypatch.setattr("trainer.distributed.world", lambda rank=rank: World(rank, size))
        parts.append(part_of(range(num)))
    assert sorted(item for part in parts for item in part) == list(range(num))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_is_left_as_it_is() -> None:
    with joined() as here:
        assert here == world() == World(0, 1)
    rows = torch.randn(3, 2)
    assert put_together(rows, [2, 1]) is rows
    assert add_up(0.1, 2) == [0.1, 2]


# --- The command ---


@pytest.mark.slow
def test_torchrun_trains_a_reward_model_on_a_file(base: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": f"r{number}",
            "prompt": "a b c",
            "responses": [{"id": "x", "text": "a a"}, {"id": "y", "text": "b"}],
            "annotations": [{"pairs": [{"a": "x", "b": "y", "pref": "x"}]}],
        }
        for number in range(5)
    ]
    (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["-m", "rankloop", "train", "reward", str(tmp_path / "rankings.jsonl"), "--model", str(base)]
    done = torchrun(*command, "--out", str(tmp_path / "reward"), "--set", "epochs=1", "--json", "-")
    assert done.returncode == 0, done.stderr
    # One report, and one version.
    assert [json.loads(line)["num_rankings"] for line in done.stdout.splitlines() if line.startswith("{")] == [5]
    assert (tmp_path / "reward/manifest.json").is_file()
    assert (tmp_path / "reward/reward_head.safetensors").is_file()


@pytest.mark.slow
def test_what_a_user_can_set_right_ends_all_processes(base: Path, tmp_path: Path) -> None:
    (tmp_path / "rankings.jsonl").write_text("")
    command = ["-m", "rankloop", "train", "reward", str(tmp_path / "rankings.jsonl"), "--model", str(base)]
    done = torchrun(*command, "--out", str(tmp_path / "reward"))
    assert done.returncode != 0
    assert "There is no ranking to learn from" in done.stderr
    assert not (tmp_path / "reward").exists()
