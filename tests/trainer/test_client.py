"""The client against a server that is busy, breaks off, loses answers or refuses."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.http_stub import CLAIM, Answer, Received, Server, problem
from trainer import client as client_module
from trainer.client import ApiError, Client, ClientError, DamagedDownload, FenceLost, Retries, Unreachable


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def client(server: Server, pauses: list[float]) -> Iterator[Client]:
    """A client that only notes how long it would wait."""
    with Client(server.url, "rl_secret", retries=Retries(30.0, pauses.append)) as made:
        yield made


def test_every_call_carries_the_token(server: Server, client: Client) -> None:
    client.get_run("1")
    assert server.requests[0].headers["Authorization"] == "Bearer rl_secret"
    assert server.requests[0].path == "/api/v1/runs/1"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: Server, client: Client, pauses: list[float], status: int) -> None:
    server.replay(Answer(status), Answer(status), Answer(200, b'{"state": "queued"}'))
    assert client.get_run("1") == {"state": "queued"}
    assert len(server.requests) == 3
    assert 0.125 <= pauses[0] <= 0.25 <= pauses[1] <= 0.5


def test_retry_after_is_obeyed(server: Server, client: Client, pauses: list[float]) -> None:
    server.replay(Answer(429, headers={"Retry-After": "3"}), Answer())
    client.get_run("1")
    assert pauses == [3.0]


def test_patience_ends(server: Server, client: Client) -> None:
    server.replay(Answer(503, headers={"Retry-After": "31"}))
    with pytest.raises(ApiError, match="Service Unavailable"):
        client.get_run("1")
    assert len(server.requests) == 1


def test_a_pause_that_is_broken_off_ends_the_attempts(server: Server) -> None:
    server.replay(Answer(503))
    with Client(server.url, "", retries=Retries(30.0, lambda _: True)) as client, pytest.raises(ApiError):
        client.get_run("1")
    assert len(server.requests) == 1


def test_a_refusal_is_not_repeated(server: Server, client: Client) -> None:
    server.replay(problem(422, "Invalid", "k: must be 2 to 9", [{"field": "k", "rule": "must be 2 to 9"}]))
    with pytest.raises(ApiError, match="k: must be 2 to 9") as caught:
        client.create_project(k=12)
    assert (caught.value.status, caught.value.title) == (422, "Invalid")
    assert caught.value.errors == [{"field": "k", "rule": "must be 2 to 9"}]
    assert len(server.requests) == 1


def test_what_creates_is_not_sent_twice_when_its_fate_is_unknown(server: Server, client: Client) -> None:
    server.replay(Answer(200, b'{"id": 1}', cut=3))
    with pytest.raises(Unreachable):
        client.create_project(slug="a")
    assert len(server.requests) == 1


def test_what_creates_is_not_sent_twice_past_a_proxy_in_trouble(server: Server, client: Client) -> None:
    server.replay(Answer(502), Answer())
    with pytest.raises(ApiError):
        client.create_project(slug="a")
    assert len(server.requests) == 1


def test_what_creates_has_one_key_for_all_its_attempts(server: Server, client: Client) -> None:
    server.replay(Answer(503), Answer(503), Answer())
    client.create_project(slug="a")
    assert len({request.headers["Idempotency-Key"] for request in server.requests}) == 1


def test_an_unreachable_server_is_named_with_what_to_do() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with (
        Client(url, "", retries=Retries(0.0)) as client,
        pytest.raises(Unreachable, match=rf"does not answer at {url} .*refused.*make run.*RANKLOOP_URL"),
    ):
        client.get_run("1")


def test_a_409_on_the_fence_means_that_the_run_is_lost(server: Server, client: Client) -> None:
    server.replay(problem(409, "FenceLost", "This run was given to another worker."))
    with pytest.raises(FenceLost, match="given to another worker"):
        client.claimed(CLAIM).heartbeat(None)
    assert server.requests[0].headers["Rankloop-Fence"] == "7"


def test_another_409_on_a_run_is_an_ordinary_refusal(server: Server, client: Client) -> None:
    server.replay(problem(409, "Conflict", "This breaks a rule of the database."))
    with pytest.raises(ApiError) as caught:
        client.claimed(CLAIM).release()
    assert not isinstance(caught.value, FenceLost)


def test_a_409_without_a_fence_is_an_ordinary_refusal(server: Server, client: Client) -> None:
    server.replay(problem(409, "Conflict"))
    with pytest.raises(ApiError) as caught:
        client.submit_ranking("lease", {"order": []})
    assert not isinstance(caught.value, FenceLost)


def test_nothing_to_claim_is_none(server: Server, client: Client) -> None:
    server.replay(Answer(204, b""))
    assert client.claim_run("host-1", ["reward"]) is None
    assert json.loads(server.requests[0].body) == {"worker": "host-1", "kinds": ["reward"]}


def test_a_list_is_read_to_its_last_page(server: Server, client: Client) -> None:
    server.replay(
        Answer(200, b'{"items": [{"id": 1}, {"id": 2}], "next_cursor": "c2"}'),
        Answer(200, b'{"items": [{"id": 3}], "next_cursor": null}'),
    )
    assert [item["id"] for item in client.list_prompts("p", split="test")] == [1, 2, 3]
    assert [request.query for request in server.requests] == [{"split": "test"}, {"split": "test", "cursor": "c2"}]


def test_a_broken_stream_goes_on_where_it_broke(server: Server, client: Client) -> None:
    body = json_lines(*({"number": number, "text": "line\u2028separator"} for number in range(2000)))
    server.replay(Answer(200, body, cut=len(body) // 2), Answer(503), Answer(200, body))
    rows = list(client.dataset_rows("d", sha256=hashlib.sha256(body).hexdigest()))
    assert [row["number"] for row in rows] == list(range(2000))
    assert len(server.requests) == 3


def test_rows_that_are_not_the_dataset_are_refused(server: Server, client: Client) -> None:
    server.replay(Answer(200, json_lines({"number": 1})))
    with pytest.raises(DamagedDownload, match="SHA-256"):
        list(client.dataset_rows("d", sha256="0" * 64))


def test_an_import_sends_lines_and_options(server: Server, client: Client) -> None:
    server.replay(Answer(200, b'{"taken": 2}'))
    assert client.import_prompts("p", ['{"prompt": "a"}\n', '{"prompt": "b"}'], dry_run=True, partial=False) == {
        "taken": 2
    }
    request = server.requests[0]
    assert (request.path, request.query) == ("/api/v1/projects/p/prompts:import", {"dry_run": "true"})
    assert request.body == b'{"prompt": "a"}\n{"prompt": "b"}\n'
    assert request.headers["Content-Type"] == "application/x-ndjson"


def json_lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def file_info(name: str, content: bytes) -> client_module.ArtifactInfo:
    return {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_download_appears_whole(server: Server, client: Client, tmp_path: Path) -> None:
    content = bytes(range(256)) * 3000
    server.replay(Answer(200, content, cut=100_000), Answer(200, content))
    target = tmp_path / "cache" / "model.safetensors"
    client.download_version_file("v", file_info("model.safetensors", content), target)
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


def test_a_download_with_the_wrong_hash_leaves_nothing(server: Server, client: Client, tmp_path: Path) -> None:
    server.replay(Answer(200, b"something else"))
    with pytest.raises(DamagedDownload):
        client.download_version_file("v", file_info("model.safetensors", b"weights"), tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 2


class Store:
    """A server that takes chunks as docs/protocol.md says."""

    def __init__(self) -> None:
        self.content = b""
        self.is_complete = False
        self.lost_answers = 0

    def handle(self, request: Received) -> Answer:
        offset, size = int(request.query["offset"]), int(request.query["size"])
        if offset > len(self.content) or (self.is_complete and offset):
            return problem(409, "ChunkOutOfOrder")
        self.content = self.content[:offset] + request.body
        self.is_complete = len(self.content) == size
        body = {"complete": self.is_complete, "received": len(self.content)}
        if self.lost_answers and self.is_complete:
            self.lost_answers -= 1
            return Answer(200, json.dumps(body).encode(), cut=2)
        return Answer(200, json.dumps(body).encode())


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(client_module, "CHUNK_BYTES", 4)
    made = Store()
    server.handle = made.handle
    return made


def test_an_upload_goes_in_chunks(server: Server, client: Client, store: Store, tmp_path: Path) -> None:
    source = tmp_path / "reward.json"
    source.write_bytes(b"0123456789")
    assert client.claimed(CLAIM).upload("reward.json", source) == file_info("reward.json", b"0123456789")
    assert store.content == b"0123456789"
    assert [request.query["offset"] for request in server.requests] == ["0", "4", "8"]


def test_an_empty_file_is_one_empty_chunk(server: Server, client: Client, store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    client.claimed(CLAIM).upload("empty", tmp_path / "empty")
    assert store.is_complete
    assert len(server.requests) == 1


def test_an_upload_whose_last_answer_was_lost_arrives(client: Client, store: Store, tmp_path: Path) -> None:
    store.lost_answers = 1
    (tmp_path / "file").write_bytes(b"0123456789")
    client.claimed(CLAIM).upload("file", tmp_path / "file")
    assert store.content == b"0123456789"


def test_an_upload_that_gets_nowhere_ends(server: Server, client: Client, tmp_path: Path) -> None:
    server.replay(Answer(200, b'{"complete": false, "received": 0}'))
    (tmp_path / "file").write_bytes(b"0123456789")
    with pytest.raises(ClientError, match="no more than 0 of 10 bytes"):
        client.claimed(CLAIM).upload("file", tmp_path / "file")


def test_a_refusal_says_which_field_and_rule() -> None:
    fields = [{"field": "version_id", "rule": "must be a UUID"}]
    assert str(ApiError(422, "", "Some fields can't be taken.", fields, {})) == (
        "Some fields can't be taken. version_id: must be a UUID"
    )
    told = "Nothing was stored: line 1: must be a UUID."
    assert str(ApiError(422, "", told, fields, {})) == told
