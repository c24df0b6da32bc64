"""What this machine's driver says of its GPUs and what torch sees of them, each asked in a process of its own: the web
has no torch, and one that does not fit its driver may hang or crash.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

SECONDS_TO_ANSWER = 60
"""Torch takes ten to be loaded on a busy machine, and a GPU some to wake up."""
GB = 10**9
NONE = "none on this machine; only workers need one"
ASK_DRIVER = ("--query-gpu=name,memory.total", "--format=csv,noheader")
ASK_TORCH = """
import json, torch
devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "rocm": torch.version.hip,
    "devices": [[torch.cuda.get_device_name(device), *torch.cuda.mem_get_info(device)] for device in devices],
}))
"""


class NoAnswer(Exception):
    """A program is here and fails, or takes too long."""


@dataclass(frozen=True)
class Torch:
    """What torch says of itself, and each device that it sees: name, free and total bytes."""

    version: str
    cuda: str | None
    rocm: str | None
    devices: Sequence[tuple[str, int, int]] = ()

    @property
    def build(self) -> str:
        """Its version, and what it was built for."""
        kind = f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.rocm}" if self.rocm else "the CPU alone"
        return f"torch {self.version}, built for {kind}"


def answer(*command: str) -> str:
    """What a program prints. Raises NoAnswer."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=SECONDS_TO_ANSWER, stdin=subprocess.DEVNULL
        ).stdout
    except (subprocess.SubprocessError, OSError) as error:
        raise NoAnswer from error


def ask_driver() -> list[str]:
    """The GPUs with their memory, by nvidia-smi; none where there is no such program. Raises NoAnswer."""
    program = shutil.which("nvidia-smi")
    return answer(program, *ASK_DRIVER).strip().splitlines() if program else []


def ask_torch() -> Torch | None:
    """What torch sees; None where it is not installed. Raises NoAnswer."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        said = json.loads(answer(sys.executable, "-c", ASK_TORCH))
        return Torch(said["version"], said["cuda"], said["rocm"], [tuple(device) for device in said["devices"]])
    except (ValueError, TypeError, KeyError) as error:
        raise NoAnswer from error


def judge(driver: Sequence[str], torch: Torch | None) -> tuple[str, str]:
    """What is to be said of both, and what to do; nothing where all is well."""
    theirs = "; ".join(driver)
    if torch is None:
        return (f"{theirs}; torch is not installed, so no worker runs here" if driver else NONE), ""
    if torch.devices:
        seen = (f"{name} with {free / GB:.1f} of {total / GB:.1f} GB free" for name, free, total in torch.devices)
        return f"{torch.build}, sees {'; '.join(seen)}", ""
    if not driver:
        return f"none on this machine; {torch.build}", ""
    if torch.cuda is None:
        todo = "Install torch's build for a CUDA that is no newer than the one that `nvidia-smi` shows."
        return f"{theirs}, but {torch.build}: workers here leave it alone", todo
    todo = (
        f"Is CUDA_VISIBLE_DEVICES empty? Else update the driver until `nvidia-smi` shows CUDA {torch.cuda} or newer, "
        "or install a build of torch for an older CUDA."
    )
    return f"{theirs}, but {torch.build}, sees none: workers here use the CPU", todo
