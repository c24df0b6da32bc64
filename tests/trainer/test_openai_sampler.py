"""Sampling by an OpenAI-compatible server: a stub that misbehaves as told, and the real `transformers serve`."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from typer.testing import CliRunner

from rankloop.cli import build
from tests.trainer.http_stub import Answer, Received, Server
from tests.trainer.tiny import make_model, make_tokenizer
from trainer import settings
from trainer.artifacts import base_folder
from trainer.jobs import make_sampler
from trainer.openai_sampler import EndpointError, OpenAISampler
from trainer.sampling import Prompt, SampledPrompt, SamplingSettings
from trainer.settings import Endpoint, SettingsError, WorkerSettings
from trainer.transport import Retries

SETTINGS = SamplingSettings(temperature=0.7, top_p=0.9, max_new_tokens=5, seed=11)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.handle = lambda request: said(f"answer {json.loads(request.body)['seed']}")
        yield server


def said(text: str, *, finish_reason: str = "stop", tokens: int = 3) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Answer(body=json.dumps({"choices": [choice], "usage": {"completion_tokens": tokens}}).encode())


def make_prompts(num: int) -> list[Prompt]:
    return [Prompt(f"p{number}", [{"role": "user", "content": f"question {number}"}]) for number in range(num)]


def sampler_of(server: Server, *, patience: float = 5.0, **entry: Any) -> OpenAISampler:
    endpoint = Endpoint.from_entry({"url": f"{server.url}/v1", "model": "m"} | entry)
    return OpenAISampler(endpoint, retries=Retries(patience, lambda seconds: time.sleep(min(seconds, 0.01))))


def sample(sampler: OpenAISampler, num: int, k: int = 2) -> dict[str, SampledPrompt]:
    return {found.prompt_id: found for found in sampler.sample(make_prompts(num), k=k, settings=SETTINGS)}


def test_every_completion_is_a_request_with_the_settings_and_a_seed_of_its_own(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    found = sample(sampler_of(server, key_env="A_KEY", extra={"top_k": 3}), 2, k=3)
    bodies = [json.loads(request.body) for request in server.requests]
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}
    assert {request.headers["Authorization"] for request in server.requests} == {"Bearer secret"}
    assert len(bodies) == len({body["seed"] for body in bodies}) == 6
    # Requests are under way at the same time, and arrive in any order.
    first = min(bodies, key=lambda body: body["messages"][0]["content"]) | {"seed": 0}
    assert first == {
        "model": "m",
        "messages": [{"role": "user", "content": "question 0"}],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 5,
        "seed": 0,
        "top_k": 3,
    }
    completion = found["p1"].completions[2]
    assert (completion.prompt_id, completion.index, completion.seed) == ("p1", 2, 11)
    assert (completion.finish_reason, completion.num_tokens, completion.sampling) == ("stop", 3, SETTINGS)
    assert [c.index for c in found["p0"].completions] == [0, 1, 2]


def test_the_same_seed_asks_the_same(server: Server) -> None:
    one, other = sample(sampler_of(server), 3), sample(sampler_of(server, concurrent=1), 3)
    assert one == other


def test_a_cut_answer_says_so_and_nul_never_gets_through(server: Server) -> None:
    server.replay(said("a\0b", finish_reason="length", tokens=5))
    (completion,) = sample(sampler_of(server), 1, k=1)["p0"].completions
    assert (completion.text, completion.finish_reason, completion.num_tokens) == ("a\ufffdb", "length", 5)


def test_a_repeated_text_is_asked_for_again_with_the_next_seed(server: Server) -> None:
    server.replay(said("same"), said("same "), said("other"))
    found = sample(sampler_of(server, concurrent=1), 1)["p0"]
    assert [c.text for c in found.completions] == ["same", "other"]
    assert [c.seed for c in found.completions] == [11, 12]
    assert found.num_duplicates == 0


def test_a_text_that_always_repeats_is_kept_and_counted(server: Server) -> None:
    server.replay(said("same"))
    found = sample(sampler_of(server), 1, k=3)["p0"]
    assert (len(found.completions), found.num_duplicates) == (3, 2)
    assert len(server.requests) == 3 + 3 * 2


def test_there_are_never_more_requests_at_a_time_than_allowed(server: Server) -> None:
    lock, now, most = threading.Lock(), [0], [0]
    together = threading.Barrier(3)

    def slow(request: Received) -> Answer:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(30)  # nobody is answered before three are there
        with lock:
            now[0] -= 1
        return said(f"answer {json.loads(request.body)['seed']}")

    server.handle = slow
    sample(sampler_of(server, concurrent=3), 9)
    assert most[0] == 3


def test_who_reads_slowly_holds_back_the_requests(server: Server) -> None:
    reading: Any = sampler_of(server, concurrent=2).sample(make_prompts(50), k=1, settings=SETTINGS)
    next(reading)
    time.sleep(0.2)
    assert len(server.requests) <= 3
    reading.close()
    time.sleep(0.1)
    assert len(server.requests) <= 4


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_and_no_key_goes_on(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret")
    with Server() as other:
        server.replay(Answer(status, headers={"Location": f"{other.url}/v1/chat/completions"}))
        with pytest.raises(EndpointError, match=rf"refused \({status}\)"):
            sample(sampler_of(server, key_env="SERVER_KEY"), 1, k=1)
        assert other.requests == []


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "169.254.1.2:80", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518"),
        *("[fe80::1]", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "100.100.100.200"),
        *("metadata.google.internal", "METADATA.google.internal."),
    ],
)
def test_no_server_is_where_clouds_tell_their_secrets(host: str) -> None:
    with pytest.raises(ValueError, match="must not lead to link-local addresses"):
        Endpoint.from_entry({"url": f"http://{host}/v1", "model": "m"})


class Names:
    """A resolver that answers with one address after the other, the last one for ever."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = list(addresses)
        self._resolve = socket.getaddrinfo

    def __call__(self, host: str, *where: Any, **how: Any) -> Any:
        """What the name is said to stand for."""
        assert host == "models.example"
        return self._resolve(self._addresses.pop(0) if len(self._addresses) > 1 else self._addresses[0], *where, **how)


def named(server: Server, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> OpenAISampler:
    """A sampler that asks the server by a name."""
    monkeypatch.setattr(socket, "getaddrinfo", Names(*addresses))
    endpoint = Endpoint.from_entry({"url": f"http://models.example:{urlsplit(server.url).port}/v1", "model": "m"})
    return OpenAISampler(endpoint, retries=Retries(0.0))


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "169.254.1.2", "fe80::1", "fd00:ec2::254", "::ffff:169.254.169.254"]
)
def test_a_name_does_not_lead_to_where_clouds_tell_their_secrets(
    server: Server, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    def no_connection(*_: Any) -> None:
        raise AssertionError("it was connected to")

    monkeypatch.setattr(socket, "create_connection", no_connection)
    with pytest.raises(EndpointError, match=r"models\.example leads to \S+, a link-local address"):
        sample(named(server, monkeypatch, address), 1, k=1)


def test_a_name_that_answers_otherwise_the_second_time_is_told_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The canary's address is a cloud's, and the first answer is not.
    monkeypatch.setattr(settings, "METADATA", {"127.0.0.1"})
    with pytest.raises(EndpointError, match=r"connection leads to 127\.0\.0\.1, a link-local address"):
        sample(named(server, monkeypatch, "127.0.0.2", "127.0.0.1"), 1, k=1)
    assert server.requests == []


def test_a_name_may_lead_to_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(sample(named(server, monkeypatch, "127.0.0.1"), 1, k=1)["p0"].completions) == 1


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "10.0.0.7", "[::1]:8000", "gpu", "192.168.1.2"])
def test_a_server_may_be_on_this_machine_or_network(host: str) -> None:
    assert Endpoint.from_entry({"url": f"http://{host}/v1", "model": "m"}).url == f"http://{host}/v1"


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_fails_in_passing_is_asked_again(server: Server, status: int) -> None:
    server.replay(Answer(status), Answer(status, b"busy"), said("at last"))
    assert sample(sampler_of(server), 1, k=1)["p0"].completions[0].text == "at last"
    assert len(server.requests) == 3


def test_a_broken_connection_is_tried_again(server: Server) -> None:
    whole = said("whole")
    server.replay(Answer(200, whole.body, cut=10), whole)
    assert sample(sampler_of(server), 1, k=1)["p0"].completions[0].text == "whole"


def test_back_off_grows_and_heeds_retry_after(server: Server) -> None:
    pauses: list[float] = []
    answers = [Answer(503)] * 4 + [Answer(429, headers={"Retry-After": "7"}), said("ok")]
    server.replay(*answers)
    endpoint = Endpoint(f"{server.url}/v1", "m")
    sampler = OpenAISampler(endpoint, retries=Retries(1000.0, pauses.append))
    sample(sampler, 1, k=1)
    assert all(0.125 * 2**number <= pause <= 0.25 * 2**number for number, pause in enumerate(pauses[:4]))
    assert pauses[4] == 7.0


def test_patience_ends(server: Server) -> None:
    server.replay(Answer(503, b'{"error": {"message": "overloaded"}}'))
    with pytest.raises(EndpointError, match="does not answer well: HTTP status 503: overloaded"):
        sample(sampler_of(server, patience=0.5), 1)


def test_a_prompt_over_the_context_is_refused_by_name_and_the_others_go_on(server: Server) -> None:
    def handle(request: Received) -> Answer:
        if b"question 1" in request.body:
            return Answer(400, b'{"error": {"message": "maximum context length is 10 tokens"}}')
        return said(f"answer {json.loads(request.body)['seed']}")

    server.handle = handle
    found = sample(sampler_of(server, concurrent=1), 3, k=3)
    assert found["p1"].refusal == "Prompt p1 was refused by the server: maximum context length is 10 tokens"
    assert found["p1"].completions == []
    assert [len(found[name].completions) for name in ("p0", "p2")] == [3, 3]
    assert len(server.requests) == 7  # the refused one is not asked again


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(401, b'{"error": {"message": "no key"}}'), r"refused \(401\): no key Check the key"),
        (Answer(404, b'{"detail": "no such model"}'), r"refused \(404\): no such model Check url"),
        (Answer(422, b'{"detail": "top_k is unknown"}'), r"refused \(422\): top_k is unknown"),
        (Answer(200, b"<html>"), "answered no JSON"),
        (Answer(200, b'{"choices": []}'), "answered without list index out of range"),
        (Answer(200, said("x").body.replace(b'"usage"', b'"used"')), "answered without 'usage'"),
    ],
)
def test_a_server_that_can_not_be_used_is_named(server: Server, answer: Answer, message: str) -> None:
    server.replay(answer)
    with pytest.raises(EndpointError, match=message):
        sample(sampler_of(server), 3)


def test_an_answer_that_was_filtered_is_a_refusal(server: Server) -> None:
    server.replay(said("", finish_reason="content_filter"))
    assert "content_filter" in str(sample(sampler_of(server), 1)["p0"].refusal)


# --- The list of models ---


def listed(tmp_path: Path, entry: str) -> WorkerSettings:
    (tmp_path / "models.toml").write_text(f"[models]\nremote = {entry}\n")
    return WorkerSettings(models=tmp_path / "models.toml", data_dir=tmp_path)


def test_an_alias_may_name_a_server(tmp_path: Path) -> None:
    settings = listed(tmp_path, '{url = "http://gpu:8000/v1/", model = "org/m", concurrent = 32}')
    assert settings.find_model("remote").endpoint == Endpoint("http://gpu:8000/v1", "org/m", None, 32, {})
    with pytest.raises(SettingsError, match=r"listed as a server \(http://gpu:8000/v1\): it samples"):
        base_folder("remote", settings, lambda *_: None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('{url = "http://gpu:8000/v1"}', "“remote”: model must be the name"),
        ('{url = "file:///etc", model = "m"}', "url must be an address"),
        ('{url = "http://me:secret@gpu/v1", model = "m"}', "without a user or a key in it"),
        ('{url = "http://gpu", model = "m", concurrent = 0}', "concurrent must be a whole number"),
        ('{url = "http://gpu", model = "m", key = "x"}', "key is not known; known are url, model, key_env"),
        ('{url = "http://gpu", model = "m", extra = 3}', "extra must be an object"),
    ],
)
def test_a_bad_entry_is_named_with_its_rule(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        listed(tmp_path, entry).listed_models()


def test_a_key_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(SettingsError, match="NO_SUCH_KEY"):
        OpenAISampler(Endpoint("http://gpu/v1", "m", "NO_SUCH_KEY"))


@dataclass
class _Job:
    """What `make_sampler` looks at."""

    settings: WorkerSettings


def test_a_run_samples_by_the_server_that_its_alias_names(server: Server, tmp_path: Path) -> None:
    settings = listed(tmp_path, f'{{url = "{server.url}/v1", model = "m"}}')
    reference = {"version_id": "v", "number": 1, "kind": "policy", "alias": "remote", "files": []}
    sampler = make_sampler(_Job(settings), reference)
    (found,) = sampler.sample(make_prompts(1), k=2, settings=SETTINGS)
    assert len(found.completions) == 2
    trained = reference | {"number": 4, "files": [{"name": "model.safetensors", "size": 1, "sha256": ""}]}
    with pytest.raises(SettingsError, match="Version 4 has weights of its own, and “remote” is listed as a server"):
        make_sampler(_Job(settings), trained)


def test_the_command_line_samples_by_a_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(tmp_path, f'{{url = "{server.url}/v1", model = "m"}}')
    monkeypatch.setenv("RANKLOOP_MODELS", str(tmp_path / "models.toml"))
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    result = CliRunner().invoke(build(), ["sample", str(prompts), "--model", "remote", "--k", "3", "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(row["completions"]) for row in rows] == [3, 3]
    assert rows[0]["completions"][0]["model"] == "remote"


# --- A real server ---


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """`transformers serve` with a tiny model that draws."""
    if importlib.util.find_spec("openai") is None:
        pytest.skip("transformers serve needs the package openai (extra `dev`)")
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = make_tokenizer(("a", "b", "c", "d", "user:", "assistant:"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}{{ 'assistant:' }}"
    )
    model = make_model(tokenizer, context=2048)
    # The server takes temperature and top_p from a request, but whether to draw at all from the model.
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder.parent / "serve.log"
    program = str(Path(sys.executable).parent / "transformers")
    arguments = [program, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("wb") as stream:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(arguments, stdout=stream, stderr=stream, env=environment)
        try:
            deadline = time.monotonic() + 120
            while not _is_healthy(port):
                assert process.poll() is None, log.read_text(errors="replace")[-3000:]
                assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
                time.sleep(0.2)
            yield Endpoint(f"http://127.0.0.1:{port}/v1", str(folder), concurrent=4)
        finally:
            process.terminate()
            process.wait()


def _is_healthy(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2.0).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.slow
def test_transformers_serve_answers(transformers_serve: Endpoint) -> None:
    sampler = OpenAISampler(transformers_serve)
    settings = SamplingSettings(max_new_tokens=8, seed=3)
    prompts = [Prompt(f"p{number}", [{"role": "user", "content": "a b"}]) for number in range(6)]
    found = list(sampler.sample(prompts, k=3, settings=settings))
    assert {item.prompt_id for item in found} == {prompt.id for prompt in prompts}
    completions = [completion for item in found for completion in item.completions]
    assert all(item.refusal is None and len(item.completions) == 3 for item in found)
    assert all(1 <= completion.num_tokens <= 8 for completion in completions)
    assert {completion.finish_reason for completion in completions} <= {"stop", "length"}
    assert all(len(c.text.split()) <= 8 and "<eos>" not in c.text for c in completions)
    # They are drawn: the same question is answered in many ways.
    assert len({completion.text for completion in completions}) > 6
    assert sampler.num_tokens >= sum(completion.num_tokens for completion in completions)
    assert sampler.tokens_per_second > 0
