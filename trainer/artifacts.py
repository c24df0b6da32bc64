"""Model folders and checkpoints: what a worker fetches before a run, keeps during it, and delivers after it.

It moves files and checks hashes; it loads no weights."""

from __future__ import annotations

import fcntl
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.client import ApiError, ArtifactInfo, ClaimedRun, Client, ClientError, DamagedDownload, ModelReference
from trainer.folders import MANIFEST, Progress, new_folder
from trainer.settings import ListedModel, SettingsError, WorkerSettings

if TYPE_CHECKING:
    from trainer.weights import ModelSource

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*)*")
CHECKPOINT = "checkpoint"
SLOTS = ("a", "b")
DELIVERY_SHARE = 0.1
"""Most of a run's time that may go into delivering checkpoints."""
# Weights as safetensors, and what a tokenizer and a config are made of; never a pickle, never code.
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "tokenizer.model", "LICENSE*", "README.md"]


class BadCheckpoint(Exception):
    """The delivered checkpoint can't be read; the message says why."""


def base_folder(alias: str, settings: WorkerSettings, progress: Progress) -> Path:
    """The folder of a listed model. A built-in one, or one from the hub, is fetched or built on first use.

    Raises SettingsError when it is not listed, or listed as a folder that is not there.
    """
    model = settings.find_model(alias)
    if model.endpoint is not None:
        raise SettingsError(
            f"The model “{alias}” is listed as a server ({model.endpoint.url}): it samples, and has no weights here. "
            "List a folder or a hub id to train, score or export it."
        )
    if _is_model(model.folder):
        return model.folder
    if not model.is_built_in and model.hub_id is None:
        raise SettingsError(
            f"The model “{alias}” is listed as the folder {model.folder}, which holds no model. Put one there "
            f"(`config.json`, `model.safetensors`, tokenizer), or list a hub id and run `rankloop model fetch {alias}`."
        )
    with _only_one(model.folder):
        return fetch_model(model, settings, progress)


def fetch_model(model: ListedModel, settings: WorkerSettings, progress: Progress) -> Path:
    """Make the folder of a model that is built in or on the hub; harmless when it is there already."""
    if model.hub_id is not None:
        return model.folder if _is_model(model.folder) else _fetch_from_hub(model, progress)
    if not model.is_built_in:
        return base_folder(model.alias, settings, progress)
    if model.alias == "pocket":
        from trainer.pocket.build import build_pocket

        build_pocket(model.folder, progress=progress)
        return model.folder
    from trainer.fetch import fetch_smollm2

    return fetch_smollm2(settings.data_dir, progress)


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _fetch_from_hub(model: ListedModel, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert model.hub_id is not None
    progress(f"Downloading {model.hub_id} from the Hugging Face hub", 0.0)
    try:
        with new_folder(model.folder) as building:
            snapshot_download(
                model.hub_id, revision=model.revision, local_dir=building, allow_patterns=HUB_FILES, etag_timeout=10
            )
            if not any(building.glob("*.safetensors")) or not _is_model(building):
                raise SettingsError(f"{model.hub_id} holds no safetensors; only those are loaded. List another model.")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise SettingsError(
            f"{model.hub_id} could not be fetched from the Hugging Face hub ({str(error).splitlines()[0]}). Check the "
            f"name and the network, and run `rankloop model fetch {model.alias}`."
        ) from error
    progress(f"{model.alias} is in {model.folder}", 1.0)
    return model.folder


def model_source(
    reference: ModelReference, client: Client, settings: WorkerSettings, progress: Progress
) -> ModelSource:
    """Base and version of a model reference as folders on this machine, fetched where they are not here yet."""
    from trainer.weights import ModelSource

    base = base_folder(reference["alias"], settings, progress)
    return ModelSource(base, version_folder(reference, client, settings), reference["alias"])


def version_folder(reference: ModelReference, client: Client, settings: WorkerSettings) -> Path | None:
    """The files of a version, downloaded once and verified. None: the version is its base model."""
    files = reference["files"]
    if not files:
        return None
    check_names(files)
    folder = settings.versions_dir / reference["version_id"]
    with _only_one(folder):
        if not _has_all(folder, files):
            with new_folder(folder) as building:
                for file in files:
                    client.download_version_file(reference["version_id"], file, building / file["name"])
    return folder


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """One process at a time makes a folder; workers of one machine share their data folder. A killed one lets go."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_names(files: Sequence[ArtifactInfo]) -> None:
    """Refuse a name that could lead out of a folder."""
    for file in files:
        if not NAME.fullmatch(file["name"]):
            raise ClientError(f"{file['name']!r} is no artifact's name.")


def _has_all(folder: Path, files: Sequence[ArtifactInfo]) -> bool:
    paths = [folder / file["name"] for file in files]
    return all(path.is_file() for path in paths) and [path.stat().st_size for path in paths] == [
        file["size"] for file in files
    ]


def deliver_folder(run: ClaimedRun, folder: Path) -> list[str]:
    """Upload a finished result, its manifest last. Returns the names of its files."""
    names = _names_in(folder)
    for name in names:
        run.upload(name, folder / name)
    return names


def _names_in(folder: Path) -> list[str]:
    """All files below the folder, the manifest last."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(names, key=lambda name: (name == MANIFEST, name))


class CheckpointStore:
    """A run's checkpoints among its artifacts.

    Two sets of files take turns, and the manifest comes last: a worker that dies while it delivers a checkpoint leaves
    the one before whole.
    """

    def __init__(self, run: ClaimedRun) -> None:
        self._run = run
        self._slot = SLOTS[-1]
        self._next_delivery = 0.0

    @property
    def is_due(self) -> bool:
        """False right after a delivery, so that at most a tenth of a run's time goes into them."""
        return time.monotonic() >= self._next_delivery

    def deliver(self, folder: Path) -> None:
        """Upload a complete checkpoint: its files, then `checkpoint/manifest.json`."""
        began = time.monotonic()
        self._slot = SLOTS[1 - SLOTS.index(self._slot)]
        for name in _names_in(folder):
            prefix = CHECKPOINT if name == MANIFEST else f"{CHECKPOINT}/{self._slot}"
            self._run.upload(f"{prefix}/{name}", folder / name)
        ended = time.monotonic()
        self._next_delivery = ended + (1 / DELIVERY_SHARE - 1) * (ended - began)

    def fetch(self, folder: Path) -> Path | None:
        """Download the last complete checkpoint into `folder`. None: there is none. Raises BadCheckpoint."""
        delivered = {file["name"]: file for file in self._run.artifacts()}
        manifest = delivered.get(f"{CHECKPOINT}/{MANIFEST}")
        if manifest is None:
            return None
        self._download(manifest, folder / MANIFEST)
        wanted = _files_of(folder / MANIFEST)
        for slot in SLOTS:
            files = {name: delivered.get(f"{CHECKPOINT}/{slot}/{name}") for name in wanted}
            found = {name: file for name, file in files.items() if file and file["sha256"] == wanted[name]}
            if len(found) == len(wanted):
                self._slot = slot
                for name, file in found.items():
                    self._download(file, folder / name)
                return folder
        raise BadCheckpoint("its manifest names files that were not delivered")

    def _download(self, file: ArtifactInfo, target: Path) -> None:
        try:
            self._run.download(file, target)
        except (ApiError, DamagedDownload) as error:
            raise BadCheckpoint(str(error)) from error


def _files_of(manifest: Path) -> dict[str, str]:
    """A manifest's files: name -> SHA-256. Names that could lead out of a folder are refused."""
    try:
        files = dict(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint("its manifest can't be read") from error
    check_names([{"name": name, "size": 0, "sha256": sha256} for name, sha256 in files.items()])
    return files
