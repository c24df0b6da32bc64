"""The only file that speaks to Rankloop: a typed client of `/api/v1` for workers, trainers, `simulate` and `import`.

It retries what may be retried, checks every hash, and turns refusals into exceptions. docs/protocol.md is the contract.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NotRequired, Self, TypedDict, cast

import httpx2

from trainer.transport import (
    OUT_OF_ORDER,
    ApiError,
    ClientError,
    DamagedDownload,
    FenceLost,
    Json,
    Retries,
    Transport,
    Unreachable,
)

__all__ = ["ApiError", "Client", "ClientError", "DamagedDownload", "FenceLost", "Json", "Retries", "Unreachable"]

CHUNK_BYTES = 8 * 1024 * 1024


class ArtifactInfo(TypedDict):
    """A delivered file."""

    name: str
    size: int
    sha256: str


class ModelReference(TypedDict):
    """Where weights come from: a base model's alias, and the files that a run delivered on top of it."""

    version_id: str
    number: int
    kind: str
    alias: str
    files: list[ArtifactInfo]


class Claim(TypedDict):
    """A run that this worker may work on while it holds the fence."""

    id: str
    kind: str
    project_id: str
    project: NotRequired[str]
    fence: int
    attempt: int
    lease_seconds: float
    config: Json


class Progress(TypedDict):
    """How far a run is."""

    step: int
    total: int | None
    message: str
    eta_seconds: float | None


class Heartbeat(TypedDict):
    """What the queue answers to a sign of life."""

    cancel_requested: bool
    lease_seconds: float


class MetricPoint(TypedDict):
    """One point of one curve."""

    step: int
    name: str
    value: float


class LogLine(TypedDict):
    """One line for a run's log; the level is info, warning or error."""

    level: str
    text: str


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class PromptRow(TypedDict):
    """One of a run's frozen prompts."""

    id: str
    messages: list[Message]
    kind: str
    language: str
    split: str
    meta: Json
    num_completions: int


class Page(TypedDict):
    """One page of a list."""

    items: list[Json]
    next_cursor: NotRequired[str | None]


class Client:
    """All calls of `/api/v1`. Safe to share between threads. A context manager that closes its connections."""

    def __init__(self, url: str, token: str, *, retries: Retries | None = None, timeout_seconds: float = 60.0) -> None:
        self.transport = Transport(url, token, retries=retries or Retries(), timeout_seconds=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()

    # Runs, for a worker

    def claim_run(self, worker: str, kinds: Sequence[str]) -> Claim | None:
        """Take the next run that waits, or None. Not repeated: the worker asks again anyway."""
        response = self.transport.send("POST", "/runs:claim", json={"worker": worker, "kinds": list(kinds)}, patience=0)
        return None if response.status_code == 204 else cast(Claim, response.json())

    def claimed(self, claim: Claim) -> ClaimedRun:
        """The calls about a claimed run, each with its fence."""
        return ClaimedRun(self.transport, claim)

    def dataset_rows(self, dataset_id: str, sha256: str | None = None) -> Iterator[Json]:
        """A dataset's frozen rows, in order. With `sha256`, DamagedDownload at the end when they are not those."""
        return self.transport.ndjson(f"/datasets/{dataset_id}/rows", sha256=sha256)

    def corpus_rows(self, corpus_id: str, sha256: str | None = None) -> Iterator[Json]:
        """A corpus's rows in order, checked as `dataset_rows` are."""
        return self.transport.ndjson(f"/corpora/{corpus_id}/rows", sha256=sha256)

    def download_version_file(self, version_id: str, file: ArtifactInfo, target: Path) -> None:
        """Fetch one file of a version to `target`, which appears only when its hash is right."""
        path = f"/versions/{version_id}/artifacts/{file['name']}"
        self.transport.download(path, target, sha256=file["sha256"])

    # Projects, and what is put into them: `project_id` is an id or a short name where it stands in an address

    def list_projects(self) -> list[Json]:
        """All projects that the token may see."""
        return list(self._items("/projects"))

    def get_project(self, project_id: str) -> Json:
        """A project by its id or short name."""
        return _object(self.transport.send("GET", f"/projects/{project_id}"))

    def update_project(self, project_id: str, **changes: Any) -> Json:
        """Change a project's settings; they hold for what comes after."""
        return _object(self.transport.send("PATCH", f"/projects/{project_id}", json=changes))

    def create_project(self, **fields: Any) -> Json:
        """A new project; the fields are those of `POST /projects`."""
        return self._create("/projects", fields)

    def import_prompts(self, project_id: str, lines: Iterable[str | bytes], **options: bool) -> Json:
        """Import prompts, a JSON object a line. Options: `dry_run`, `partial`. Returns what was taken and refused."""
        return self._import(project_id, "prompts", lines, options)

    def import_completions(self, project_id: str, lines: Iterable[str | bytes], **options: bool) -> Json:
        """Import ready answers; as `import_prompts`."""
        return self._import(project_id, "completions", lines, options)

    def import_rankings(self, project_id: str, lines: Iterable[str | bytes], **options: bool) -> Json:
        """Import rankings that were made elsewhere; as `import_prompts`."""
        return self._import(project_id, "rankings", lines, options)

    def import_file(
        self,
        project_id: str,
        kind: str,
        chunks: Iterable[bytes],
        *,
        name: str = "",
        format: str = "auto",
        **options: bool,
    ) -> Json:
        """Stream a file of any format (docs/data.md). Kinds: `prompts`, `completions`, `rankings`, `corpora`."""
        params = {key: "true" for key, value in options.items() if value} | {"format": format}
        headers = {"Content-Type": "application/octet-stream", "Idempotency-Key": str(uuid.uuid4())}
        path = f"/projects/{project_id}/{kind}:import"
        sent = self.transport.send(
            "POST",
            path,
            content=chunks,
            params=params | ({"name": name} if name else {}),
            headers=headers,
            is_idempotent=False,
            patience=0,
        )
        return _object(sent)

    def import_corpus(self, project_id: str, lines: Iterable[str | bytes], *, name: str = "", **options: bool) -> Json:
        """Import texts or conversations to learn from, as one corpus; as `import_prompts`."""
        return self._import(project_id, "corpora", lines, options, name=name)

    def list_corpora(self, project_id: str) -> list[Json]:
        """The project's corpora, newest first."""
        return list(self._items(f"/projects/{project_id}/corpora"))

    def start_run(self, project_id: str, kind: str, **fields: Any) -> Json:
        """Train in another way: `sft`, `dpo`, `best_of_n` or `star`. Fields: `version_id`, `training`."""
        return self._create(f"/projects/{project_id}/runs", {"kind": kind, **fields})

    def list_prompts(self, project_id: str, split: str | None = None) -> Iterator[Json]:
        """The project's prompts, of one split or of all."""
        return self._items(f"/projects/{project_id}/prompts", split=split)

    def completions(self, project_id: str, version_id: str | None = None, split: str | None = None) -> list[Json]:
        """A project's answers with their prompts: by one version or by anybody, in one split or in all."""
        params = _given(project_id=project_id, version_id=version_id, split=split)
        return list(self.transport.ndjson("/completions", params=params))

    # Ranking

    def next_task(self, project_id: str) -> Json | None:
        """The next task of the token's owner, with its lease; the same until it is answered. None: nothing waits."""
        response = self.transport.send("POST", "/tasks:next", json={"project_id": project_id})
        return None if response.status_code == 204 else _object(response)

    def submit_ranking(self, lease_id: str, ranking: Mapping[str, Any]) -> Json:
        """Answer a leased task. The same body again gets the same answer."""
        return _object(self.transport.send("POST", f"/leases/{lease_id}/ranking", json=dict(ranking)))

    def release_lease(self, lease_id: str, reason: str | None = None) -> None:
        """Skip a task: someone else gets it."""
        self.transport.send("POST", f"/leases/{lease_id}:release", json={"reason": reason})

    def list_tasks(self, project_id: str) -> Iterator[Json]:
        """A project's tasks, oldest first."""
        return self._items("/tasks", project_id=project_id)

    def rankings(self, project_id: str) -> list[Json]:
        """A project's rankings in the order in which they were stored, superseded ones too."""
        accepted = {"Accept": "application/x-ndjson"}
        return list(self.transport.ndjson("/rankings", params={"project_id": project_id}, headers=accepted))

    # Accounts

    def create_user(self, **fields: Any) -> Json:
        """A new user; the fields are those of `POST /users`."""
        return self._create("/users", fields)

    def set_member(self, project_id: str, user_id: str, *, role: str) -> None:
        """Give a person a role in a project, in place of the one they had there."""
        self.transport.send("PUT", f"/projects/{project_id}/members/{user_id}", json={"role": role})

    def create_token(self, **fields: Any) -> Json:
        """A new API token, whose secret is in the answer and nowhere else."""
        return self._create("/tokens", fields)

    # Datasets, runs and versions

    def list_datasets(self, project_id: str) -> list[Json]:
        """A project's datasets, newest first."""
        return list(self._items("/datasets", project_id=project_id))

    def create_dataset(self, **fields: Any) -> Json:
        """Freeze a project's current rankings."""
        return self._create("/datasets", fields)

    def export_dataset(
        self,
        dataset_id: str,
        target: Path,
        *,
        progress: Callable[[int], object] | None = None,
        **choices: str,
    ) -> None:
        """Write a dataset to `target`, which appears only when it is complete: its exact lines, or another `format`,
        `file`, `split` … (docs/data.md). A broken download goes on where it broke."""
        self.transport.download(f"/datasets/{dataset_id}/export", target, params=choices, progress=progress)

    def export_report(self, dataset_id: str, **choices: str) -> Json:
        """What such a file holds, and what its format can't hold."""
        return _object(self.transport.send("GET", f"/datasets/{dataset_id}/report", params=choices))

    def list_runs(self, project_id: str) -> list[Json]:
        """A project's runs, newest first."""
        return list(self._items("/runs", project_id=project_id))

    def get_run(self, run_id: str) -> Json:
        """A run with its state, progress and result."""
        return _object(self.transport.send("GET", f"/runs/{run_id}"))

    def run_artifacts(self, run_id: str) -> list[ArtifactInfo]:
        """What a run delivered: its version's files, or the checkpoint of one that is not done."""
        return cast(list[ArtifactInfo], _object(self.transport.send("GET", f"/runs/{run_id}/artifacts"))["items"])

    def cancel_run(self, run_id: str) -> Json:
        """Cancel a run that waits; ask the worker of one that runs to stop."""
        return _object(self.transport.send("POST", f"/runs/{run_id}/cancel"))

    def retry_run(self, run_id: str) -> Json:
        """Queue a failed or cancelled run again; it goes on from its last checkpoint."""
        return _object(self.transport.send("POST", f"/runs/{run_id}/retry"))

    def run_metrics(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """All curves of a run: name -> points (step, value)."""
        curves = _object(self.transport.send("GET", f"/runs/{run_id}/metrics"))
        return {name: [(int(step), float(value)) for step, value in points] for name, points in curves.items()}

    def start_sampling(self, project_id: str) -> Json:
        """Queue a run that draws K answers of the round's policy to every prompt without any in this round."""
        return self._create(f"/projects/{project_id}/sample", {})

    def start_training(
        self, project_id: str, *, reward_start: str | None = None, policy_start: str | None = None
    ) -> Json:
        """Press *Train*: freeze the rankings and queue the reward run; the PPO run follows from it.

        Where they begin, is the project's to say unless it is said here: the reward model `sft` or `live`, the policy
        `round` or `sft`.
        """
        wishes = _given(reward_start=reward_start, policy_start=policy_start)
        return self._create(f"/projects/{project_id}/train", wishes)

    def start_evaluation(self, project_id: str, version_id: str | None = None) -> Json:
        """Queue a run that answers the held-out test prompts, by the live policy or by another version."""
        return self._create(f"/projects/{project_id}/evaluate", _given(version_id=version_id))

    def training_plan(self, project_id: str) -> Json:
        """What *Train* would do now, and how long that would take."""
        return _object(self.transport.send("GET", f"/projects/{project_id}/plan"))

    def list_versions(self, project_id: str) -> list[Json]:
        """A project's versions, newest first."""
        return list(self._items("/versions", project_id=project_id))

    def get_version(self, version_id: str) -> Json:
        """A version with its files."""
        return _object(self.transport.send("GET", f"/versions/{version_id}"))

    def register_version(
        self,
        project_id: str,
        folder: Path,
        *,
        kind: str = "policy",
        parent_id: str | None = None,
        dataset_id: str | None = None,
        training: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Json:
        """Deliver a version that was trained elsewhere: a folder that `from_pretrained` opens, or a PEFT adapter.

        Returns the version. What fails on the way ends its run as `failed`, with the cause.
        """
        given = _given(parent_id=parent_id, dataset_id=dataset_id)
        fields = {"kind": kind, "training": dict(training or {})} | given
        run = self.claimed(cast(Claim, self._create(f"/projects/{project_id}/versions", fields)))
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        for name in names:
            try:
                run.upload(name, folder / name)
            except (ClientError, OSError) as error:
                run.finish("failed", error=f"{name}: {error}")
                raise
        run.finish("finished", result=metrics or {}, artifacts=names)
        number = self.get_run(run.claim["id"])["result"]["version"]["number"]
        return next(item for item in self.list_versions(project_id) if item["number"] == number)

    def create_webhook(self, project_id: str, *, url: str, events: Sequence[str], every: int | None = None) -> Json:
        """Tell an address of a project's events from now on. `secret` is in this answer and never again."""
        return self._create(f"/projects/{project_id}/webhooks", {"url": url, "events": list(events), "every": every})

    def changes(self, project_id: str, since: str | None = None) -> Iterator[Json]:
        """What happened to a project's rankings after the change whose `cursor` was `since`; all of it without one."""
        path = f"/projects/{project_id}/changes"
        return self.transport.ndjson(path, params=_given(since=since), headers={"Accept": "application/x-ndjson"})

    def promote_version(self, version_id: str, reason: str) -> Json:
        """Make a version the live one of its kind."""
        return _object(self.transport.send("POST", f"/versions/{version_id}:promote", json={"reason": reason}))

    # How a call is made

    def _import(
        self,
        project_id: str,
        noun: str,
        lines: Iterable[str | bytes],
        options: Mapping[str, bool],
        **texts: str,
    ) -> Json:
        encoded = (line.encode() if isinstance(line, str) else line for line in lines)
        body = b"".join(line.rstrip(b"\n") + b"\n" for line in encoded)
        params = {name: "true" for name, value in options.items() if value} | texts
        path = f"/projects/{project_id}/{noun}:import"
        return _object(self._create_response(path, content=body, params=params, type_="application/x-ndjson"))

    def _create(self, path: str, fields: Mapping[str, Any]) -> Json:
        body = json.dumps(dict(fields), ensure_ascii=False).encode()
        return _object(self._create_response(path, content=body, params={}, type_="application/json"))

    def _create_response(self, path: str, *, content: bytes, params: Mapping[str, str], type_: str) -> httpx2.Response:
        headers = {"Content-Type": type_, "Idempotency-Key": str(uuid.uuid4())}
        return self.transport.send("POST", path, content=content, params=params, headers=headers, is_idempotent=False)

    def _items(self, path: str, **filters: str | None) -> Iterator[Json]:
        params = _given(**filters)
        while True:
            page = cast(Page, self.transport.send("GET", path, params=params).json())
            yield from page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                return
            params = params | {"cursor": cursor}


class ClaimedRun:
    """The calls of a worker about the run that it claimed. Each raises FenceLost when the run was given to another."""

    def __init__(self, transport: Transport, claim: Claim) -> None:
        self._transport = transport
        self.claim = claim
        self._path = f"/runs/{claim['id']}"
        self._headers = {"Rankloop-Fence": str(claim["fence"])}

    def heartbeat(self, progress: Progress | None) -> Heartbeat:
        """A sign of life. Not repeated: the next one follows soon."""
        return cast(Heartbeat, self._post("heartbeat", {"progress": progress}, patience=0).json())

    def metrics(self, points: Sequence[MetricPoint], *, patience: float | None = None) -> None:
        """Points of curves; the same step and name again overwrites."""
        self._post("metrics", {"points": list(points)}, patience=patience)

    def log(self, lines: Sequence[LogLine], *, patience: float | None = None) -> None:
        """Lines for the run's log."""
        self._post("log", {"lines": list(lines)}, patience=patience)

    def completions(self, completions: Sequence[Mapping[str, Any]]) -> Json:
        """Deliver answers (completion rows of docs/protocol.md); the same (prompt, index) again is harmless."""
        return _object(self._post("completions", {"completions": list(completions)}))

    def prompts(self) -> Iterator[PromptRow]:
        """The run's frozen prompts, in order."""
        rows = self._transport.ndjson(f"{self._path}/prompts", headers=self._headers)
        return cast(Iterator[PromptRow], rows)

    def answers(self) -> Iterator[Json]:
        """What a `judge` run is asked about: prompts with their answers."""
        return self._transport.ndjson(f"{self._path}/answers", headers=self._headers)

    def artifacts(self) -> list[ArtifactInfo]:
        """What this or an earlier attempt delivered."""
        response = self._transport.send("GET", f"{self._path}/artifacts", headers=self._headers)
        return cast(list[ArtifactInfo], response.json()["items"])

    def download(self, file: ArtifactInfo, target: Path) -> None:
        """Fetch one of the run's artifacts to `target`, which appears only when its hash is right."""
        path = f"{self._path}/artifacts/{file['name']}"
        self._transport.download(path, target, sha256=file["sha256"], headers=self._headers)

    def upload(self, name: str, source: Path) -> ArtifactInfo:
        """Deliver a file in chunks, each from where Rankloop says that it is; the last one is verified there."""
        with source.open("rb") as stream:
            file: ArtifactInfo = {
                "name": name,
                "size": os.fstat(stream.fileno()).st_size,
                "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
            }
            try:
                self._put_chunks(file, stream)
            except ApiError as error:
                # A chunk is sent again when its answer was lost. If it was the last one, no file is waiting for it.
                if error.title != OUT_OF_ORDER:
                    raise
                self._put_chunks(file, stream)
        return file

    def finish(
        self,
        state: str,
        *,
        result: Mapping[str, Any] | None = None,
        artifacts: Sequence[str] = (),
        error: str | None = None,
    ) -> None:
        """End the run as `finished`, `failed` or `cancelled`; the same again is harmless."""
        body = {"state": state, "result": result, "artifacts": list(artifacts), "error": error}
        self._post("finish", body)

    def release(self) -> None:
        """Hand the run back to the queue."""
        self._post("release", None)

    def _post(self, verb: str, body: object, *, patience: float | None = None) -> httpx2.Response:
        path = f"{self._path}/{verb}"
        return self._transport.send("POST", path, json=body, headers=self._headers, patience=patience)

    def _put_chunks(self, file: ArtifactInfo, stream: BinaryIO) -> None:
        received, is_complete = 0, False
        while not is_complete:
            stream.seek(received)
            answer = self._put_chunk(file, stream.read(CHUNK_BYTES), received)
            is_complete = bool(answer["complete"])
            if not is_complete and int(answer["received"]) <= received:
                raise ClientError(f"{file['name']}: Rankloop takes no more than {received} of {file['size']} bytes.")
            received = int(answer["received"])

    def _put_chunk(self, file: ArtifactInfo, chunk: bytes, offset: int) -> Json:
        params = {"offset": str(offset), "size": str(file["size"]), "sha256": file["sha256"]}
        headers = self._headers | {"Content-Type": "application/octet-stream"}
        path = f"{self._path}/artifacts/{file['name']}"
        return _object(self._transport.send("PUT", path, content=chunk, params=params, headers=headers))


def _given(**fields: str | None) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value is not None}


def _object(response: httpx2.Response) -> Json:
    return cast(Json, response.json()) if response.content else {}
