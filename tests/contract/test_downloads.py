"""A download that breaks again and again arrives whole, byte for byte, by the client and the real app."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.conftest import House
from trainer.client import Client, Retries

CUT_AFTER = 40_000


@contextmanager
def breaking_proxy(port: int) -> Iterator[tuple[str, list[int]]]:
    """A way to the app that hangs up after so many bytes of each connection; its address, and how much each brought."""
    brought: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener, port, brought), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", brought


def serve(listener: socket.socket, port: int, brought: list[int]) -> None:
    """One connection after the other, until the listener is closed."""
    while True:
        try:
            ours, _ = listener.accept()
        except OSError:
            return
        with ours, socket.create_connection(("127.0.0.1", port)) as theirs:
            threading.Thread(target=pass_on, args=(ours, theirs), daemon=True).start()
            left = CUT_AFTER
            while left and (part := theirs.recv(min(left, 8192))):
                ours.sendall(part)
                left -= len(part)
            brought.append(CUT_AFTER - left)
            ours.shutdown(socket.SHUT_RDWR)


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """What the client says, until somebody hangs up."""
    try:
        while part := source.recv(8192):
            target.sendall(part)
    except OSError:
        return


@pytest.mark.real_commits
@pytest.mark.parametrize("choices", [{}, {"format": "pairs"}, {"format": "sft", "compression": "gzip"}])
def test_a_download_that_breaks_arrives_whole(house: House, tmp_path: Path, choices: dict[str, str]) -> None:
    project = house.make_project()
    chance = random.Random(7)
    lines = [
        json.dumps(
            {"prompt": f"{number}？", "chosen": chance.randbytes(800).hex(), "rejected": chance.randbytes(800).hex()}
        )
        for number in range(60)
    ]
    assert house.admin.import_rankings(project["id"], lines)["taken"] == 60
    dataset = house.admin.create_dataset(project_id=project["id"])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    house.admin.export_dataset(dataset["id"], whole, **choices)
    port = int(house.server.url.rpartition(":")[2])
    with (
        breaking_proxy(port) as (address, brought),
        Client(address, house.admin_token, retries=Retries(60.0, lambda _: None)) as client,
    ):
        client.export_dataset(dataset["id"], broken, **choices)
    assert broken.read_bytes() == whole.read_bytes()
    assert CUT_AFTER in brought, "nothing broke"
