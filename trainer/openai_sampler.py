"""K different completions of a prompt by a server that speaks OpenAI's chat completions: vLLM, SGLang, `transformers
serve` and others. The server's own chat template makes the prompt; weights and tokenizer are not needed here.

Each completion is a request of its own (`n` is refused or ignored by some servers), at most `concurrent` at a time, and
none is begun before there is room: a slow reader or a slow server holds back the rest. What the server refuses for its
length is refused by name; what fails in passing is asked again.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, cast

import httpx2

from trainer.guarded import AddressRefused, refuse_secrets
from trainer.reporting import storable
from trainer.sampling import MAX_REDRAWS, Completion, FinishReason, Prompt, SampledPrompt, SamplingSettings
from trainer.settings import Endpoint
from trainer.transport import FIRST_PAUSE_SECONDS, Retries

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_PAUSE_SECONDS = 30.0
TIMEOUT_SECONDS = 600.0
"""For one completion: a busy server may keep it waiting in its own queue."""


class EndpointError(Exception):
    """The server can't be used as it is listed, or stopped answering; the message says which."""


class PromptRefused(Exception):
    """The server refused this very prompt."""


@dataclass(frozen=True)
class _Ask:
    """One request: completion `index` of a prompt, at the given seed."""

    prompt: Prompt
    index: int
    seed: int

    @property
    def server_seed(self) -> int:
        """A seed of its own for each completion; servers take 31 bits."""
        name = f"{self.seed}\0{self.prompt.id}\0{self.index}".encode()
        return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1


@dataclass
class _Open:
    """A prompt that is being answered."""

    completions: dict[int, Completion] = field(default_factory=dict)
    num_redraws: int = 0
    num_running: int = 0
    refusal: str | None = None


class OpenAISampler:
    """A `Sampler` whose completions come from a server."""

    def __init__(self, endpoint: Endpoint, *, retries: Retries | None = None) -> None:
        """SettingsError when the endpoint's key is not in the environment."""
        self._endpoint = endpoint
        self._retries = retries or Retries()
        self._key = endpoint.key()
        self._stopping = threading.Event()
        self.num_tokens = 0
        self.seconds = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens a second of waiting for the server, so far; 0 before the first."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    def sample(self, prompts: Sequence[Prompt], *, k: int, settings: SamplingSettings) -> Iterator[SampledPrompt]:
        """K different completions for every prompt, each prompt as soon as it is finished.

        A completion that repeats another one's text is asked for again with the next seeds, `MAX_REDRAWS` times; what
        still repeats then is kept and counted. Raises EndpointError.
        """
        waiting = deque(prompts)
        asks: deque[_Ask] = deque()
        opened: dict[str, _Open] = {}
        running: dict[Future[Completion], _Ask] = {}
        self._stopping.clear()
        pool, http = ThreadPoolExecutor(self._endpoint.concurrent), self._connect()
        try:
            while waiting or asks or running:
                while len(running) < self._endpoint.concurrent and (asks or waiting):
                    if not asks:
                        prompt = waiting.popleft()
                        opened[prompt.id] = _Open()
                        asks.extend(_Ask(prompt, index, settings.seed) for index in range(k))
                    ask = asks.popleft()
                    opened[ask.prompt.id].num_running += 1
                    running[pool.submit(self._complete, http, ask, settings)] = ask
                started = time.perf_counter()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                self.seconds += time.perf_counter() - started
                for future in done:
                    ask = running.pop(future)
                    finished = self._take(future, ask, opened[ask.prompt.id], asks, k)
                    if finished is not None:
                        del opened[ask.prompt.id]
                        yield finished
        finally:
            # Requests that run may end, and are not tried again; the others never begin.
            self._stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            http.close()

    def _take(
        self, future: Future[Completion], ask: _Ask, prompt: _Open, asks: deque[_Ask], k: int
    ) -> SampledPrompt | None:
        """Note an answer; the prompt, when that was its last one."""
        prompt.num_running -= 1
        try:
            completion = future.result()
        except PromptRefused as error:
            prompt.refusal = f"Prompt {ask.prompt.id} was refused by the server: {error}"
        else:
            prompt.completions[ask.index] = completion
            self.num_tokens += completion.num_tokens
        is_waiting = any(other.prompt.id == ask.prompt.id for other in asks)
        if prompt.refusal is not None:
            for other in [other for other in asks if other.prompt.id == ask.prompt.id]:
                asks.remove(other)
            return None if prompt.num_running else SampledPrompt(ask.prompt.id, refusal=prompt.refusal)
        if prompt.num_running or is_waiting or len(prompt.completions) < k:
            return None
        completions = [prompt.completions[index] for index in range(k)]
        repeats = _repeats(completions)
        if repeats and prompt.num_redraws < MAX_REDRAWS:
            prompt.num_redraws += 1
            asks.extendleft(_Ask(ask.prompt, index, completions[index].seed + 1) for index in reversed(repeats))
            return None
        return SampledPrompt(ask.prompt.id, completions, len(repeats))

    # One request

    def _connect(self) -> httpx2.Client:
        return httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(TIMEOUT_SECONDS, connect=10.0),
            limits=httpx2.Limits(max_connections=self._endpoint.concurrent),
            # Who wrote the list of servers meant this one, and its key is for no other.
            follow_redirects=False,
        )

    def _complete(self, http: httpx2.Client, ask: _Ask, settings: SamplingSettings) -> Completion:
        answer = self._post(
            http,
            {
                "model": self._endpoint.model,
                "messages": [{"role": turn["role"], "content": turn["content"]} for turn in ask.prompt.messages],
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "max_tokens": settings.max_new_tokens,
                "seed": ask.server_seed,
                **self._endpoint.extra,
            },
        )
        text, finish_reason, num_tokens = self._read(answer)
        return Completion(ask.prompt.id, ask.index, text, ask.seed, finish_reason, num_tokens, settings)

    def _post(self, http: httpx2.Client, body: Mapping[str, Any]) -> Any:
        """The answer's JSON. What fails in passing is tried again, ever more slowly, for as long as patience lasts."""
        url = f"{self._endpoint.url}/chat/completions"
        deadline = time.monotonic() + self._retries.patience_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            asked_for = 0.0
            try:
                response = http.post(url, json=body, extensions={"trace": refuse_secrets})
                if response.status_code not in RETRIED_STATUSES:
                    return self._checked(response)
                problem = f"HTTP status {response.status_code}: {_message(response)}"
                asked_for = _retry_after(response)
            except AddressRefused as error:
                raise EndpointError(f"The server at {self._endpoint.url} is not asked. {error}") from error
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            seconds = max(asked_for, pause * random.uniform(0.5, 1.0))
            is_over = self._stopping.is_set() or time.monotonic() + seconds > deadline
            if is_over or self._retries.pause(seconds):
                raise EndpointError(f"The server at {self._endpoint.url} does not answer well: {problem}")
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _checked(self, response: httpx2.Response) -> Any:
        status = response.status_code
        if status == 200:
            try:
                return response.json()
            except ValueError as error:
                raise EndpointError(f"The server at {self._endpoint.url} answered no JSON.") from error
        said = _message(response)
        if status in (400, 413, 422) and any(word in said.lower() for word in ("context", "length", "too long")):
            raise PromptRefused(said)
        hint = {
            401: "Check the key that key_env names.",
            403: "Check the key that key_env names.",
            404: "Check url (it ends in /v1 for most servers) and model.",
        }.get(status, "Check the list of models.")
        raise EndpointError(f"The server at {self._endpoint.url} refused ({status}): {said} {hint}")

    def _read(self, answer: Any) -> tuple[str, FinishReason, int]:
        """Text, finish reason and token count. EndpointError when one of them is not there."""
        try:
            choice = answer["choices"][0]
            text, reason = choice["message"]["content"] or "", choice["finish_reason"]
            num_tokens = answer["usage"]["completion_tokens"]
        except (KeyError, IndexError, TypeError) as error:
            raise EndpointError(f"The server at {self._endpoint.url} answered without {error}.") from error
        if reason not in ("stop", "length"):
            raise PromptRefused(f"it ended with finish_reason {reason!r}.")
        if not isinstance(text, str) or type(num_tokens) is not int or num_tokens < 0:
            raise EndpointError(f"The server at {self._endpoint.url} answered no text, or no number of tokens.")
        return storable(text), cast(FinishReason, reason), num_tokens


def _repeats(completions: Sequence[Completion]) -> list[int]:
    """Which completions have an earlier one's text; white space makes no difference to a reader."""
    texts = [" ".join(completion.text.split()) for completion in completions]
    return [index for index, text in enumerate(texts) if text in texts[:index]]


def _retry_after(response: httpx2.Response) -> float:
    """The seconds that the server asks to wait; 0 where it names none, or a date."""
    try:
        return min(max(0.0, float(response.headers.get("Retry-After", "0"))), LONGEST_PAUSE_SECONDS)
    except ValueError:
        return 0.0


def _message(response: httpx2.Response) -> str:
    """What the server says of an error: OpenAI's shape, FastAPI's, or the beginning of the body."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:300]
    if isinstance(body, dict):
        error = body.get("error", body.get("message", body.get("detail", body)))
        body = error.get("message", error) if isinstance(error, dict) else error
    return str(body)[:300]
