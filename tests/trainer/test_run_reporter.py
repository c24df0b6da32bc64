"""What a run's own thread sends, and how it bears an app that is away."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.trainer.http_stub import CLAIM, Answer, Received, Server, problem
from trainer.client import Client, FenceLost, Retries
from trainer.run_reporter import RunReporter

BEAT = Answer(200, b'{"cancel_requested": false, "lease_seconds": 45}')


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        running.handle = lambda request: BEAT if request.path.endswith("heartbeat") else Answer(204, b"")
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, "rl_x", retries=Retries(5.0, lambda seconds: time.sleep(seconds / 100))) as made:
        yield made


def reporter(client: Client, *, lease_seconds: float = 45, is_stopping: bool = False) -> RunReporter:
    claim = CLAIM | {"lease_seconds": lease_seconds}
    return RunReporter(client.claimed(claim), lambda: is_stopping, tick_seconds=0.01)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for half a minute"
        time.sleep(0.01)


def sent(server: Server, verb: str, key: str) -> list[object]:
    bodies = [json.loads(request.body) for request in server.requests if request.path.endswith(verb)]
    return [item for body in bodies for item in body[key]]


def test_the_lease_is_kept_at_a_third_of_its_time(server: Server, client: Client) -> None:
    server.handle = lambda _: Answer(200, b'{"cancel_requested": false, "lease_seconds": 0.3}')
    began = time.monotonic()
    with reporter(client, lease_seconds=0.3):
        wait_for(lambda: len(server.requests) >= 4)
        seconds = time.monotonic() - began
        assert len(server.requests) <= seconds / 0.1 + 1


def test_a_cancel_request_is_heard(server: Server, client: Client) -> None:
    server.handle = lambda _: Answer(200, b'{"cancel_requested": true, "lease_seconds": 45}')
    with reporter(client) as report:
        report.progress(1, 10, "")
        wait_for(lambda: report.is_cancelled)
        assert report.should_stop()


def test_a_worker_that_shuts_down_stops_its_run(client: Client) -> None:
    assert reporter(client, is_stopping=True).should_stop()
    assert not reporter(client).should_stop()


def test_metrics_and_lines_arrive_in_order(server: Server, client: Client) -> None:
    with reporter(client) as report:
        for step in range(3):
            report.metrics(step, {"loss/reward": 0.5 + step})
            report.log("info", f"line {step}\0")
        report.flush()
    assert sent(server, "metrics", "points") == [
        {"step": step, "name": "loss/reward", "value": 0.5 + step} for step in range(3)
    ]
    assert sent(server, "log", "lines") == [{"level": "info", "text": f"line {step}\ufffd"} for step in range(3)]


def test_a_metric_that_is_no_number_is_said_in_the_log(server: Server, client: Client) -> None:
    with reporter(client) as report:
        report.metrics(4, {"loss/reward": math.nan, "accuracy/train": 0.5})
        report.flush()
    assert sent(server, "metrics", "points") == [{"step": 4, "name": "accuracy/train", "value": 0.5}]
    assert sent(server, "log", "lines") == [{"level": "warning", "text": "loss/reward is nan at step 4."}]


def test_the_time_that_is_left_follows_from_the_pace(server: Server, client: Client) -> None:
    report = reporter(client)
    began = time.monotonic()
    report.progress(0, 4, "")
    time.sleep(0.2)
    report.progress(1, 4, "")
    seconds = time.monotonic() - began
    with report:
        wait_for(lambda: server.requests)
    progress = json.loads(server.requests[0].body)["progress"]
    assert (progress["step"], progress["total"]) == (1, 4)
    assert 3 * 0.2 <= progress["eta_seconds"] <= 3 * seconds


def test_reports_wait_while_the_app_is_away(server: Server, client: Client) -> None:
    is_away = True
    answer_well = server.handle
    server.handle = lambda request: Answer(503) if is_away else answer_well(request)
    with reporter(client) as report:
        report.log("info", "said while nobody listened")
        wait_for(lambda: len(server.requests) > 2)
        assert not report.should_stop()
        is_away = False
        server.requests.clear()
        wait_for(lambda: sent(server, "log", "lines"))
    assert sent(server, "log", "lines") == [{"level": "info", "text": "said while nobody listened"}]


def test_a_lost_fence_stops_the_run(server: Server, client: Client) -> None:
    server.handle = lambda _: problem(409, "FenceLost")
    with reporter(client) as report:
        report.log("info", "too late")
        wait_for(lambda: report.is_fence_lost)
        assert report.should_stop()
        with pytest.raises(FenceLost):
            report.flush()


def test_a_sign_of_life_that_crosses_the_finish_is_no_loss(
    server: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    is_under_way, is_finished = threading.Event(), threading.Event()

    def handle(request: Received) -> Answer:
        if request.path.endswith("finish"):
            is_finished.set()
            return Answer(204, b"")
        is_under_way.set()
        assert is_finished.wait(20)
        return problem(409, "FenceLost")

    server.handle = handle
    with reporter(client, lease_seconds=0.01) as report:
        assert is_under_way.wait(20)
        report.finish("finished")
    assert not report.is_fence_lost
    assert "is lost" not in caplog.text


def test_nothing_that_goes_wrong_silences_a_run(
    server: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.replay(Answer(200, b"no JSON"), Answer(200, b"[]"), Answer(200, b"no JSON"), BEAT)
    with reporter(client, lease_seconds=0.01) as report:
        wait_for(lambda: len(server.requests) == 4)
        assert not report.is_fence_lost
    assert "a report can't be sent" in caplog.text


def test_half_a_character_is_sent_as_what_can_be_stored(server: Server, client: Client) -> None:
    with reporter(client) as report:
        report.log("info", "half \ud83d of one")
        report.flush()
    assert sent(server, "log", "lines") == [{"level": "info", "text": "half ? of one"}]


def test_a_report_that_is_refused_does_not_hold_up_the_next(server: Server, client: Client) -> None:
    def handle(request: Received) -> Answer:
        return problem(422, "Invalid") if request.path.endswith("metrics") else Answer(204, b"")

    server.handle = handle
    with reporter(client) as report:
        report.metrics(1, {"Bad Name": 1.0})
        report.log("info", "good")
        report.flush()
    assert sent(server, "log", "lines") == [{"level": "info", "text": "good"}]
