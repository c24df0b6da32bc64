"""What a worker says of a failure, how it waits, and what it keeps of models and versions."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.http_stub import CLAIM, Answer, Received, Server, problem
from trainer.artifacts import base_folder, version_folder
from trainer.client import ApiError, Client, ClientError, ModelReference, Retries
from trainer.jobs import HANDLERS, Job, Outcome
from trainer.settings import SettingsError, WorkerSettings
from trainer.worker import Worker, cause_of, without_paths


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, "rl_x", retries=Retries(0.0)) as made:
        yield made


class Waits(threading.Event):
    """Notes how long a worker would wait, and stops it after a few times."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._num = num

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        if len(self.seconds) == self._num:
            self.set()
        return self.is_set()


# Waiting for work


def test_a_worker_asks_less_often_while_nothing_waits(server: Server, client: Client, tmp_path: Path) -> None:
    server.replay(Answer(204, b""))
    waits = Waits(7)
    Worker(client, WorkerSettings(data_dir=tmp_path), waits).run_forever()
    assert waits.seconds[0] == 1.0
    assert waits.seconds == sorted(waits.seconds)
    assert waits.seconds[-1] == 5.0


@pytest.mark.parametrize("answer", [Answer(503), Answer(500), Answer(429)])
def test_a_worker_outlasts_an_app_in_trouble(
    server: Server, client: Client, tmp_path: Path, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    server.replay(answer)
    Worker(client, WorkerSettings(data_dir=tmp_path), Waits(3)).run_forever()
    assert len(server.requests) == 3


def test_a_worker_outlasts_an_app_that_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Server() as gone:
        url = gone.url
    with Client(url, "rl_x", retries=Retries(0.0)) as client:
        Worker(client, WorkerSettings(data_dir=tmp_path), Waits(2)).run_forever()
    assert f"does not answer at {url}" in caplog.text


def test_a_worker_whose_token_is_refused_ends(server: Server, client: Client, tmp_path: Path) -> None:
    server.replay(problem(401, "TokenRefused", "This token is unknown."))
    with pytest.raises(ApiError, match="This token is unknown"):
        Worker(client, WorkerSettings(data_dir=tmp_path), threading.Event()).run_forever()


# The cause of a failure


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("There is no ranking to learn from."), "There is no ranking to learn from."),
        (KeyError("loss"), "KeyError: 'loss'"),
        (AssertionError(), "AssertionError"),
        (SettingsError("The model “x” is not in this worker's list."), "The model “x” is not in this worker's list."),
        (FileNotFoundError(2, "No such file", "/srv/models/x/config.json"), "[Errno 2] No such file: 'config.json'"),
    ],
)
def test_a_cause_is_a_sentence_for_people(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ('File "/home/me/rankloop/trainer/ppo.py", line 3', 'File "ppo.py", line 3'),
        ("the folder /data/models/pocket holds no model", "the folder pocket holds no model"),
        ("the folder /data/models/pocket/ holds", "the folder pocket holds"),
        ("see https://example.test/a/b/c", "see https://example.test/a/b/c"),
        ("3/4 of loss/reward", "3/4 of loss/reward"),
        ("/etc/passwd", "passwd"),
    ],
)
def test_paths_of_the_machine_are_reduced_to_names(text: str, shortened: str) -> None:
    assert without_paths(text) == shortened


def test_a_missing_file_is_said_with_the_models_alias_and_what_to_do(
    server: Server, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_it(job: Job) -> Outcome:
        (tmp_path / "tulip" / "tokenizer.model").read_bytes()
        raise AssertionError

    monkeypatch.setitem(HANDLERS, CLAIM["kind"], open_it)
    models = {"policy": {"alias": "tulip"}, "rewards": [{"alias": "rose"}], "k": 4}
    claim = json.dumps(CLAIM | {"config": models}).encode()
    server.handle = lambda request: Answer(200, claim) if request.path.endswith("claim") else Answer(204, b"")
    assert Worker(client, WorkerSettings(data_dir=tmp_path), threading.Event()).run_once()
    [finish] = [json.loads(request.body) for request in server.requests if request.path.endswith("finish")]
    assert finish["error"] == (
        "The file “tokenizer.model” is missing in the worker's folder “tulip”. If it is of a model, look at the "
        "worker's list of models, or fetch it again (`rankloop model fetch rose` or `rankloop model fetch tulip`). "
        "Then try the run again."
    )


def test_a_worker_without_a_place_for_its_files_says_so_and_goes_on(
    server: Server, client: Client, tmp_path: Path
) -> None:
    place = tmp_path / "a file"
    place.touch()
    claim = json.dumps(CLAIM).encode()
    server.handle = lambda request: Answer(200, claim) if request.path.endswith("claim") else Answer(204, b"")
    assert Worker(client, WorkerSettings(data_dir=place), threading.Event()).run_once()
    [finish] = [json.loads(request.body) for request in server.requests if request.path.endswith("finish")]
    assert finish["state"] == "failed"
    assert "Not a directory" in finish["error"]


# Models and versions


def reference(files: dict[str, bytes]) -> ModelReference:
    infos = [
        {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    ]
    return {"version_id": "v1", "number": 3, "kind": "policy", "alias": "pocket", "files": infos}  # type: ignore[typeddict-item]


def serve_files(server: Server, files: dict[str, bytes]) -> None:
    def handle(request: Received) -> Answer:
        return Answer(200, files[request.path.removeprefix("/api/v1/versions/v1/artifacts/")])

    server.handle = handle


def test_a_version_is_fetched_once(server: Server, client: Client, tmp_path: Path) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    serve_files(server, files)
    settings = WorkerSettings(data_dir=tmp_path)
    for _ in range(2):
        folder = version_folder(reference(files), client, settings)
        assert folder is not None
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert len(server.requests) == 2


def test_a_version_that_lost_a_file_is_fetched_again(server: Server, client: Client, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    serve_files(server, files)
    settings = WorkerSettings(data_dir=tmp_path)
    folder = version_folder(reference(files), client, settings)
    assert folder is not None
    (folder / "model.safetensors").write_bytes(b"w")
    assert version_folder(reference(files), client, settings) == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_a_version_without_files_is_its_base(client: Client, tmp_path: Path) -> None:
    assert version_folder(reference({}), client, WorkerSettings(data_dir=tmp_path)) is None


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "A.json", ""])
def test_a_file_s_name_never_leads_out_of_its_folder(client: Client, tmp_path: Path, name: str) -> None:
    with pytest.raises(ClientError, match="no artifact's name"):
        version_folder(reference({name: b""}), client, WorkerSettings(data_dir=tmp_path))


def test_a_listed_folder_without_a_model_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text(json.dumps({"mine": "weights"}))
    settings = WorkerSettings(data_dir=tmp_path, models=tmp_path / "models.json")
    with pytest.raises(SettingsError, match=r"“mine” is listed as the folder .*weights.*rankloop model fetch mine"):
        base_folder("mine", settings, lambda *_: None)
