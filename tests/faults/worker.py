"""A worker that can be killed with -9 and started again, and one that nobody disturbs: forks that have imported all."""

from __future__ import annotations

import threading
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.faults.web import PRELOADED, forks
from trainer.client import Client, Retries
from trainer.jobs import Job
from trainer.member import Unheard
from trainer.settings import WorkerSettings
from trainer.worker import DELIVERY_PATIENCE_SECONDS, Worker, carry_out

TRAINED = ["reward", "ppo"]
PRELOADED += ["trainer.reward", "trainer.ppo_run", "tests.faults.worker"]


def do_runs(settings: WorkerSettings) -> None:
    """One run after another, as `rankloop worker` does."""
    stopping = threading.Event()
    with Client(settings.url, settings.token, retries=Retries(DELIVERY_PATIENCE_SECONDS, stopping.wait)) as client:
        Worker(client, settings, stopping).run_forever()


def train_undisturbed(settings: WorkerSettings, folder: Path) -> None:
    """Every training that waits, from its beginning to what it delivers. Its end is not told: nothing follows."""
    with Client(settings.url, settings.token) as client:
        while claim := client.claim_run("undisturbed", TRAINED):
            run = client.claimed(claim)
            own = folder / claim["id"]
            own.mkdir(parents=True)
            carry_out(Job(client, settings, run, Unheard(), own))
            run.finish("cancelled", error="Done once more, to compare.")


class WorkerProcess:
    """The process and its settings."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._process: BaseProcess | None = None

    def start(self) -> None:
        """Begin to ask for runs."""
        self._process = forks().Process(target=do_runs, args=[self.settings], daemon=True)
        self._process.start()

    def kill(self) -> None:
        """kill -9: nothing is handed back, nothing is said."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
