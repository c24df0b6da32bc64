"""Nobody is told of anything: whoever starts, serves and trains speaks to this machine only."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Python's own list of what is about to happen (PEP 578) can't be switched off by the code that it watches.
PROGRAM = """
import asyncio, sys
told = []
def watch(event, arguments):
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "localhost", "127.0.0.1"):
        told.append(f"{event} {arguments[0]}")
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        if arguments[1][0] not in ("127.0.0.1", "::1"):
            told.append(f"{event} {arguments[1]}")
sys.addaudithook(watch)

import socket
if "probe" in sys.argv:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.sendto(b"x", ("192.0.2.1", 9))
    sender.close()
    print(told)
    sys.exit()
from pathlib import Path
from httpx2 import ASGITransport, AsyncClient
from app.config import Settings
from app.main import create_app

async def serve():
    app = create_app(Settings(data_dir=Path("."), database_url="postgresql://rankloop@127.0.0.1:1/rankloop"))
    async with app.router.lifespan_context(app):
        async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
            for path in ("/health", "/ready", "/sign-in", "/nowhere", "/api/v1/openapi.json"):
                await client.get(path)

asyncio.run(serve())
try:
    import trainer.cli, trainer.worker, trainer.weights, trainer.sampling
except ModuleNotFoundError:
    pass
print(told)
"""
# Programs whose business is to tell somebody.
# FastAPI needs opentelemetry-api, which is names only: without an SDK and an exporter it does nothing.
TELLERS = re.compile(
    r"sentry|posthog|segment|mixpanel|amplitude|bugsnag|rollbar|newrelic|datadog|opentelemetry-(?!api)|scarf|analytics"
)


def run(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300).stdout.strip()


def test_serving_and_loading_the_trainer_speak_to_nobody() -> None:
    assert run() == "[]"


def test_the_watch_sees_what_is_sent() -> None:
    assert "192.0.2.1" in run("probe")


def test_no_library_that_reports_is_installed_with_rankloop() -> None:
    names = [line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()]
    assert [name for name in names if TELLERS.search(name)] == []
