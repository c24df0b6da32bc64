"""A worker: claim a run, do it, report, deliver, finish. It owns no maths.

A run may be done twice: what an earlier attempt delivered is looked for first, and finishing twice is harmless."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.artifacts import deliver_folder
from trainer.client import ApiError, Claim, ClaimedRun, Client, ClientError, FenceLost, Json, Unreachable
from trainer.jobs import HANDLERS, Job, do
from trainer.logs import holding, why
from trainer.reporting import RunCancelled, storable
from trainer.run_reporter import RunReporter
from trainer.settings import WorkerSettings
from trainer.team import MemberFailed, TeamBroke, is_split, lead

logger = logging.getLogger(__name__)

FIRST_POLL_SECONDS = 1.0
LONGEST_POLL_SECONDS = 5.0
DELIVERY_PATIENCE_SECONDS = 600.0
"""How long a delivery is tried while the app is away."""
MAX_CAUSE_CHARACTERS = 2_000

PATH = re.compile(r"(?<![\w:/.])/(?:[^\s/'\"()]+/)+([^\s/'\"()]*)")


class Worker:
    """Does one run after another until it is stopped."""

    def __init__(self, client: Client, settings: WorkerSettings, stopping: threading.Event, name: str = "") -> None:
        self._client = client
        self._settings = settings
        self._stopping = stopping
        self._trouble = ""
        self._name = name or f"{socket.gethostname()}-{os.getpid()}"

    def run_forever(self) -> None:
        """Claim and do runs; ask again after one to five seconds when nothing waits or nobody answers."""
        logger.info("%s waits for runs at %s", self._name, self._settings.url, extra={"event": "waiting"})
        pause = FIRST_POLL_SECONDS
        while not self._stopping.is_set():
            if self.run_once():
                pause = FIRST_POLL_SECONDS
                continue
            self._stopping.wait(pause)
            pause = min(1.5 * pause, LONGEST_POLL_SECONDS)

    def run_once(self) -> bool:
        """Claim a run and do it. False: none waits, or nobody answers. Raises ApiError when the token is refused."""
        try:
            claim = self._client.claim_run(self._name, list(HANDLERS))
        except (Unreachable, ApiError) as error:
            if isinstance(error, ApiError) and error.status < 500 and error.status != 429:
                raise
            if str(error) != self._trouble:
                logger.warning("%s", why(error), extra={"event": "app_away"})
            self._trouble = str(error)
            return False
        self._trouble = ""
        if claim is None:
            return False
        self.work(claim)
        return True

    def work(self, claim: Claim) -> None:
        """Do a claimed run to one of its ends."""
        with holding(claim):
            self._work(claim)

    def _work(self, claim: Claim) -> None:
        facts = {"event": "run_taken", "kind": claim["kind"]}
        logger.info("took the %s run, attempt %d", claim["kind"], claim["attempt"], extra=facts)
        run = self._client.claimed(claim)
        try:
            with RunReporter(run, self._stopping.is_set) as report:
                self._do(run, report)
        except FenceLost:
            logger.warning("dropped the run: another worker has it", extra={"event": "run_dropped"})
        except (Unreachable, ApiError) as error:
            logger.warning(
                "gave the run up, it goes back into the queue: %s", why(error), extra={"event": "run_given_up"}
            )

    def _do(self, run: ClaimedRun, report: RunReporter) -> None:
        try:
            with _RunFolder(self._settings, run.claim) as folder:
                job = Job(self._client, self._settings, run, report, folder)
                result, names = lead(job, self._stopping.is_set) if is_split(job) else carry_out(job)
            report.finish("finished", result=result, artifacts=names)
            logger.info("finished the run", extra={"event": "run_finished"})
        except (FenceLost, Unreachable):
            if not self._stopping.is_set():
                raise
            self._give_back(run, report)
        except RunCancelled:
            self._end_early(run, report)
        except TeamBroke as error:
            self._leave(report, error)
        except Exception as error:  # noqa: BLE001 - whatever went wrong ends this run, and the worker goes on
            self._fail(run, report, error)

    def _end_early(self, run: ClaimedRun, report: RunReporter) -> None:
        if report.is_fence_lost:
            logger.warning("dropped the run: another worker has it", extra={"event": "run_dropped"})
        elif report.is_cancelled:
            report.flush()
            report.finish("cancelled", error="Cancelled.")
            logger.info("the run was cancelled", extra={"event": "run_cancelled"})
        else:
            self._give_back(run, report)

    def _give_back(self, run: ClaimedRun, report: RunReporter) -> None:
        """Back into the queue at once; when that fails, its lease runs out and has the same effect."""
        with suppress(ClientError):
            report.flush()
            report.release()
            logger.info("gave the run back", extra={"event": "run_given_back"})

    def _leave(self, report: RunReporter, error: TeamBroke) -> None:
        """Into the queue when the lease runs out. As that counts as an attempt, what kills it each time ends it."""
        logger.warning("a process of the run is gone; its page has the cause", extra={"event": "run_left"})
        report.log("error", f"{error} The run waits for its lease to run out, and goes on from its last checkpoint.")
        report.flush()

    def _fail(self, run: ClaimedRun, report: RunReporter, error: Exception) -> None:
        logger.warning("the run failed; its page has the cause", exc_info=error, extra={"event": "run_failed"})
        for line in error.lines if isinstance(error, MemberFailed) else lines_of(error):
            report.log("error", line)
        report.flush()
        report.finish("failed", error=cause_of(error))


def carry_out(job: Job) -> tuple[Json, list[str]]:
    """Do a run and deliver what came of it: its result, and the files' names. Raises whatever goes wrong."""
    try:
        outcome = do(job)
    except FileNotFoundError as error:
        raise FileNotFoundError(missing_file(error, job.config)) from error
    names = deliver_folder(job.run, outcome.folder) if outcome.folder else []
    job.report.flush()
    return outcome.result, names


def missing_file(error: FileNotFoundError, config: Mapping[str, Any]) -> str:
    """What to do about a file that the system does not find: most often it is of one of the run's models."""
    path = Path(os.fsdecode(error.filename or ""))
    named = [each for value in config.values() for each in (value if isinstance(value, list) else [value])]
    aliases = sorted({each["alias"] for each in named if isinstance(each, Mapping) and "alias" in each})
    fetch = " or ".join(f"`rankloop model fetch {alias}`" for alias in aliases)
    advice = f"If it is of a model, look at the worker's list of models, or fetch it again ({fetch}). " if fetch else ""
    where = f"The file “{path.name}” is missing in the worker's folder “{path.parent.name}”."
    return f"{where} {advice}Then try the run again."


class _RunFolder:
    """A run's own folder in the cache. What a killed attempt left there goes first."""

    def __init__(self, settings: WorkerSettings, claim: Claim) -> None:
        self._parent = settings.data_dir / "cache" / "runs" / claim["id"]
        self._folder = self._parent / f"f{claim['fence']}"

    def __enter__(self) -> Path:
        shutil.rmtree(self._parent, ignore_errors=True)
        self._folder.mkdir(parents=True)
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):
            self._parent.rmdir()


def cause_of(error: Exception) -> str:
    """Why a run failed, for a person: the message where there is one that was written for people, no stack trace."""
    text = str(error).strip()
    written_for_people = isinstance(error, ValueError | RuntimeError | OSError | ClientError) or type(
        error
    ).__module__.startswith("trainer.")
    cause = text if text and written_for_people else f"{type(error).__name__}: {text}".rstrip(": ")
    return storable(without_paths(cause))[:MAX_CAUSE_CHARACTERS]


def lines_of(error: Exception) -> list[str]:
    """Where it went wrong, line by line, without this machine's paths."""
    return without_paths("".join(traceback.format_exception(error))).splitlines()


def without_paths(text: str) -> str:
    """The text with each absolute path of this machine reduced to its last part."""
    return PATH.sub(lambda match: match[1] or match[0].rstrip("/").rpartition("/")[2], text)


def stop_on_signals(stopping: threading.Event) -> None:
    """The first SIGTERM or Ctrl+C asks for a good end, the second one ends at once."""

    def stop(number: int, _: object) -> None:
        stopping.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
