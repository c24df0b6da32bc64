"""Runs k6, a load tool, with `cycle.js`, and reads what it found. k6 comes with `requirements-load.txt`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load.usage import Usage

SCRIPT = Path(__file__).with_name("cycle.js")


@dataclass(frozen=True)
class Target:
    """Where the load goes, by which road, and as whom."""

    base: str
    road: str
    project: str
    people: Path


@dataclass(frozen=True)
class Side:
    """A server under load, the folder where what was acknowledged is written down, and its processes."""

    target: Target
    folder: Path
    usage: Usage

    def load(self, k6: str, scenario: dict[str, Any]) -> dict[str, Any]:
        """Apply load; see `run`."""
        return run(k6, self.target, scenario, self.folder, self.usage)


def find_k6(named: str | None = None) -> str | None:
    """k6 as it was named, beside this Python, or on PATH."""
    beside = Path(sys.prefix) / "bin" / "k6"
    return named or (str(beside) if beside.exists() else shutil.which("k6"))


def at_rate(rate: int, seconds: float, *, people: int) -> dict[str, Any]:
    """So many cycles a second begin, whatever becomes of those before: an open model, in which slowness shows."""
    return {
        "executor": "constant-arrival-rate",
        "rate": rate,
        "timeUnit": "1s",
        "duration": f"{seconds}s",
        "preAllocatedVUs": people,
        "maxVUs": people,
        "gracefulStop": "30s",
    }


def one_by_one(cycles: int, *, people: int = 1) -> dict[str, Any]:
    """So many cycles in all, each person's next one when the last is done."""
    return {"executor": "shared-iterations", "vus": people, "iterations": cycles, "maxDuration": "300s"}


def for_seconds(seconds: float, *, people: int) -> dict[str, Any]:
    """As many cycles as these people get through."""
    return {"executor": "constant-vus", "vus": people, "duration": f"{seconds}s", "gracefulStop": "30s"}


def run(k6: str, target: Target, scenario: dict[str, Any], folder: Path, usage: Usage) -> dict[str, Any]:
    """Apply load; returns milliseconds of next and submit, counts, and CPU seconds a cycle of every part."""
    out, log = folder / "k6.json", folder / "k6.log"
    settings = {
        "BASE": target.base,
        "ROAD": target.road,
        "PROJECT": target.project,
        "PEOPLE": str(target.people),
        "SCENARIO": json.dumps(scenario),
        "OUT": str(out),
        # Two cores are shared with what is measured: one thread, and memory rather than a search for garbage (0.3 ms a
        # cycle of its 1.1).
        "GOMAXPROCS": "1",
        "GOGC": "800",
    }
    command = [k6, "run", "--quiet", "--no-usage-report", "--no-color", "--log-format", "raw"]
    before = usage.seconds()
    children = os.times().children_user + os.times().children_system
    with log.open("a") as output:
        subprocess.run(
            [*command, "--console-output", str(log), str(SCRIPT)], env=os.environ | settings, check=True, stderr=output
        )
    spent = {name: seconds - before[name] for name, seconds in usage.seconds().items()}
    spent["load"] = os.times().children_user + os.times().children_system - children
    found = _read(json.loads(out.read_text(encoding="utf-8")))
    found["cpu_ms_a_cycle"] = {name: 1000 * seconds / max(1, found["cycles"]) for name, seconds in spent.items()}
    found["load_average"] = os.getloadavg()[0]
    return found


def acknowledged(folder: Path) -> dict[str, str]:
    """Every answer that was acknowledged so far: lease -> ranking."""
    lines = (line.split() for line in (folder / "k6.log").read_text(encoding="utf-8").splitlines())
    return {words[1]: words[2] for words in lines if words[:1] == ["ack"]}


def failures(folder: Path) -> list[str]:
    """What went wrong, line by line."""
    lines = (folder / "k6.log").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("failed")]


def _read(summary: dict[str, Any]) -> dict[str, Any]:
    metrics = summary["metrics"]
    seconds = summary["state"]["testRunDurationMs"] / 1000
    cycles = _count(metrics, "done")
    return {
        "cycles": cycles,
        "cycles_a_second": cycles / seconds,
        "errors": _count(metrics, "failed"),
        "empty": _count(metrics, "empty"),
        "dropped": _count(metrics, "dropped_iterations"),
        **{name: _times(metrics[name]["values"]) for name in ("next", "submit") if name in metrics},
    }


def _count(metrics: dict[str, Any], name: str) -> int:
    return int(metrics[name]["values"]["count"]) if name in metrics else 0


def _times(values: dict[str, float]) -> dict[str, float]:
    return {"p50": values["med"], "p95": values["p(95)"], "p99": values["p(99)"], "max": values["max"]}
