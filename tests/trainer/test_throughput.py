"""The throughput benchmark counts FLOPs as torch does, and runs where there is no GPU."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/throughput.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("throughput", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["throughput"] = module
    spec.loader.exec_module(module)
    return module


def test_the_formula_counts_what_torch_counts(script: ModuleType) -> None:
    size = dataclasses.replace(script.TINY, hidden_size=96, num_layers=3)
    tokens, model = torch.arange(20)[None], script.make_model(size)
    # The counter does not know the fused attention of a CPU.
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    # It counts attention as if every token saw all of them.
    assert counter.get_total_flops() == size.forward_flops(20, 20) + size.head_flops(20)


def test_the_size_is_a_billion(script: ModuleType) -> None:
    with torch.device("meta"):
        model = script.make_model(script.BILLION)
    num = sum(parameter.numel() for parameter in model.parameters())
    assert num == pytest.approx(1.04e9, rel=0.01)
    assert script.BILLION.num_multiplying + 32_768 * 2_048 == pytest.approx(num, rel=1e-3)


@pytest.mark.slow
def test_it_runs_without_a_gpu(tmp_path: Path) -> None:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(SCRIPT), "--quick", "--peak-tflops", "0.05", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["reward", "ppo"]
    assert all(0 < row["utilisation"] < 1 and row["tokens_per_second"] > 0 for row in found["rows"])
    assert found["precision"] == "float32"
