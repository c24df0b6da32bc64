"""One web process: uvicorn around the app. It starts no database and no worker."""

from __future__ import annotations

import logging
import os
import socket

from app.config import Settings

SECONDS_TO_FINISH = 10
"""How long requests may still take after the process was asked to stop."""


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


def serve(settings: Settings, listener: socket.socket) -> None:
    """Answer requests on a listening socket until SIGTERM or SIGINT; requests under way are finished."""
    import uvicorn

    from app.main import create_app

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        create_app(settings),
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )
    uvicorn.Server(config).run(sockets=[listener])
