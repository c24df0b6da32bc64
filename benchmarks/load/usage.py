"""What the parts of a server cost: CPU seconds and memory of processes with all their children."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import psutil


class Usage:
    """Processes by the name of their part."""

    def __init__(self, parts: Mapping[str, int]) -> None:
        self._parts = {name: psutil.Process(pid) for name, pid in parts.items()}

    def seconds(self) -> dict[str, float]:
        """CPU seconds so far, those of children that ended included."""
        return {name: sum(map(_seconds, _family(process))) for name, process in self._parts.items()}

    def megabytes(self) -> dict[str, float]:
        """Memory now, shared pages counted in parts (PSS): that of a database's processes is one and the same."""
        return {name: sum(map(_megabytes, _family(process))) for name, process in self._parts.items()}


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _megabytes(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return float(process.memory_full_info().pss / 1e6)
    return 0.0
