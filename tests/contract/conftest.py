"""The real app on a real port with a database of its own, and a worker's settings with a tiny random model."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import uvicorn
from typer.testing import CliRunner, Result

from app.accounts import service as accounts
from app.accounts import tokens
from app.accounts.models import Role, Scope
from app.config import Settings
from app.db import make_engine, make_sessionmaker
from app.serve import bind
from rankloop.cli import build
from tests.borrowed import borrowed_app
from tests.trainer.tiny import make_model, make_tokenizer
from trainer.client import Client, Json, Retries
from trainer.settings import WorkerSettings
from trainer.worker import Worker

LEASE_SECONDS = 2


class AppServer:
    """The app behind uvicorn in a thread. It can be stopped and started again at the same address."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._port = 0
        self._lent = ExitStack()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        listener = bind("127.0.0.1", self._port)
        self._port = listener.getsockname()[1]
        app = self._lent.enter_context(borrowed_app(self._settings))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        self._thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        self._server = server
        wait_for(lambda: server.started)

    def stop(self) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = True
        self._thread.join()
        self._lent.close()


@dataclass(frozen=True)
class House:
    """An app, an admin's client, a worker's token and settings."""

    server: AppServer
    admin: Client
    admin_token: str
    worker_settings: WorkerSettings
    database_url: str

    def log_of(self, run_id: str) -> str:
        """A run's log as one text."""
        with psycopg.connect(self.database_url) as connection:
            rows = connection.execute("select text from run_log where run_id = %s order by id", [run_id]).fetchall()
        return "\n".join(text for (text,) in rows)

    def worker_client(self, pause: Callable[[float], object] = time.sleep) -> Client:
        """A client with the worker's token."""
        return Client(self.server.url, self.worker_settings.token, retries=Retries(30.0, pause))

    def make_project(self, **fields: object) -> Json:
        """A project on the tiny model: short answers, everything in the training split, quick training."""
        training = {
            "reward": {"rankings_per_batch": 1, "checkpoint_every": 1},
            "ppo": {"num_episodes": 8, "episodes_per_batch": 4, "minibatch_size": 4},
        }
        sampling = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 6, "seed": 17}
        values = {"name": "Tiny", "slug": "tiny", "model_alias": "tiny", "k": 3, "sampling": sampling}
        shares = {"validation_share": 0.0, "test_share": 0.0}
        return self.admin.create_project(**(values | shares | {"training": training} | fields))

    def import_prompts(self, project: Json, num: int) -> None:
        """So many prompts in the words of the tiny model."""
        words = ("a", "b", "c", "d")
        texts = [" ".join(words[(number >> (2 * place)) % 4] for place in range(4)) for number in range(num)]
        self.admin.import_prompts(project["id"], [json.dumps({"prompt": text}) for text in texts])

    def rank_everything(self, project: Json) -> int:
        """Rank every task that waits: longer answers first. Returns how many."""
        num_ranked = 0
        while (lease := self.admin.next_task(project["id"])) is not None:
            longest_first = sorted(lease["completions"], key=lambda card: (-len(card["text"]), card["id"]))
            self.admin.submit_ranking(lease["lease_id"], {"order": [[card["id"]] for card in longest_first]})
            num_ranked += 1
        return num_ranked


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few words, as a folder that `from_pretrained` opens."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def house(fresh_database_url: str, tiny_folder: Path, tmp_path: Path) -> Iterator[House]:
    """The app with an admin; the worker's lease is two seconds."""
    settings = Settings(data_dir=tmp_path / "app", database_url=fresh_database_url, run_lease_seconds=LEASE_SECONDS)
    admin_token, worker_token = asyncio.run(make_tokens(fresh_database_url))
    models = tmp_path / "models.json"
    models.write_text(json.dumps({"tiny": str(tiny_folder)}), encoding="utf-8")
    server = AppServer(settings)
    server.start()
    try:
        with Client(server.url, admin_token) as admin:
            worker = WorkerSettings(
                url=server.url, token=worker_token, data_dir=tmp_path / "worker", models=models, device="cpu"
            )
            yield House(server, admin, admin_token, worker, fresh_database_url)
    finally:
        server.stop()


async def make_tokens(database_url: str) -> tuple[str, str]:
    """An admin's token with every scope but the worker's, and a worker's token."""
    engine = make_engine(database_url)
    async with make_sessionmaker(engine).begin() as session:
        admin = await accounts.create_user(session, name="Admin", email="admin@example.org", role=Role.ADMIN)
        people = [scope for scope in Scope if scope != Scope.WORKER]
        _, admin_secret = await tokens.create_token(session, user_id=admin.id, name="tests", scopes=people)
        _, worker_secret = await tokens.create_token(session, user_id=admin.id, name="w", scopes=[Scope.WORKER])
    await engine.dispose()
    return admin_secret, worker_secret


def wait_for(condition: Callable[[], object], seconds: float = 180.0) -> None:
    """Until it is true; a test that waits in vain fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {seconds} seconds"
        time.sleep(0.02)


def work_off(house: House) -> int:
    """Do the runs that wait; returns how many there were."""
    num_runs = 0
    with house.worker_client() as client:
        worker = Worker(client, house.worker_settings, threading.Event(), "worker-1")
        while worker.run_once():
            num_runs += 1
    return num_runs


@contextmanager
def held_back(house: House, table: str, once: str) -> Iterator[None]:
    """Once something is so, nobody stores a row of this table until the block ends: a run stands still there.

    However slow the machine, what the test does then comes before the run's next step.
    """
    with psycopg.connect(house.database_url, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(17)")
        connection.execute(
            f"create function hold_back() returns trigger language plpgsql as $$ begin if {once} then"
            " perform pg_advisory_xact_lock_shared(17); end if; return new; end $$"
        )
        connection.execute(f"create trigger hold_back before insert on {table} execute function hold_back()")
        yield


def environment_of(house: House) -> dict[str, str]:
    """The worker's settings as variables, for a process of its own."""
    settings = house.worker_settings
    return os.environ | {
        "RANKLOOP_URL": settings.url,
        "RANKLOOP_TOKEN": settings.token,
        "RANKLOOP_DATA_DIR": str(settings.data_dir),
        "RANKLOOP_MODELS": str(settings.models),
        "RANKLOOP_DEVICE": "cpu",
    }


def start_worker(house: House, log: Path) -> subprocess.Popen[bytes]:
    """A worker in a process of its own, which can be killed."""
    command = [sys.executable, "-m", "rankloop", "worker", "--name", "doomed"]
    with log.open("wb") as stream:
        return subprocess.Popen(command, env=environment_of(house), stdout=stream, stderr=stream)


def run_rankloop(house: House, *arguments: str) -> Result:
    """A command of the program, to its end."""
    return CliRunner().invoke(build(), arguments, env=environment_of(house))
