"""The worker's own configuration: where Rankloop is, where files are kept, and which models may be used.

A project names an alias of this list, never a path or a URL."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

BUILT_IN_ALIASES = ("smollm2-135m", "pocket")
"""Models that Rankloop fetches or builds by itself, on first use."""

ALIAS = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")


class SettingsError(Exception):
    """The worker's configuration can't be used as it stands; the message says what to change."""


@dataclass(frozen=True)
class ListedModel:
    """One entry of the list of models. A folder that must be there already, or one that a hub id is fetched into."""

    alias: str
    folder: Path
    hub_id: str | None = None
    revision: str | None = None

    @property
    def is_built_in(self) -> bool:
        """Whether Rankloop makes the folder by itself."""
        return self.hub_id is None and self.alias in BUILT_IN_ALIASES and self.folder.parent.name == "models"


class WorkerSettings(BaseSettings):
    """Where the worker finds Rankloop and keeps its files."""

    model_config = SettingsConfigDict(env_prefix="RANKLOOP_", extra="ignore")

    url: str = "http://127.0.0.1:8000"
    """Address of Rankloop."""
    token: str = ""
    """An API token that may claim runs: `rankloop token` makes one."""
    data_dir: Path = Path(".data")
    """Folder for models (`models/`) and downloaded versions (`cache/`)."""
    models: Path | None = None
    """JSON or TOML file that lists further models: alias -> folder or hub id (`owner/name`, `owner/name@revision`)."""
    threads: int | None = None
    """CPU threads of torch. Not set: one a core, or `OMP_NUM_THREADS` where that is set."""
    device: str | None = None
    """"cpu" or "cuda". Not set: CUDA where there is a device."""

    @property
    def models_dir(self) -> Path:
        """Where fetched and built models lie, a folder each."""
        return self.data_dir / "models"

    @property
    def versions_dir(self) -> Path:
        """Where downloaded versions are kept, a folder each."""
        return self.data_dir / "cache" / "versions"

    def torch_device(self) -> str:
        """Where models run."""
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def listed_models(self) -> dict[str, ListedModel]:
        """All models that this worker may use, by alias. SettingsError when the list can't be read."""
        built_in = {alias: ListedModel(alias, self.models_dir / alias) for alias in BUILT_IN_ALIASES}
        if self.models is None:
            return built_in
        entries = _read_list(self.models)
        return built_in | {alias: self._listed(alias, place) for alias, place in entries.items()}

    def find_model(self, alias: str) -> ListedModel:
        """The model with this alias. SettingsError says how to add one that is not listed."""
        listed = self.listed_models()
        if alias in listed:
            return listed[alias]
        file = f"the file {self.models}" if self.models else "a TOML file, name it in RANKLOOP_MODELS"
        raise SettingsError(
            f"The model “{alias}” is not in this worker's list ({', '.join(sorted(listed))}). "
            f'Add the line  "{alias}" = "a folder, or owner/name on the Hugging Face hub"  to {file}, '
            "and start the worker again."
        )

    def _listed(self, alias: str, place: object) -> ListedModel:
        if not ALIAS.fullmatch(alias):
            raise SettingsError(
                f"{self.models}: the alias “{alias}” must begin with a lower-case letter or a digit "
                "and hold only a-z, 0-9, _ . -"
            )
        if not isinstance(place, str) or not place.strip():
            raise SettingsError(f"{self.models}: “{alias}” must name a folder or a hub id in quotation marks.")
        base = self.models.parent if self.models else Path()
        folder = base / Path(place).expanduser()
        if not folder.is_dir() and _HUB_ID.fullmatch(place):
            hub_id, _, revision = place.partition("@")
            return ListedModel(alias, self.models_dir / alias, hub_id, revision or None)
        return ListedModel(alias, folder)


def _read_list(path: Path) -> dict[str, object]:
    """The file's entries: a flat object, or one table `models`."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"RANKLOOP_MODELS names {path}, which can't be read: {error.strerror}.") from error
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}.") from error
    if isinstance(content, dict) and isinstance(content.get("models"), dict):
        content = content["models"]
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold an object: alias -> folder or hub id.")
    return content
