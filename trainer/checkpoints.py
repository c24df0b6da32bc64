"""Checkpoints of a running training: everything that a killed run needs in order to go on as if nothing had happened.

A checkpoint is a folder of safetensors and JSON that appears whole or not at all; its `manifest.json` names each file
with its SHA-256. Where it is kept is the caller's business.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.distributed import gather, spread_like, write_once
from trainer.folders import MANIFEST, new_folder, read_manifest, sha256_file, write_manifest

FORMAT = 1
WEIGHTS, OPTIMIZERS, RANDOM, STATE = "weights.safetensors", "optimizers.safetensors", "random.safetensors", "state.json"


class CheckpointError(ValueError):
    """The checkpoint can't be used: it is damaged, or it is another run's. The message says which."""


def code_version() -> str:
    """The version of Rankloop that runs here."""
    return importlib.metadata.version("rankloop")


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file of safetensors. OSError where the disk does not take it, as all else that writes says it."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if not found:
            raise
        number = int(found.group(1))
        raise OSError(number, os.strerror(number), str(path)) from error


def save_checkpoint(
    folder: Path,
    *,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    progress: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> None:
    """Replace `folder` by a checkpoint of now. Where several processes train, all call it, and the first one writes.

    Args:
        folder: appears in one rename; what stood there goes only then.
        models: their parameters that learn are kept.
        optimizers: their whole state.
        progress: JSON: the data cursor and the numbers of the loop.
        identity: JSON: what must be equal for the run to go on (config, dataset's hash, seeds).
    """
    optimizer_tensors, optimizer_groups = _pack_optimizers(optimizers)
    random_tensors, random_state = _pack_random()
    state = {
        "progress": dict(progress),
        "optimizers": optimizer_groups,
        "random": random_state,
    }
    weights = gather(_learning(models))

    def write() -> None:
        with new_folder(folder) as building:
            save_tensors(weights, building / WEIGHTS)
            save_tensors(optimizer_tensors, building / OPTIMIZERS)
            save_tensors(random_tensors, building / RANDOM)
            (building / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
            files = {path.name: sha256_file(path) for path in sorted(building.iterdir())}
            about = {"format": FORMAT, "code_version": code_version(), "identity": dict(identity)}
            write_manifest(building, {**about, "files": files})

    write_once(write)


def load_checkpoint(
    folder: Path,
    *,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """Put models, optimizers and the random number generators where the checkpoint was, and return its progress.

    Nothing is touched unless every file is whole and `identity` is the same. Raises CheckpointError.
    """
    manifest = _verify(folder)
    _compare(manifest.get("identity"), identity)
    weights, state = load_file(folder / WEIGHTS), json.loads((folder / STATE).read_text(encoding="utf-8"))
    current = _learning(models)
    if {name: tensor.shape for name, tensor in weights.items()} != {name: t.shape for name, t in current.items()}:
        raise CheckpointError("The checkpoint's weights do not fit this model: it belongs to another one.")
    with torch.no_grad():
        for name, tensor in current.items():
            tensor.copy_(spread_like(weights[name], tensor))
    _unpack_optimizers(optimizers, load_file(folder / OPTIMIZERS), state["optimizers"])
    _unpack_random(load_file(folder / RANDOM), state["random"])
    return cast(dict[str, Any], state["progress"])


def _verify(folder: Path) -> dict[str, Any]:
    manifest = cast(dict[str, Any] | None, read_manifest(folder))
    if manifest is None or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"The checkpoint has no readable {MANIFEST}: it was not written to its end.")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"The checkpoint has format {manifest.get('format')}; this version reads {FORMAT}.")
    missing = {WEIGHTS, OPTIMIZERS, RANDOM, STATE} - set(manifest["files"])
    if missing:
        raise CheckpointError(f"The checkpoint's {MANIFEST} does not name {', '.join(sorted(missing))}.")
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != expected:
            raise CheckpointError(f"The checkpoint is damaged: {name} is missing or has another SHA-256.")
    return manifest


def _compare(found: Any, wanted: Mapping[str, Any]) -> None:
    """Both as JSON sees them; a tuple is a list."""
    plain = json.loads(json.dumps(dict(wanted)))
    names = sorted(name for name in {*found, *plain} if found.get(name) != plain.get(name))
    if names:
        raise CheckpointError(f"The checkpoint is another run's: {', '.join(names)} differ.")


def _learning(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": parameter.detach()
        for key, model in models.items()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _pack_optimizers(optimizers: Mapping[str, torch.optim.Optimizer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by "optimizer/parameter/name", and all other numbers as JSON."""
    tensors: dict[str, Tensor] = {}
    groups: dict[str, Any] = {}
    for key, optimizer in optimizers.items():
        state = optimizer.state_dict()
        groups[key] = state["param_groups"]
        for parameter, values in state["state"].items():
            tensors |= {f"{key}/{parameter}/{name}": value for name, value in values.items()}
    return {path: value.contiguous() for path, value in gather(tensors).items()}, groups


def _unpack_optimizers(
    optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor], groups: Mapping[str, Any]
) -> None:
    states: dict[str, dict[int, dict[str, Tensor]]] = {key: {} for key in optimizers}
    parameters = {
        key: [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for key, optimizer in optimizers.items()
    }
    for path, tensor in tensors.items():
        key, number, name = path.split("/")
        # Adam's count of steps is one number; all else is as large as the parameter, and spread as it is.
        own = tensor if tensor.dim() == 0 else spread_like(tensor, parameters[key][int(number)])
        states[key].setdefault(int(number), {})[name] = own
    for key, optimizer in optimizers.items():
        optimizer.load_state_dict({"state": states[key], "param_groups": groups[key]})


def _pack_random() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of the generators of python, numpy and torch (every CUDA device among them)."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 (the global generator is meant)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))}
    tensors |= {f"cuda.{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    rest = {"pos": numpy_state["state"]["pos"], "has_gauss": numpy_state["has_gauss"], "gauss": numpy_state["gauss"]}
    return tensors, {"python": random.getstate(), "numpy": rest}


def _unpack_random(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    rest, key = state["numpy"], tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, rest["pos"], rest["has_gauss"], rest["gauss"]))  # noqa: NPY002 (as above)
    torch.set_rng_state(tensors["torch"])
    for number in range(torch.cuda.device_count()):
        if f"cuda.{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{number}"], number)
