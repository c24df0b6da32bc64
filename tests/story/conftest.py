"""What a story needs: a server with a browser (as in tests/browser), and a worker as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.accounts.models import Role
from app.accounts.service import create_user
from app.accounts.sessions import create_sign_in_link
from app.accounts.tokens import create_token
from tests.browser.conftest import LiveServer, browser, browser_page, chromium_path, live_server, open_page
from tests.trainer.tiny import save_tiny

__all__ = ["browser", "browser_page", "chromium_path", "live_server", "open_page"]

StartWorker = Callable[[LiveServer, str, dict[str, Path]], None]


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A random Llama of a few words."""
    return save_tiny(tmp_path / "tiny")


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """`start_worker(server, token, models)`: `rankloop worker` as people start it. It ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(server: LiveServer, token: str, models: dict[str, Path]) -> None:
        listed = tmp_path / "models.json"
        listed.write_text(json.dumps({alias: str(folder) for alias, folder in models.items()}))
        environment = os.environ | {
            "RANKLOOP_URL": server.url,
            "RANKLOOP_TOKEN": token,
            "RANKLOOP_MODELS": str(listed),
            "RANKLOOP_DATA_DIR": str(tmp_path / "worker"),
        }
        command = [sys.executable, "-m", "rankloop", "worker"]
        with (tmp_path / "worker.log").open("wb") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=60)


async def make_admin(server: LiveServer) -> tuple[str, str]:
    """An admin's sign-in link, and a worker's token."""
    async with server.sessions.begin() as session:
        admin = await create_user(session, name="Ada", email="ada@example.org", role=Role.ADMIN)
        link = await create_sign_in_link(session, user=admin, public_url=server.url)
        _, token = await create_token(session, user_id=admin.id, name="worker", scopes=["worker"])
    return link, token
