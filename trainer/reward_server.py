"""Scores over HTTP, in the shape of OpenRLHF's remote reward model (`--reward.remote_url`, before `--remote_rm_url`).

`POST /get_reward` with `{"query": ["prompt and answer as one text", …], "prompts": ["the prompt's part of it", …],
"labels": […]}` answers `{"rewards": […], "scores": […], "extra_logs": {}}`. Labels are optional and not used; so are
prompts, but by a reward model that reads how likely an answer is (`likelihood_weight`), which needs them. `POST /score`
takes `{"conversations": [{"messages": […], "completion": "…"}]}`. `GET /health` says which version answers.

Requests that come at the same time are scored together. A query is text in which special tokens are special, as
OpenRLHF decodes it; padding at its ends is taken away, and an EOS at its end is kept as it is: an answer without one
was cut. OpenRLHF sends no token of its own; with the address `http://any:TOKEN@host:5000/get_reward`, it does.
"""

from __future__ import annotations

import base64
import hmac
import os
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import RequestResponseEndpoint
from transformers import PreTrainedTokenizerBase

from trainer.config import RewardConfig
from trainer.data import encode_answer
from trainer.preferences import Answer
from trainer.reward_model import RewardModel
from trainer.sampling import encode_prompt
from trainer.scorer import Row, Scorer
from trainer.weights import ModelSource, context_length, load_tokenizer

MOST_BODY_BYTES = 32 * 2**20
MOST_ANSWERS = 4096
"""Of one request."""
MOST_WAITING = 16_384
"""Answers that wait to be scored; more get 503 and may come again."""
ANSWERS_PER_BATCH = 256
TOKEN_VARIABLE = "RANKLOOP_REWARD_TOKEN"  # noqa: S105 (a name, not a secret)
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


class Queries(BaseModel):
    """What OpenRLHF sends; further fields of other versions are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")

    query: Annotated[list[str], Field(max_length=MOST_ANSWERS)]
    prompts: list[Any] | None = None
    labels: list[Any] | None = None


class Turn(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: str
    content: str


class ConversationIn(BaseModel):
    """A conversation and an answer to it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    messages: Annotated[list[Turn], Field(min_length=1)]
    completion: str
    finish_reason: str | None = None


class Conversations(BaseModel):
    """What `/score` takes."""

    model_config = ConfigDict(strict=True, extra="forbid")

    conversations: Annotated[list[ConversationIn], Field(max_length=MOST_ANSWERS)]


class QueueFull(Exception):
    """Too much waits already."""


class Batcher:
    """Scores rows of several requests together: while one batch is computed, the next one gathers."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._lock = threading.Lock()
        self._waiting: list[tuple[Row, Future[float]]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scores")
        self._is_running = False
        self.num_batches = 0

    def submit(self, rows: Sequence[Row]) -> list[Future[float]]:
        """The scores to come, in the order of the rows. Raises QueueFull."""
        futures: list[Future[float]] = [Future() for _ in rows]
        with self._lock:
            if len(self._waiting) + len(rows) > MOST_WAITING:
                raise QueueFull
            self._waiting += zip(rows, futures, strict=True)
            if not self._is_running and self._waiting:
                self._is_running = True
                self._thread.submit(self._run)
        return futures

    def close(self) -> None:
        """End when everything that waits is scored."""
        self._thread.shutdown(wait=True)

    def _run(self) -> None:
        while True:
            with self._lock:
                batch, self._waiting = self._waiting[:ANSWERS_PER_BATCH], self._waiting[ANSWERS_PER_BATCH:]
                if not batch:
                    self._is_running = False
                    return
            self.num_batches += 1
            try:
                with torch.no_grad():
                    scores = self._scorer.scores([row for row, _ in batch]).tolist()
            except Exception as error:  # noqa: BLE001 (whatever it is, those who wait must hear of it)
                for _, future in batch:
                    future.set_exception(error)
            else:
                for (_, future), value in zip(batch, scores, strict=True):
                    future.set_result(value)


def create_app(source: ModelSource, *, token: str | None = None, device: str = "cpu") -> FastAPI:
    """The server of one reward version. With a token, every call but `/health` needs it: as a bearer, or as the
    password of basic authentication.

    ValueError when the version is no reward model.
    """
    model, tokenizer = RewardModel.load(source, device=device), load_tokenizer(source)
    pad_id = int(str(tokenizer.pad_token_id))
    batcher = Batcher(Scorer(model, pad_id=pad_id, config=RewardConfig(cache_megabytes=0)))
    limit = context_length(model.blocks.config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    app = FastAPI(title="Rankloop reward model", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.batcher = batcher

    @app.middleware("http")
    async def bound_body(request: Request, call_next: RequestResponseEndpoint) -> Response:
        """A body must say its length, and stay below the limit."""
        length = request.headers.get("content-length")
        if request.method == "POST" and (length is None or not length.isdecimal()):
            return Response("The request must say its Content-Length.", status_code=411)
        if length is not None and length.isdecimal() and int(length) > MOST_BODY_BYTES:
            return Response(f"The body may have {MOST_BODY_BYTES} bytes at most.", status_code=413)
        return await call_next(request)

    def authorised(request: Request) -> None:
        given = _given_token(request.headers.get("authorization", ""))
        if token and not hmac.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "A bearer token is needed.", headers={"WWW-Authenticate": "Bearer"})

    async def scores_of(rows: Sequence[Row]) -> list[float]:
        for number, (prompt, answer) in enumerate(rows):
            length = len(prompt) + len(answer)
            if not 1 <= length <= limit:
                raise HTTPException(
                    422, f"Answer {number} has {length} tokens with its prompt; from 1 to {limit} can be."
                )
        try:
            futures = batcher.submit(rows)
        except QueueFull as error:
            raise HTTPException(503, "Too many answers wait already.", headers={"Retry-After": "1"}) from error
        found = await run_in_threadpool(lambda: [future.result() for future in futures])
        if any(value - value != 0.0 for value in found):
            raise HTTPException(500, "A score is NaN or infinite.")
        return found

    @app.get("/health")
    def health() -> dict[str, Any]:
        version = source.version.name if source.version else ""
        return {"status": "ok", "model": source.name, "version": version, "score_std": model.score_std}

    @app.post("/get_reward", dependencies=[Depends(authorised)])
    async def get_reward(body: Queries) -> dict[str, Any]:
        found = await scores_of(await run_in_threadpool(_read, tokenizer, body, cuts=model.reads_likelihood))
        return {"rewards": found, "scores": found, "extra_logs": {}}

    @app.post("/score", dependencies=[Depends(authorised)])
    async def score(body: Conversations) -> dict[str, Any]:
        return {"scores": await scores_of(await run_in_threadpool(_encode, tokenizer, body))}

    return app


def _given_token(header: str) -> str:
    """The bearer, or the password of basic authentication; empty where there is none."""
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2] if kind.lower() == "basic" else ""
    except ValueError:
        return ""


def encode_queries(tokenizer: PreTrainedTokenizerBase, queries: Sequence[str]) -> list[list[int]]:
    """Tokens of texts in which special tokens are special, without the padding at their ends."""
    pad_id = int(str(tokenizer.pad_token_id))
    rows: list[list[int]] = []
    for query in queries:
        row = list(tokenizer.encode(query, add_special_tokens=False))
        while row and row[-1] == pad_id:
            row.pop()
        start = next((place for place, token in enumerate(row) if token != pad_id), len(row))
        rows.append(row[start:])
    return rows


def _read(tokenizer: PreTrainedTokenizerBase, body: Queries, *, cuts: bool) -> list[Row]:
    """The rows of a request, whole; or where it `cuts`, each in its prompt and its answer.

    HTTPException 422 where prompts are not as many as queries or, to cut by, not what these begin with.
    """
    if body.prompts is not None and len(body.prompts) != len(body.query):
        raise HTTPException(422, f"prompts: has {len(body.prompts)} texts, and query has {len(body.query)}.")
    rows = encode_queries(tokenizer, body.query)
    if not cuts:
        return [(row, ()) for row in rows]
    texts = [prompt if isinstance(prompt, str) else "" for prompt in body.prompts or [""] * len(rows)]
    cut: list[Row] = []
    for number, (row, prompt) in enumerate(zip(rows, encode_queries(tokenizer, texts), strict=True)):
        if not prompt or row[: len(prompt)] != prompt:
            raise HTTPException(
                422,
                f"prompts: this reward model reads how likely an answer is, and must know where it begins: prompt "
                f"{number} has to be what query {number} begins with. /score needs no such thing.",
            )
        cut.append((prompt, row[len(prompt) :]))
    return cut


def _encode(tokenizer: PreTrainedTokenizerBase, body: Conversations) -> list[Row]:
    return [
        (
            encode_prompt(tokenizer, [turn.model_dump() for turn in item.messages]),
            encode_answer(tokenizer, Answer("", item.completion, item.finish_reason)),
        )
        for item in body.conversations
    ]


def serve(source: ModelSource, *, host: str, port: int, device: str) -> None:
    """Serve until stopped. ValueError where others than this machine could ask without a token."""
    import uvicorn

    token = os.environ.get(TOKEN_VARIABLE, "").strip() or None
    if token is None and host not in LOCAL_HOSTS:
        raise ValueError(f"At {host}, others than this machine can ask: set {TOKEN_VARIABLE} to a secret first.")
    app = create_app(source, token=token, device=device)
    uvicorn.run(app, host=host, port=port, log_level="info", timeout_graceful_shutdown=30)
