"""How a training function tells the world where it stands, and hears that it should stop.

Owns the `Reporter` protocol and its terminal form. The worker has its own form, which speaks to the app."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TextIO, cast

Level = Literal["info", "warning", "error"]


class RunCancelled(Exception):
    """The run was cancelled; what it had learned so far is in its last checkpoint."""


def storable(text: str) -> str:
    """The text as the app takes it: without NUL and lone surrogates, which no database holds."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


class Reporter(Protocol):
    """What a run reports. Every call returns at once and never raises because a network is away."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Points of named curves at a step; the same step and name again overwrites."""

    def progress(self, step: int, total: int, message: str) -> None:
        """`step` of `total` is done."""

    def log(self, level: Level, text: str) -> None:
        """One line for the run's log."""

    def should_stop(self) -> bool:
        """Whether someone cancelled the run; training functions then raise `RunCancelled`."""


def stop_if_cancelled(report: Reporter) -> None:
    """RunCancelled where the run was told to stop."""
    if report.should_stop():
        raise RunCancelled


@dataclass
class TerminalReporter:
    """Prints what a run reports, one line each: for `rankloop train` on files, and for benchmarks."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Points of named curves at a step."""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._print(f"step {step:>5}  {figures}")

    def progress(self, step: int, total: int, message: str) -> None:
        """How far the run is."""
        self._print(f"{step}/{total} {message}")

    def log(self, level: Level, text: str) -> None:
        """One line for the run's log."""
        self._print(text if level == "info" else f"{level}: {text}")

    def should_stop(self) -> bool:
        """Never: Ctrl+C does it."""
        return False

    def _print(self, line: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()


class SilentReporter:
    """Keeps everything to itself: for callers that only want the result."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Points of named curves at a step."""

    def progress(self, step: int, total: int, message: str) -> None:
        """How far the run is."""

    def log(self, level: Level, text: str) -> None:
        """One line for the run's log."""

    def should_stop(self) -> bool:
        """Never."""
        return False


class RunResult:
    """What a training function returns: a dataclass whose fields, but the version's folder, are the run's result."""

    def as_json(self) -> dict[str, Any]:
        """The result as docs/protocol.md has it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(cast(Any, self)) if f.name != "folder"}
        return {name: value.as_json() if hasattr(value, "as_json") else value for name, value in fields.items()}
