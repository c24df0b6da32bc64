"""The worker's log: lines for people or for programs, each with its run, and none with what people wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.http_stub import CLAIM, Answer, Received, Server, problem
from trainer.client import Client, Retries, Unreachable

ROOT = Path(__file__).resolve().parents[2]
CANARY = "Zebedee-Quillfeather"
TOKEN = "rl_canary_of_the_token"
# A run that fails over a prompt's text, after everybody else has quoted it.
FAILS = """
import logging, threading, warnings
from trainer.jobs import HANDLERS
def fails(job):
    text, names = job.config["prompt"], ["asyncio", "talkative"]
    logging.getLogger("talkative").setLevel(logging.DEBUG)
    if job.settings.log_format == "json":
        import huggingface_hub.utils.logging, torch, transformers.utils.logging
        names += ["torch.distributed.elastic", "transformers.generation", "huggingface_hub.file_download"]
    for name in names:
        logging.getLogger(name).warning("%s", text)
        logging.getLogger(name).debug("never asked for: %s", text)
    warnings.warn(text)
    thread = threading.Thread(target=int, args=[text])
    thread.start()
    thread.join()
    job.report.log("warning", text)
    try:
        int(text)
    except ValueError as error:
        raise RuntimeError(f"No answer to {text}.") from error
HANDLERS["reward"] = fails
from rankloop.cli import build
build()()
"""
UNCAUGHT = "from trainer import logs, settings; logs.configure(settings.WorkerSettings()); int(" + repr(CANARY) + ")"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def said(code: str, *arguments: str, **settings: str) -> str:
    """What a process writes."""
    own = {"RANKLOOP_TOKEN": TOKEN, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = os.environ | own | {f"RANKLOOP_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def fail_a_run(server: Server, tmp_path: Path, **settings: str) -> str:
    """What a worker writes whose run fails."""
    claim = json.dumps(CLAIM | {"config": {"prompt": CANARY}}).encode()

    def handle(request: Received) -> Answer:
        return Answer(200, claim) if request.path.endswith("claim") else Answer(204, b"")

    server.handle = handle
    told = said(FAILS, "worker", "--once", "--url", server.url, data_dir=str(tmp_path), **settings)
    own_log = [request for request in server.requests if request.path.endswith("/log")]
    assert any(CANARY in request.body.decode() for request in own_log), "the run's own log lost its words"
    return told


def test_no_line_of_a_failed_run_holds_a_prompt_or_the_token(server: Server, tmp_path: Path) -> None:
    told = fail_a_run(server, tmp_path, log_format="json")
    assert CANARY not in told
    assert TOKEN not in told
    lines: list[dict[str, Any]] = [json.loads(line) for line in told.splitlines()]
    assert all({"time", "level", "logger", "event", "message"} <= line.keys() for line in lines)
    run = {"run_id": CLAIM["id"], "attempt": CLAIM["attempt"], "fence": CLAIM["fence"]}
    assert all(run.items() <= line.items() for line in lines)
    events = [line["event"] for line in lines]
    assert (events[0], events[-1]) == ("run_taken", "run_failed")
    assert {"warning", "uncaught"} <= set(events)
    libraries = {line["logger"].partition(".")[0] for line in lines if line["event"] == "library"}
    assert libraries == {"torch", "transformers", "huggingface_hub", "asyncio", "talkative"}
    assert "RuntimeError" in lines[-1]["exception"]
    assert "builtins.ValueError" in lines[-1]["exception"]
    assert "in fails" in lines[-1]["exception"]


def test_lines_for_people_hold_none_either(server: Server, tmp_path: Path) -> None:
    told = fail_a_run(server, tmp_path)
    assert CANARY not in told
    assert TOKEN not in told
    assert f"WARNING trainer.worker [{CLAIM['id']}] the run failed" in told


def test_words_are_there_for_who_looks_for_a_bug(server: Server, tmp_path: Path) -> None:
    told = fail_a_run(server, tmp_path, log_level="debug")
    assert f"\nRuntimeError: No answer to {CANARY}.\n" in told
    assert f"WARNING asyncio [{CLAIM['id']}] {CANARY}" in told
    assert TOKEN not in told
    assert "never asked for" not in told


def test_what_nobody_catches_is_a_line_of_the_log() -> None:
    [line] = said(UNCAUGHT, log_format="json").splitlines()
    assert CANARY not in line
    assert json.loads(line)["event"] == "uncaught"


def test_a_start_that_is_refused_is_a_line_of_the_log(server: Server, tmp_path: Path) -> None:
    server.replay(problem(401, "TokenRefused", "This token is unknown."))
    program = "from rankloop.cli import build; build()()"
    arguments = ("worker", "--once", "--url", server.url)
    [line] = said(program, *arguments, data_dir=str(tmp_path), log_format="json").splitlines()
    assert json.loads(line)["message"] == "This token is unknown."


def test_a_token_with_a_line_break_is_not_quoted(server: Server) -> None:
    with (
        Client(server.url, f"{TOKEN}\nx", retries=Retries(0.0)) as client,
        pytest.raises(Unreachable, match="ProtocolError") as refused,
    ):
        client.claim_run("host-1", ["reward"])
    assert TOKEN not in str(refused.value)
