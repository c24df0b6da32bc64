"""One web process: uvicorn around the app. It starts no database and no worker."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.config import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

SECONDS_TO_FINISH = 10
"""How long requests may still take after the process was asked to stop."""
SECONDS_TO_START = 60
"""How long a successor may take to answer before it is given up and its forerunner stays, and how long a process may be
silent before it is replaced. uvicorn's own 5 s are too few on a busy machine.
"""


class CannotStart(Exception):
    """Something in the way of a start; the message says what to do."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        CannotStart: the port is taken, or the host is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        # Numbers below zero are those of getaddrinfo; for the others Python adds the address to the words.
        cause = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise CannotStart(
            f"Rankloop cannot listen on {host}, port {port}: {cause}. Stop the program that uses this port, "
            "or choose another one with --port."
        ) from error
    listener.setblocking(False)
    return listener


def serve(settings: Settings, listener: socket.socket, *, processes: int = 1) -> None:
    """Answer requests on a listening socket until SIGTERM or SIGINT; requests under way are finished.

    Several processes share the socket. One that ends is started again; SIGHUP replaces them one after the other, each
    when its successor answers. When this one is gone, they end as on SIGTERM.
    """
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    from app import logs
    from app.slow_clients import Impatient, allow_many_connections

    logs.configure(settings)
    allow_many_connections()
    config = uvicorn.Config(
        "app.serve:app_of_the_environment",
        factory=True,
        http=Impatient,
        workers=processes,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
        timeout_worker_healthcheck=SECONDS_TO_START,
    )
    os.environ |= {
        "RANKLOOP_DATA_DIR": str(settings.data_dir.absolute()),
        "RANKLOOP_DATABASE_URL": settings.require_database_url(),
        "RANKLOOP_PUBLIC_URL": settings.public_url,
    }
    if processes == 1:
        uvicorn.Server(config).run(sockets=[listener])
        return
    with shared_metrics():
        Multiprocess(config, sockets=[listener]).run()


def app_of_the_environment() -> FastAPI:
    """The app of one process, with the settings of its environment."""
    from app import logs
    from app.main import create_app

    settings = Settings()
    logs.configure(settings)
    end_with_parent()
    app = create_app(settings)
    # Two hundred thousand objects that live as long as the process need not be looked through for garbage ever again.
    gc.collect()
    gc.freeze()
    return app


def end_with_parent() -> None:
    """Have one of several processes end, as on SIGTERM, when the one that started it is gone.

    It may have been ended by `kill -9`, which nobody hears. Who went on would hold the port, so that whoever is started
    in its place could not listen.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


@contextmanager
def shared_metrics() -> Iterator[dict[str, str]]:
    """A folder in which processes count together, named in the environment; the answer is its variable."""
    folder = Path(tempfile.mkdtemp(prefix="rankloop-metrics-"))
    variable = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    os.environ |= variable
    try:
        yield variable
    finally:
        shutil.rmtree(folder, ignore_errors=True)
