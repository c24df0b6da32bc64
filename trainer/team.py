"""Several processes of this machine that do one run together: how a worker starts them, and what comes of their end.

The worker keeps the lease. torchrun starts the members (`trainer/member.py`); the first of them does the run as a
worker alone would, reports and delivers, and the others compute their part. To end the run, well or badly, is the
worker's: it knows who died. The claim is handed over in a file that only this
user can read, the token in the environment; neither is on a command line, which all users of a machine can see.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from trainer.client import Json
from trainer.jobs import SPLIT_KINDS, Job
from trainer.reporting import RunCancelled

POLL_SECONDS = 0.2
STOP_SECONDS = 45.0
"""How long torchrun may take to stop. By itself it kills after 30 seconds who does not."""
CLAIM, DEATHS = "claim.json", "deaths.json"


class TeamBroke(Exception):
    """A member died, or all stopped, and no fault of the run is known: it goes back into the queue."""


class MemberFailed(RuntimeError):
    """The run failed in one of the processes; `lines` is what that one has to say."""

    def __init__(self, cause: str, lines: list[str]) -> None:
        super().__init__(cause)
        self.lines = lines


def is_split(job: Job) -> bool:
    """Whether several processes do this run."""
    return job.run.claim["kind"] in SPLIT_KINDS and job.settings.num_processes() > 1


def lead(job: Job, is_stopping: Callable[[], bool]) -> tuple[Json, list[str]]:
    """Let the processes do the run and deliver what came of it: its result, and the files' names.

    Raises:
        RunCancelled: the run was cancelled, or this worker shuts down.
        MemberFailed: with the cause of whichever failed first.
        TeamBroke: a process died of something that is no fault of the run, or Rankloop did not answer.
    """
    _let_go_of_gpus(job)
    write_private(job.folder / CLAIM, job.run.claim)
    num = job.settings.num_processes()
    job.report.log("info", f"{num} processes do the run together.")
    _run_torchrun(job, num, is_stopping)
    return judge(job, num, is_stopping=is_stopping())


def write_private(path: Path, content: object) -> None:
    """A JSON file, whole or not at all, that nobody but this user can read."""
    part = path.with_suffix(".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        json.dump(content, stream)
    part.rename(path)


def end_file(folder: Path, rank: int) -> Path:
    """Where a member says how it ended."""
    return folder / f"end-{rank}.json"


def _let_go_of_gpus(job: Job) -> None:
    """What this worker's earlier runs left reserved is for the members now."""
    if job.settings.torch_device() == "cuda":
        import torch

        gc.collect()
        torch.cuda.empty_cache()


def _run_torchrun(job: Job, num: int, is_stopping: Callable[[], bool]) -> None:
    """To its end. It has a session of its own, so that Ctrl+C reaches this worker only, which passes it on.

    Nothing is ever written to the pipe: where it closes, this worker is gone, and its members go too.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num))}
    environment = threads | os.environ | job.settings.as_environment()
    command = [sys.executable, "-m", "trainer.member", str(num), str(job.folder)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True) as torchrun:
        while torchrun.poll() is None and not is_stopping():
            _wait(torchrun, POLL_SECONDS)
        if torchrun.poll() is None:
            torchrun.terminate()
            _wait(torchrun, STOP_SECONDS)
            torchrun.kill()


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def judge(job: Job, num: int, *, is_stopping: bool) -> tuple[Json, list[str]]:
    """What the members left behind. Raises as `lead` does."""
    ends = [_read(end_file(job.folder, rank)) for rank in range(num)]
    first = ends[0]
    if first.get("how") == "done":
        return first["result"], first["artifacts"]
    if is_stopping:
        raise RunCancelled
    # In the order in which they died: whom torchrun stops because another is gone comes later.
    for rank, code in _read(job.folder / DEATHS).items():
        if code < 0:
            raise TeamBroke(f"Process {int(rank) + 1} of {num} was killed by {_name_of(-code)}.")
    # One failure makes the others fail, too, as their partner is gone: the first one is the cause.
    told = [first] if first else []
    told += [end for end in ends[1:] if end.get("how") == "failed"]
    if not told:
        raise TeamBroke(f"The {num} processes ended without a word; this worker's own output may say why.")
    end = min(told, key=lambda end: float(end["at"]))
    job.report.is_cancelled = job.report.is_cancelled or end["how"] == "cancelled"
    raise _as_error(end)


def _as_error(end: Mapping[str, Any]) -> Exception:
    if end["how"] == "failed":
        return MemberFailed(end["cause"], end["lines"])
    return TeamBroke(end["cause"]) if end["how"] == "left" else RunCancelled()


def _read(path: Path) -> Json:
    """A member's or torchrun's words; empty when it died before it said any."""
    return cast(Json, json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _name_of(number: int) -> str:
    known = {found.value for found in signal.Signals}
    return signal.Signals(number).name if number in known else f"signal {number}"
