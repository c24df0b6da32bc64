"""What the doctor says of GPUs, for every mixture of a driver and a torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.config import Settings
from app.operations import doctor, gpus
from app.operations.gpus import NoAnswer, Torch

H200 = "NVIDIA H200, 143771 MiB"
FOR_THE_CPU = Torch("2.13.0+cpu", None, None)
BLIND = Torch("2.13.0", "13.0", None)
SEEING = Torch("2.13.0", "13.0", None, [("NVIDIA H200", 140_200_000_000, 150_000_000_000)])
SAYS = """#!/bin/sh
printf '%s\\n' '{}'
exit {}
"""


def said(monkeypatch: pytest.MonkeyPatch, driver: list[str], torch: Torch | None) -> doctor.Finding:
    monkeypatch.setattr(gpus, "ask_driver", lambda: driver)
    monkeypatch.setattr(gpus, "ask_torch", lambda: torch)
    return doctor.gpu(Settings())


@pytest.mark.parametrize(
    ("driver", "torch", "words"),
    [
        ([], None, "none on this machine; only workers need one"),
        ([], FOR_THE_CPU, "none on this machine; torch 2.13.0+cpu, built for the CPU alone"),
        ([], BLIND, "none on this machine; torch 2.13.0, built for CUDA 13.0"),
        ([H200], None, f"{H200}; torch is not installed, so no worker runs here"),
        ([H200], SEEING, "torch 2.13.0, built for CUDA 13.0, sees NVIDIA H200 with 140.2 of 150.0 GB free"),
    ],
)
def test_what_is_well_is_one_plain_line(
    monkeypatch: pytest.MonkeyPatch, driver: list[str], torch: Torch | None, words: str
) -> None:
    finding = said(monkeypatch, driver, torch)
    assert (finding.level, finding.said, finding.todo) == ("ok", words, "")


@pytest.mark.parametrize(
    ("torch", "words", "todo"),
    [(FOR_THE_CPU, "built for the CPU alone", "Install torch's build for a CUDA"), (BLIND, "sees none", "CUDA 13.0")],
)
def test_a_gpu_that_torch_does_not_see_has_a_way_out(
    monkeypatch: pytest.MonkeyPatch, torch: Torch, words: str, todo: str
) -> None:
    finding = said(monkeypatch, [H200], torch)
    assert finding.level == "warn"
    assert words in finding.said
    assert todo in finding.todo


def plant(folder: Path, name: str, words: str, status: int = 0) -> str:
    """A program that says so."""
    program = folder / name
    program.write_text(SAYS.format(words, status))
    program.chmod(0o755)
    return str(program)


def test_both_are_read_as_they_print(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(tmp_path, "nvidia-smi", f"{H200}\n{H200}")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpus.ask_driver() == [H200, H200]
    answer = '{"version": "2.13.0", "cuda": "13.0", "rocm": null, "devices": [["NVIDIA H200", 1, 2]]}'
    monkeypatch.setattr(sys, "executable", plant(tmp_path, "python", answer))
    assert gpus.ask_torch() == Torch("2.13.0", "13.0", None, [("NVIDIA H200", 1, 2)])


@pytest.mark.parametrize(("words", "status"), [("", 1), ("", 0), ("no JSON", 0), ("[]", 0)])
def test_a_torch_that_can_not_say_what_it_sees_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, status: int
) -> None:
    monkeypatch.setattr(gpus, "ask_driver", list)
    monkeypatch.setattr(sys, "executable", plant(tmp_path, "python", words, status))
    finding = doctor.gpu(Settings())
    assert finding.level == "warn"
    assert "torch is installed" in finding.said


def test_nobody_waits_for_a_torch_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 20\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(gpus, "SECONDS_TO_ANSWER", 0.2)
    with pytest.raises(NoAnswer) as refused:
        gpus.ask_torch()
    assert isinstance(refused.value.__cause__, subprocess.TimeoutExpired)


def test_a_driver_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(tmp_path, "nvidia-smi", "no devices were found", 6)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert doctor.gpu(Settings()).said == "nvidia-smi is here and fails"


def test_the_torch_that_is_here_answers() -> None:
    pytest.importorskip("torch")
    found = gpus.ask_torch()
    assert found is not None
    assert found.version[0].isdigit()
