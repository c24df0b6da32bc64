"""The processes of a team (`trainer/team.py`): torchrun itself, and the members that it starts.

    python -m trainer.member NUM FOLDER     torchrun, with NUM members
    python -m trainer.member FOLDER         one of them

Torchrun is used as the library that it is: its command tells nobody which process died first, and of what.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from trainer.client import Claim, Client, ClientError, FenceLost, Json, Retries, Unreachable
from trainer.distributed import World, joined
from trainer.jobs import Job, do
from trainer.logs import configure, holding
from trainer.reporting import RunCancelled, SilentReporter
from trainer.run_reporter import RunReporter
from trainer.settings import WorkerSettings
from trainer.team import CLAIM, DEATHS, end_file, write_private
from trainer.worker import DELIVERY_PATIENCE_SECONDS, carry_out, cause_of, lines_of, stop_on_signals

logger = logging.getLogger(__name__)


class Unheard(SilentReporter):
    """What all members but the first report to."""

    is_cancelled = False
    is_fence_lost = False

    def flush(self) -> None:
        """There is nothing to send."""


def launch(num: int, folder: Path) -> int:
    """Start the members and wait for them; who died first is left in the folder. Returns the exit status."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "trainer.member", str(folder))
    except ChildFailedError as error:
        write_private(folder / DEATHS, {str(rank): failure.exitcode for rank, failure in error.failures.items()})
        return 1
    return 0


def take_part(folder: Path) -> int:
    """Do this member's part of the run that lies in the folder, and say how it ended. Returns the exit status."""
    settings, stopping = WorkerSettings(), threading.Event()
    stop_on_signals(stopping)
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    claim = cast(Claim, json.loads((folder / CLAIM).read_text(encoding="utf-8")))
    end = end_file(folder, int(os.environ["RANK"]))
    retries = Retries(DELIVERY_PATIENCE_SECONDS, stopping.wait)
    with holding(claim), Client(settings.url, settings.token, retries=retries) as client:
        try:
            with joined(settings.torch_device()) as here:
                # Said before the others see that this one is gone, so that the first failure is the one that counts.
                write_private(end, _do_part(client, settings, claim, folder, stopping, here))
        except Exception as error:  # noqa: BLE001 - the processes did not find each other, or parted in disorder
            if not end.exists():
                write_private(end, _failure(error))
    return int(json.loads(end.read_text(encoding="utf-8"))["how"] == "failed")


def _do_part(
    client: Client, settings: WorkerSettings, claim: Claim, folder: Path, stopping: threading.Event, here: World
) -> Json:
    """Do the run, as the one that speaks or silently; how that ended."""
    run = client.claimed(claim)
    try:
        if not here.is_first:
            do(Job(client, settings, run, Unheard(), folder))
            return _end("done")
        with RunReporter(run, stopping.is_set) as report:
            return _speak_for_all(Job(client, settings, run, report, folder))
    except RunCancelled:
        return _end("stopped")
    except (FenceLost, Unreachable) as error:
        return _end("left", cause=str(error))
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the worker ends the run with this cause
        return _failure(error)


def _speak_for_all(job: Job) -> Json:
    """Do the run and report it, to the last word even where it goes wrong."""
    try:
        result, artifacts = carry_out(job)
    except RunCancelled:
        return _end("cancelled" if job.report.is_cancelled else "stopped")
    finally:
        with suppress(ClientError):
            job.report.flush()
    return _end("done", result=result, artifacts=artifacts)


def _failure(error: Exception) -> Json:
    logger.warning("this process of the run failed", exc_info=error, extra={"event": "part_failed"})
    return _end("failed", cause=cause_of(error), lines=lines_of(error))


def _end(how: str, **more: Any) -> Json:
    return {"how": how, "at": time.time(), **more}


def _end_with_the_worker() -> None:
    """The worker holds the other end of standard input and writes nothing: it ends when the worker does."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    configure(WorkerSettings())
    *number, place = sys.argv[1:]
    sys.exit(launch(int(number[0]), Path(place)) if number else take_part(Path(place)))
