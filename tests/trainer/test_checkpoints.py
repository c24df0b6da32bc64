"""Checkpoints: everything comes back bit for bit; a damaged one and another run's are refused untouched."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainer import checkpoints
from trainer.checkpoints import CheckpointError, load_checkpoint, save_checkpoint

IDENTITY: dict[str, Any] = {"config": {"seed": 17, "betas": (0.9, 0.999)}, "dataset_sha256": "ab"}


class Training:
    """A model, its optimizer and a step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.model[0].weight.requires_grad_(False)
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(learning, lr=0.1, eps=1e-5)

    def step(self) -> None:
        self.optimizer.zero_grad()
        shift = random.random() + float(np.random.random())  # noqa: NPY002 (the global generator is meant)
        noise = shift + torch.randn(5, 3)
        self.model(noise).square().mean().backward()
        self.optimizer.step()

    def save(self, folder: Path, progress: dict[str, Any] | None = None) -> Path:
        save_checkpoint(
            folder,
            models={"policy": self.model},
            optimizers={"policy": self.optimizer},
            progress=progress or {"step": 3},
            identity=IDENTITY,
        )
        return folder

    def load(self, folder: Path, **changes: Any) -> dict[str, Any]:
        return load_checkpoint(
            folder,
            models={"policy": self.model},
            optimizers={"policy": self.optimizer},
            identity=IDENTITY | changes,
        )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    training = Training()
    for _ in range(3):
        training.step()
    return training.save(tmp_path / "checkpoint", {"step": 3, "beta": 0.1 + 0.2})


def test_going_on_is_the_same_as_never_having_stopped(tmp_path: Path) -> None:
    training = Training()
    for _ in range(3):
        training.step()
    folder = training.save(tmp_path / "checkpoint")
    for _ in range(4):
        training.step()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 (as above)
    other = Training()
    other.load(folder)
    for _ in range(4):
        other.step()
    for one, again in zip(training.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, again)


def test_a_checkpoint_of_many_files_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FILE_BYTES", 20)
    training = Training()
    training.step()
    folder = training.save(tmp_path / "checkpoint")
    # Three parameters of 4, 4 and 1 numbers learn; Adam keeps a count and two moments of each.
    assert len(list(folder.glob("*weights.safetensors"))) == 2
    assert len(list(folder.glob("*optimizers.safetensors"))) > 4
    other = Training()
    other.load(folder)
    for one, again in zip(training.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, again)
    found, kept = other.optimizer.state_dict()["state"], training.optimizer.state_dict()["state"]
    assert all(torch.equal(found[number][name], kept[number][name]) for number in kept for name in kept[number])
    (folder / "2.weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"2\.weights\.safetensors is missing"):
        Training().load(folder)


def test_progress_comes_back_to_the_last_bit(checkpoint: Path) -> None:
    assert Training().load(checkpoint) == {"step": 3, "beta": 0.1 + 0.2}


def test_only_safetensors_and_json_are_written(checkpoint: Path) -> None:
    assert {path.suffix for path in checkpoint.iterdir()} == {".safetensors", ".json"}
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizers.safetensors", "random.safetensors", "state.json"])
def test_a_damaged_file_is_refused_by_name(checkpoint: Path, name: str) -> None:
    content = bytearray((checkpoint / name).read_bytes())
    content[-2] ^= 1
    (checkpoint / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"damaged: {name}"):
        Training().load(checkpoint)


def test_a_missing_file_is_refused_by_name(checkpoint: Path) -> None:
    (checkpoint / "random.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"damaged: random\.safetensors is missing"):
        Training().load(checkpoint)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}'])
def test_a_manifest_that_says_nothing_is_refused(checkpoint: Path, content: str) -> None:
    (checkpoint / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"no readable manifest\.json"):
        Training().load(checkpoint)


def test_a_manifest_that_leaves_a_file_out_is_refused(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["files"]["weights.safetensors"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"does not name weights\.safetensors"):
        Training().load(checkpoint)


def test_another_runs_checkpoint_is_refused_and_touches_nothing(checkpoint: Path) -> None:
    training = Training()
    before = [parameter.clone() for parameter in training.model.parameters()]
    with pytest.raises(CheckpointError, match=r"another run's: dataset_sha256 differ"):
        training.load(checkpoint, dataset_sha256="cd")
    assert all(torch.equal(*pair) for pair in zip(before, training.model.parameters(), strict=True))


def test_another_models_checkpoint_is_refused(checkpoint: Path) -> None:
    training = Training()
    training.model = nn.Sequential(nn.Linear(3, 5))
    with pytest.raises(CheckpointError, match="do not fit this model"):
        training.load(checkpoint)


def test_a_new_checkpoint_takes_the_place_of_the_old_one(checkpoint: Path) -> None:
    training = Training()
    training.load(checkpoint)
    training.step()
    training.save(checkpoint, {"step": 4})
    assert Training().load(checkpoint) == {"step": 4}
