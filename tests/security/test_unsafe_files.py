"""A folder of malicious checkpoints: whatever a version's folder holds, nothing in it is run. Only safetensors and JSON
are read (torch CVE-2025-32434, transformers CVE-2026-1839, vLLM CVE-2025-66448, MLflow CVE-2024-37052).
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the extra `trainer` is not installed")

from tests.trainer.http_stub import CLAIM, Answer, Received, Server
from tests.trainer.tiny import save_tiny
from trainer.client import Client, Retries
from trainer.settings import WorkerSettings
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer
from trainer.worker import Worker

CODE = "from pathlib import Path\nPath({canary!r}).touch()\nclass Evil: pass\n"


class Touch:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "base")


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def torch_zip(path: Path, canary: Path) -> None:
    """A file as torch.save writes it, with the pickle inside."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Touch(canary)))
        archive.writestr("archive/version", "3\n")


def only_a_pickle(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(canary)))


def only_a_torch_file(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch_zip(folder / "pytorch_model.bin", canary)


def a_pickle_called_safetensors(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Touch(canary)))


def an_index_that_leads_to_a_pickle(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch_zip(folder / "weights.bin", canary)
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "weights.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def code_of_its_own(folder: Path, canary: Path) -> None:
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
    auto_map = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil")
    change_json(folder / "config.json", auto_map=auto_map, model_type="evil", architectures=["Evil"])


def code_beside_a_known_type(folder: Path, canary: Path) -> None:
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"}, trust_remote_code=True)


def kernels_from_a_hub(folder: Path, canary: Path) -> None:
    change_json(folder / "config.json", attn_implementation="evil/kernel", _attn_implementation="evil/kernel")


def an_adapter_that_is_a_pickle(folder: Path, canary: Path) -> None:
    torch_zip(folder / "adapter_model.bin", canary)
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
    config = {"peft_type": "LORA", "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}}
    (folder / "adapter_config.json").write_text(json.dumps(config))


HARMS = [
    only_a_pickle,
    only_a_torch_file,
    a_pickle_called_safetensors,
    an_index_that_leads_to_a_pickle,
    code_of_its_own,
    code_beside_a_known_type,
    kernels_from_a_hub,
    an_adapter_that_is_a_pickle,
]
# These hold whole weights besides, which are loaded as if nothing else were there.
HARMLESS = {code_beside_a_known_type}
# Where the library that would fetch it is not installed, transformers fails by itself, in other words.
REFUSED_BY_US = {kernels_from_a_hub: "names attention code on a hub"}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_no_weights_run_anything(
    tmp_path: Path, base: Path, canary: Path, harm: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = save_tiny(tmp_path / "version", seed=1)
    harm(version, canary)
    monkeypatch.chdir(version)
    source = ModelSource(base, version)
    if harm in HARMLESS:
        load_causal_lm(source)
    else:
        # Of whatever kind: the worker lives on, and the page of the run has the words.
        with pytest.raises(Exception, match=REFUSED_BY_US.get(harm, r"\w")):
            load_causal_lm(source)
    assert not canary.exists()


@pytest.mark.parametrize("harm", [only_a_pickle, a_pickle_called_safetensors, an_adapter_that_is_a_pickle])
def test_a_worker_fails_the_run_with_the_cause_and_lives_on(
    tmp_path: Path, base: Path, canary: Path, harm: Callable[[Path, Path], None]
) -> None:
    version = save_tiny(tmp_path / "version", seed=1)
    harm(version, canary)
    files = {path.name.lower(): path.read_bytes() for path in version.iterdir() if path.is_file()}
    claims, finished = [json.dumps(sampling_from(files)).encode()], []

    def handle(request: Received) -> Answer:
        last = request.path.partition("?")[0].rpartition("/")[2]
        if last == "runs:claim":
            return Answer(200, claims.pop()) if claims else Answer(204, b"")
        finished.extend([json.loads(request.body)] if last == "finish" else [])
        prompt = {"id": "p", "messages": [{"role": "user", "content": "a"}], "num_completions": 0}
        return Answer(200, files.get(last, json.dumps(prompt).encode() + b"\n"))

    models = tmp_path / "models.json"
    models.write_text(json.dumps({"tiny": str(base)}))
    settings = WorkerSettings(data_dir=tmp_path / "data", models=models)
    with Server() as server, Client(server.url, "rl_x", retries=Retries(0.0)) as client:
        server.handle = handle
        worker = Worker(client, settings, threading.Event())
        assert worker.run_once()
        assert not worker.run_once(), "it asks for the next"
    assert [end["state"] for end in finished] == ["failed"]
    assert re.search("“tiny”.*safetensors|adapter_model", finished[0]["error"]), finished
    assert not canary.exists()


def sampling_from(files: dict[str, bytes]) -> Mapping[str, Any]:
    """A claimed run that samples from a version of these files."""
    infos = [
        {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    ]
    policy = {"version_id": "v1", "number": 2, "kind": "policy", "alias": "tiny", "files": infos}
    return CLAIM | {"kind": "sample", "config": {"policy": policy, "k": 2, "sampling": {"max_new_tokens": 4}}}


def test_no_tokenizer_runs_anything(base: Path, canary: Path) -> None:
    (base / "evil.py").write_text(CODE.format(canary=str(canary)))
    change_json(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    load_tokenizer(ModelSource(base))
    assert not canary.exists()


def test_the_canary_sings(tmp_path: Path, canary: Path) -> None:
    """The same pickle, loaded as it must never be."""
    pickle.loads(pickle.dumps(Touch(canary)))
    assert canary.exists()
