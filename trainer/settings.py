"""The worker's own configuration: where Rankloop is, where files are kept, and which models may be used.

A project names an alias of this list, never a path or a URL."""

from __future__ import annotations

import json
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

BUILT_IN_ALIASES = ("smollm2-135m", "pocket")
"""Models that Rankloop fetches or builds by itself, on first use."""

ALIAS = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")

METADATA = frozenset({"metadata.google.internal", "metadata", "100.100.100.200", "fd00:ec2::254"})
"""Where clouds tell a machine's secrets, beside 169.254.169.254: Google's names, Alibaba, Amazon by IPv6."""


class SettingsError(Exception):
    """The worker's configuration can't be used as it stands; the message says what to change."""


def is_of_the_cloud(host: str) -> bool:
    """Whether a host is link-local, as the addresses are at which clouds tell secrets, or another of those; in whatever
    way the address is written. What a name stands for is looked up when it is connected to (`trainer/guarded.py`)."""
    name = host.lower().rstrip(".").partition("%")[0]
    try:
        address: IPv4Address | IPv6Address = ip_address(name)
    except ValueError:
        try:
            # 2852039166 and 0xa9.0xfe.43518 are addresses, too, for whatever connects.
            address = IPv4Address(socket.inet_aton(name))
        except OSError:
            return name in METADATA
    inner = getattr(address, "ipv4_mapped", None) or address
    return inner.is_link_local or str(inner) in METADATA


@dataclass(frozen=True)
class Endpoint:
    """A server with OpenAI's chat completions that samples for us, and what it calls the model."""

    url: str
    """Up to and with /v1, where it has that."""
    model: str
    key_env: str | None = None
    """The environment variable that holds its key; the list itself holds none."""
    concurrent: int = 8
    """Requests at a time."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request, for what only this server knows."""

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Endpoint:
        """An entry of the list. ValueError names the field and the rule."""
        unknown = sorted(set(entry) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"{unknown[0]} is not known; known are {', '.join(cls.__dataclass_fields__)}.")
        url, model, key_env = entry.get("url"), entry.get("model"), entry.get("key_env")
        if not isinstance(url, str) or not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
            raise ValueError("url must be an address such as http://host:8000/v1, without a user or a key in it.")
        if is_of_the_cloud(urlsplit(url).hostname or ""):
            raise ValueError("url must not lead to link-local addresses: there clouds tell a machine's own secrets.")
        if not isinstance(model, str) or not model:
            raise ValueError("model must be the name by which the server knows it.")
        if key_env is not None and not isinstance(key_env, str):
            raise ValueError("key_env must be the name of an environment variable.")
        concurrent, extra = entry.get("concurrent", 8), entry.get("extra", {})
        if type(concurrent) is not int or not 1 <= concurrent <= 1024:
            raise ValueError("concurrent must be a whole number from 1 to 1024.")
        if not isinstance(extra, Mapping):
            raise ValueError("extra must be an object: further fields of every request.")  # noqa: TRY004 (the user's mistake)
        return cls(url.rstrip("/"), model, key_env, concurrent, extra)

    def key(self) -> str | None:
        """The key, from the environment. SettingsError when it is named and not there."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise SettingsError(
                f"The environment variable {self.key_env}, which should hold a server's key, is not set."
            )
        return key


@dataclass(frozen=True)
class ListedModel:
    """One entry of the list of models. A folder that must be there already, or one that a hub id is fetched into; or a
    server that samples, which no training can start from."""

    alias: str
    folder: Path
    hub_id: str | None = None
    revision: str | None = None
    endpoint: Endpoint | None = None

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
    """JSON or TOML file that lists further models: alias -> folder or hub id (`owner/name`, `owner/name@revision`), or
    `{url, model}` of a server that samples."""
    threads: int | None = None
    """CPU threads of torch. Not set: one a core, or `OMP_NUM_THREADS` where that is set."""
    device: str | None = None
    """"cpu" or "cuda". Not set: CUDA where there is a device."""
    processes: int | None = Field(default=None, ge=1, le=64)
    """Processes that do a training together. Not set: one a GPU, and one on a CPU."""
    log_format: Literal["text", "json"] = "text"
    """`json`: each line of the worker's log is an object, for programs that gather logs."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """`info`: each run's ends. `debug`: also words of exceptions and libraries, which may hold what people wrote."""

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

    def num_processes(self) -> int:
        """How many processes do a training together."""
        if self.processes is not None:
            return self.processes
        if self.torch_device() != "cuda":
            return 1
        import torch

        return max(1, torch.cuda.device_count())

    def as_environment(self) -> dict[str, str]:
        """The variables that give another process these settings."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return {f"RANKLOOP_{name.upper()}": str(value) for name, value in given.items()}

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
        if isinstance(place, Mapping):
            try:
                return ListedModel(alias, self.models_dir / alias, endpoint=Endpoint.from_entry(place))
            except ValueError as error:
                raise SettingsError(f"{self.models}: “{alias}”: {error}") from error
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
