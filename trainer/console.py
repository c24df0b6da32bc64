"""What the trainer's commands share: models by name, files of prompts, bars, figures, errors in one line."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

import typer

from trainer.jsonl import read_lines
from trainer.options import POLICY_FILES
from trainer.reporting import Level, RunResult
from trainer.settings import SettingsError, WorkerSettings

if TYPE_CHECKING:
    from trainer.weights import ModelSource

PATIENCE_SECONDS = 5.0
"""How long a person waits for a Rankloop that does not answer."""


def named_file(first: Path | None, data: Path | None) -> Path:
    """The file to learn from, which a command names first or by --data."""
    if (first is None) == (data is None):
        refuse("Name the file to learn from: once, first or by --data FILE.")
    return cast(Path, first or data)


def last_checkpoint(out: Path, *, is_resuming: bool) -> Path | None:
    """The checkpoint beside a version's folder, where one is asked for and there is one; else the run begins anew."""
    from trainer.fitting import checkpoint_folder
    from trainer.folders import recover

    folder = checkpoint_folder(out)
    recover(folder)
    return folder if is_resuming and folder.exists() else None


def find_version(version: str, model: str | None, settings: WorkerSettings) -> ModelSource:
    """A version by its id, from Rankloop; or a folder of one, with its base model."""
    folder = Path(version)
    if model is None and folder.is_dir():
        refuse("Name the base model of the folder with --model.")
    if model is not None:
        if not any((folder / name).is_file() for name in POLICY_FILES):
            refuse(f"{version} is no folder of a version: it has neither {' nor '.join(POLICY_FILES)}.")
        return version_of(find_source(model), folder)
    try:
        uuid.UUID(version)
    except ValueError:
        refuse(f"{version} is neither a folder that is here, nor the id of a version.")
    return fetched_version(version, settings)


def fetched_version(version_id: str, settings: WorkerSettings) -> ModelSource:
    """The files of a version, from Rankloop."""
    from trainer.artifacts import model_source
    from trainer.client import Client, ModelReference, Retries

    with Client(settings.url, settings.token, retries=Retries(PATIENCE_SECONDS)) as client:
        found = client.get_version(version_id)
        reference: ModelReference = {
            "version_id": found["id"],
            "number": found["number"],
            "kind": found["kind"],
            "alias": found["alias"],
            "files": found["files"],
        }
        return model_source(reference, client, settings, say)


def settings_with(url: str | None, token: str | None) -> WorkerSettings:
    """The settings of the environment, with what the command line says instead."""
    given = {"url": url, "token": token}
    return WorkerSettings().model_copy(update={name: value for name, value in given.items() if value is not None})


def find_source(model: str) -> ModelSource:
    """A model by alias, or the folder of one."""
    from trainer.artifacts import base_folder
    from trainer.weights import ModelSource

    folder, settings = Path(model), WorkerSettings()
    if (folder / "config.json").is_file():
        return ModelSource(folder)
    if model not in settings.listed_models() and (folder.exists() or model.startswith((".", "/", "~"))):
        refuse(f"--model: {model} is no folder of a model on this machine: there is no config.json in it.")
    return ModelSource(base_folder(model, settings, say), alias=model)


def version_of(source: ModelSource, folder: Path | None) -> ModelSource:
    """A version of the model, from a folder on this machine; None: the model itself."""
    from trainer.weights import ModelSource

    return ModelSource(source.base, folder, source.alias)


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Prompts of JSON lines with `messages` or `prompt`; ids are made up where there are none.

    ValueError names the line that can't be read.
    """
    return [_prompt(path, number, row) for number, row in read_lines(path)]


def _prompt(path: Path, number: int, row: Any) -> dict[str, Any]:
    try:
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        turns = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in messages]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path.name}, line {number}: needs `messages` or `prompt`: an object with either, `messages` being a list "
            "of objects with `role` and `content`."
        ) from error
    return {"id": str(row.get("id", number)), "messages": turns}


def show(figures: dict[str, Any], json_file: Path | None) -> None:
    """The figures on the terminal, and as JSON where that is asked for; a report of many parts only as JSON."""
    if json_file is not None and str(json_file) != "-":
        json_file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if str(json_file) == "-":
        typer.echo(json.dumps(figures, ensure_ascii=False))
        return
    for name, value in figures.items():
        if name.endswith("report"):
            continue
        typer.echo(f"{name:24} {json.dumps(value, ensure_ascii=False)}")


def parse_settings(pairs: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE pairs; a value is JSON where it can be, else text. SettingsError names what is no pair."""
    overrides: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError(f"--set {pair}: write it as KEY=VALUE.")
        try:
            overrides[key] = json.loads(value)
        except ValueError:
            overrides[key] = value
    return overrides


class BarReporter:
    """The `Reporter` of a terminal: a bar with what was reached last, and the log above it."""

    def __init__(self, *, is_shown: bool = True) -> None:
        self._is_shown = is_shown

    def __enter__(self) -> Self:
        from tqdm import tqdm

        self._bar = tqdm(unit="step", dynamic_ncols=True, disable=not self._is_shown)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The newest figures, beside the bar."""
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in list(values.items())[:3]})

    def progress(self, step: int, total: int, message: str) -> None:
        """Move the bar."""
        self._bar.total = total
        self._bar.set_description_str(message, refresh=False)
        self._bar.update(step - self._bar.n)

    def log(self, level: Level, text: str) -> None:
        """A line above the bar."""
        self._bar.write(text if level == "info" else f"{level}: {text}", file=sys.stderr)

    def should_stop(self) -> bool:
        """Never: Ctrl+C ends the program."""
        return False


@dataclass(frozen=True)
class Run:
    """The processes that `torchrun` started, or this one alone, at work on one training."""

    report: BarReporter
    device: str
    speaks: bool
    """Whether this process writes for all."""

    def train(self, train: Callable[..., RunResult], *data: Any, out: Path, is_resuming: bool, **asked: Any) -> Any:
        """The result of a training function, as JSON."""
        resume_from = last_checkpoint(out, is_resuming=is_resuming)
        result = train(*data, out=out, report=self.report, device=self.device, resume_from=resume_from, **asked)
        return result.as_json()

    def show(self, figures: dict[str, Any], json_file: Path | None) -> None:
        """The figures, once for all processes."""
        if self.speaks:
            show(figures, json_file)


@contextmanager
def processes() -> Iterator[Run]:
    """Within the block, all processes of `torchrun` are one run, with one bar."""
    from trainer.distributed import joined

    device = WorkerSettings().torch_device()
    with joined(device) as here, BarReporter(is_shown=here.is_first) as report:
        yield Run(report, device, here.is_first)


def train_and_show(train: Callable[..., RunResult], *data: Any, json_file: Path | None, **asked: Any) -> None:
    """Run a training function to its end, and show what it found; arguments as `Run.train` has them."""
    with processes() as run:
        run.show(run.train(train, *data, **asked), json_file)


def refuse(message: str) -> NoReturn:
    """Say why not, and end with exit code 1."""
    typer.echo(message, err=True)
    raise typer.Exit(1)


@contextmanager
def one_line_errors(refuse: Callable[[str], NoReturn] = refuse) -> Iterator[None]:
    """What a user can set right is said in one line, with exit code 1."""
    from trainer.transport import ClientError

    try:
        yield
    except OSError as error:
        refuse(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (SettingsError, ClientError, ValueError) as error:
        refuse(str(error))
    except Exception as error:
        if not type(error).__module__.startswith("trainer."):
            raise
        refuse(str(error))


def say(message: str, share: float) -> None:
    """Where long work stands, on the terminal; how far it is, the message says."""
    typer.echo(message, err=True)
