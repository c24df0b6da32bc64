"""What the processes do that the soak kills."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.trainer import killable
from trainer.checkpoints import load_checkpoint, save_checkpoint
from trainer.console import last_checkpoint
from trainer.folders import recover

torch.set_num_threads(1)

IDENTITY: dict[str, Any] = {"dataset_sha256": "ab"}
CANNOT_TRY = 77
NOBODY = 65534


def nothing() -> None:
    """Be there."""


def train(name: str, base: Path, judge: Path, out: Path) -> None:
    """The training of this name, from its last checkpoint where there is one: what a worker does."""
    killable.train(name, base, judge, out, resume_from=last_checkpoint(out, is_resuming=True))


def make_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Large enough that writing it takes a while; a megabyte with its moments."""
    model = nn.Linear(256, 340)
    return model, torch.optim.Adam(model.parameters())


def write_checkpoint(folder: Path, step: int) -> None:
    """A checkpoint whose every weight is its step."""
    model, optimizer = make_model()
    model(torch.zeros(1, 256)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
    save_checkpoint(
        folder,
        models={"policy": model},
        optimizers={"policy": optimizer},
        progress={"step": step},
        identity=IDENTITY,
    )


def read_step(folder: Path) -> int:
    """The step of a checkpoint that is whole."""
    model, optimizer = make_model()
    found = load_checkpoint(folder, models={"policy": model}, optimizers={"policy": optimizer}, identity=IDENTITY)
    return int(found["step"])


def write_checkpoints(folder: Path) -> None:
    """One after another, without an end."""
    recover(folder)
    step = read_step(folder) if folder.exists() else 0
    while True:
        step += 1
        write_checkpoint(folder, step)


def fill_the_disk(path: str) -> None:
    """Write a checkpoint, and a second one that finds no room; say what happened."""
    folder = Path(path)
    write_checkpoint(folder, 1)
    try:
        write_checkpoint(folder, 2)
    except OSError as error:
        left = sorted(entry.name for entry in folder.parent.iterdir())
        sys.stdout.write(json.dumps({"errno": error.errno, "step": read_step(folder), "left": left}))


def write_where_nobody_may(folder: Path) -> None:
    """As a user without rights, where this one has all: try to write, and exit with what the system said."""
    try:
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        write_checkpoint(folder, 2)
    except PermissionError as error:
        if os.getuid() == 0:
            os._exit(CANNOT_TRY)
        os._exit(error.errno)
