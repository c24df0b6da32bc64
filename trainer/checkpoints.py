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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.distributed import gather, spread_like, wait_for_all, world
from trainer.folders import MANIFEST, new_folder, read_manifest, sha256_file, write_manifest

FORMAT = 1
FILE_BYTES = 4 * 2**30
"""Of tensors in one file: what the first process puts together at a time."""
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
    with new_folder(folder) if world().is_first else nullcontext() as building:
        _write_in_files(_learning(models), building, WEIGHTS)
        _write_in_files(optimizer_tensors, building, OPTIMIZERS)
        if building is not None:
            save_tensors(random_tensors, building / RANDOM)
            (building / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
            files = {path.name: sha256_file(path) for path in sorted(building.iterdir())}
            about = {"format": FORMAT, "code_version": code_version(), "identity": dict(identity)}
            write_manifest(building, {**about, "files": files})
    wait_for_all()


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
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    current = _learning(models)
    if _shapes(folder, WEIGHTS) != {name: list(tensor.shape) for name, tensor in current.items()}:
        raise CheckpointError("The checkpoint's weights do not fit this model: it belongs to another one.")
    with torch.no_grad():
        for name, whole in _read_files(folder, WEIGHTS):
            current[name].copy_(spread_like(whole, current[name]))
    _unpack_optimizers(optimizers, _read_files(folder, OPTIMIZERS), state["optimizers"])
    _unpack_random(load_file(folder / RANDOM), state["random"])
    return cast(dict[str, Any], state["progress"])


# --- Tensors, in files of a size that one process can hold -----------------------------------------------------------


def _write_in_files(tensors: Mapping[str, Tensor], building: Path | None, name: str) -> None:
    """Put the tensors together, and write them, a file's worth at a time: the first process holds no more of them.

    All processes take part; `building` is the first one's. Where one file is enough, it has the plain `name`.
    """
    for number, part in enumerate(_parts(tensors)):
        whole = gather(part)
        if building is not None:
            contiguous = {key: value.contiguous() for key, value in whole.items()}
            save_tensors(contiguous, building / (f"{number + 1}.{name}" if number else name))


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in their order, as many together as go into a file; at least one, even if there is none."""
    part: dict[str, Tensor] = {}
    size = 0
    for key, tensor in tensors.items():
        if part and size + tensor.numel() * tensor.element_size() > FILE_BYTES:
            yield part
            part, size = {}, 0
        part[key] = tensor
        size += tensor.numel() * tensor.element_size()
    yield part


def _files_of(folder: Path, name: str) -> list[Path]:
    return [folder / name, *sorted(folder.glob(f"*.{name}"))]


def _shapes(folder: Path, name: str) -> dict[str, list[int]]:
    """Of all tensors, of which none is read."""
    found: dict[str, list[int]] = {}
    for path in _files_of(folder, name):
        with safe_open(path, framework="pt") as file:
            found |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    return found


def _read_files(folder: Path, name: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors, one in memory at a time."""
    for path in _files_of(folder, name):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                yield key, file.get_tensor(key)


# --- Manifest and state ----------------------------------------------------------------------------------------------


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
    return tensors, groups


def _unpack_optimizers(
    optimizers: Mapping[str, torch.optim.Optimizer], tensors: Iterable[tuple[str, Tensor]], groups: Mapping[str, Any]
) -> None:
    states: dict[str, dict[int, dict[str, Tensor]]] = {key: {} for key in optimizers}
    parameters = {
        key: [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for key, optimizer in optimizers.items()
    }
    for path, tensor in tensors:
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
