"""The reward server: the scores of the model, in the shape of OpenRLHF's client, together, bounded, behind a token."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from tests.trainer.tiny import save_tiny
from trainer import reward_server
from trainer.preferences import Answer
from trainer.reward_model import RewardModel
from trainer.reward_server import create_app, serve
from trainer.scorer import score
from trainer.weights import ModelSource, load_tokenizer

MESSAGES = [{"role": "user", "content": "a b"}]
ANSWERS = ["c", "a a a", "d b c a", "b"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    base = save_tiny(tmp_path_factory.mktemp("models") / "tiny")
    folder = tmp_path_factory.mktemp("models") / "reward"
    model = RewardModel.from_sft(ModelSource(base), None, seed=3)
    with torch.no_grad():
        model.head.bias.fill_(0.5)
    model.save(folder)
    return ModelSource(base, folder)


@pytest.fixture
def client(source: ModelSource) -> Iterator[TestClient]:
    with TestClient(create_app(source)) as client:
        yield client


def expected(source: ModelSource, finish_reason: str = "stop") -> list[float]:
    asked = [(MESSAGES, Answer("", text, finish_reason)) for text in ANSWERS]
    return score(RewardModel.load(source), load_tokenizer(source), asked)


def queries(end: str = " <eos>") -> list[str]:
    return [f"User: a b\nAssistant: {text}{end}" for text in ANSWERS]


def test_openrlhf_gets_the_scores_of_the_model(client: TestClient, source: ModelSource) -> None:
    asked = {"query": queries(), "prompts": ["User: a b\nAssistant:"] * 4, "labels": [None] * 4}
    answer = client.post("/get_reward", json=asked)
    assert answer.status_code == 200
    assert answer.json()["rewards"] == pytest.approx(expected(source), abs=1e-5)
    assert answer.json()["scores"] == answer.json()["rewards"]
    assert len(set(answer.json()["rewards"])) == 4
    # What versions of OpenRLHF before labels and prompts send.
    assert client.post("/get_reward", json={"query": queries()}).json() == answer.json()


def test_padding_is_taken_away_and_an_answer_without_eos_was_cut(client: TestClient, source: ModelSource) -> None:
    padded = [f"<pad> <pad> {query} <pad>" for query in queries()]
    found = client.post("/get_reward", json={"query": padded}).json()["rewards"]
    assert found == pytest.approx(expected(source), abs=1e-5)
    cut = client.post("/get_reward", json={"query": queries(end="")}).json()["rewards"]
    assert cut == pytest.approx(expected(source, "length"), abs=1e-5)


def test_conversations_are_scored_as_the_trainer_scores_them(client: TestClient, source: ModelSource) -> None:
    rows = [{"messages": MESSAGES, "completion": text} for text in ANSWERS]
    assert client.post("/score", json={"conversations": rows}).json()["scores"] == pytest.approx(
        expected(source), abs=1e-5
    )
    cut = [row | {"finish_reason": "length"} for row in rows]
    found = client.post("/score", json={"conversations": cut}).json()["scores"]
    assert found == pytest.approx(expected(source, "length"), abs=1e-5)


def test_nothing_asked_is_nothing_answered(client: TestClient) -> None:
    assert client.post("/get_reward", json={"query": []}).json()["rewards"] == []


def test_requests_at_the_same_time_are_scored_together(source: ModelSource) -> None:
    app = create_app(source)
    batcher = app.state.batcher
    scores, gate = batcher._scorer.scores, threading.Event()

    def slow(rows: Any) -> Any:
        gate.wait(60)
        return scores(rows)

    batcher._scorer.scores = slow
    with TestClient(app) as client, ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(client.post, "/get_reward", json={"query": [queries()[n % 4]]}) for n in range(12)]
        deadline = time.monotonic() + 60
        while len(batcher._waiting) < 11 and time.monotonic() < deadline:
            time.sleep(0.01)
        gate.set()
        found = [answer.result().json()["rewards"][0] for answer in answers]
    assert batcher.num_batches == 2  # the first one alone, then all that came meanwhile
    assert found == pytest.approx(expected(source) * 3, abs=1e-5)


def test_an_error_reaches_all_who_wait(source: ModelSource) -> None:
    app = create_app(source)

    def broken(rows: Any) -> Any:
        raise RuntimeError("out of memory")

    with TestClient(app, raise_server_exceptions=False) as client:
        scores, app.state.batcher._scorer.scores = app.state.batcher._scorer.scores, broken
        assert client.post("/get_reward", json={"query": queries()}).status_code == 500
        app.state.batcher._scorer.scores = scores
        assert client.post("/get_reward", json={"query": queries()}).status_code == 200


def test_a_score_that_is_not_finite_is_an_error(source: ModelSource) -> None:
    app = create_app(source)
    app.state.batcher._scorer.scores = lambda rows: torch.full((len(rows),), float("nan"))
    with TestClient(app) as client:
        assert client.post("/get_reward", json={"query": queries()}).json() == {"detail": "A score is NaN or infinite."}


def test_a_token_is_asked_for(source: ModelSource) -> None:
    basic = base64.b64encode(b"any:secret").decode()
    with TestClient(create_app(source, token="secret")) as client:
        statuses = [
            client.post("/get_reward", json={"query": queries()}, headers=headers).status_code
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "Basic c2Vj"},
                {"Authorization": "Basic ?"},
                {"Authorization": "secret"},
                {"Authorization": "Bearer secret"},
                {"Authorization": f"Basic {basic}"},
            )
        ]
        assert statuses == [401, 401, 401, 401, 401, 200, 200]
        assert client.get("/health").json()["status"] == "ok"


def test_bodies_and_queues_are_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_server, "MOST_WAITING", 3)
    full = client.post("/get_reward", json={"query": queries()})
    assert (full.status_code, full.headers["Retry-After"]) == (503, "1")
    monkeypatch.setattr(reward_server, "MOST_BODY_BYTES", 20)
    assert client.post("/get_reward", json={"query": queries()}).status_code == 413
    assert client.post("/get_reward", content=iter([b"{}"])).status_code == 411


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": ["a " * 70]}, "Answer 0 has 70 tokens with its prompt; from 1 to 64 can be"),
        ({"query": ["a", "<pad>"]}, "Answer 1 has 0 tokens"),
        ({"query": ["a", "b"], "prompts": ["a"]}, "prompts: has 1 texts, and query has 2"),
        ({"query": "a"}, "list"),
        ({"query": [3]}, "string"),
        ({}, "required"),
        ({"query": ["a"] * 4097}, "at most 4096"),
    ],
)
def test_a_bad_request_is_told_why(client: TestClient, body: Any, message: str) -> None:
    answer = client.post("/get_reward", json=body)
    assert answer.status_code == 422
    assert message in answer.text


def test_a_policy_is_no_reward_model(source: ModelSource) -> None:
    with pytest.raises(ValueError, match="is no reward model"):
        create_app(ModelSource(source.base, source.base))


def test_others_than_this_machine_need_a_token(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKLOOP_REWARD_TOKEN", raising=False)
    with pytest.raises(ValueError, match="set RANKLOOP_REWARD_TOKEN"):
        # Not this machine's address (RFC 5737): a server that would start ends at once.
        serve(source, host="192.0.2.1", port=5000, device="cpu")
