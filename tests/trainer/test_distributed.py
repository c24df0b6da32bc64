"""Two processes (gloo) give the weights and the figures of one, whatever doesn't divide evenly."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.models.llama.modeling_llama import LlamaMLP

from tests.trainer import two_processes
from tests.trainer.tiny import make_positional_model, make_tokenizer, save_tiny
from trainer.distributed import World, add_up, joined, part_of, put_together, world
from trainer.fitting import require_plain_saving
from trainer.weights import ModelSource, compute_in_bfloat16, load_causal_lm, products_dtype

# A machine that much else uses takes minutes for what takes one by itself.
pytestmark = pytest.mark.timeout(1200)
ROOT = Path(__file__).resolve().parents[2]
GATE = 1e-6
COMPARED = [name for name in two_processes.TRAININGS if not name.startswith("resumed")]


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launch, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    # Its blocks have other names, of which transformers has no plan by itself.
    make_positional_model(make_tokenizer(), seed=0).save_pretrained(folder / "gpt2")
    return save_tiny(folder / "tiny", spread=0.1)


@pytest.fixture(scope="module")
def outs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of all trainings, by one process and by two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    names = list(two_processes.TRAININGS)
    two_processes.run([name for name in names if not name.startswith("resumed")], base, one)
    done = torchrun(str(ROOT / "tests/trainer/two_processes.py"), str(base), str(two), *names)
    assert done.returncode == 0, done.stderr
    return one, two


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{p.name}/{name}": t for p in sorted(folder.glob("*.safetensors")) for name, t in load_file(p).items()}


def numbers(value: Any) -> list[float]:
    """All numbers of a JSON value, in order."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize("name", COMPARED)
def test_two_processes_learn_what_one_learns(name: str, outs: tuple[Path, Path], base: Path) -> None:
    one, two = (weights(out / name) for out in outs)
    start = weights(base)
    assert one.keys() == two.keys()
    assert one
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=0, atol=GATE)
    moved = [key for key in one if key in start and not torch.equal(one[key], start[key])]
    assert moved or not set(one) & set(start)


@pytest.mark.parametrize("name", COMPARED)
def test_two_processes_report_what_one_reports(name: str, outs: tuple[Path, Path]) -> None:
    one, two = (json.loads((out / f"{name}.json").read_text()) for out in outs)
    # Figures of the whole batch, once each: not those of a process, and not twice.
    assert [point[0] for point in two["points"]] == [point[0] for point in one["points"]]
    assert numbers(two) == pytest.approx(numbers(one), rel=1e-4, abs=1e-5)


def test_the_checkpoints_are_the_same(outs: tuple[Path, Path]) -> None:
    one, two = (weights(out / "reward.checkpoint") for out in outs)
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        if not key.startswith("random"):
            torch.testing.assert_close(two[key], tensor, rtol=0, atol=GATE)


# --- Shards ---


@pytest.mark.parametrize("kind", ["read", "read GPT-2", "sft", "ppo"])
def test_each_process_holds_its_part_of_the_weights(kind: str, outs: tuple[Path, Path]) -> None:
    held = [json.loads((outs[1] / f"held-{rank}.json").read_text())[kind] for rank in range(2)]
    assert sum(held) == pytest.approx(1.0)
    assert max(held) < 0.6


@pytest.mark.parametrize("kind", ["reward", "sft", "ppo"])
def test_what_was_spread_goes_on_bit_for_bit(kind: str, outs: tuple[Path, Path]) -> None:
    whole, resumed = (weights(outs[1] / f"{how}_{kind}") for how in ("sharded", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    kept = weights(outs[1] / f"sharded_{kind}.checkpoint")
    assert kept.keys() == weights(outs[0] / f"sharded_{kind}.checkpoint").keys()
    # No process ever held all of it: each file was put together by itself.
    sizes = [path.stat().st_size for path in (outs[1] / f"sharded_{kind}.checkpoint").glob("*.safetensors")]
    assert len(sizes) > 5
    assert max(sizes) < sum(sizes) / 3


def test_one_process_goes_on_with_what_two_began(outs: tuple[Path, Path], base: Path, tmp_path: Path) -> None:
    config = two_processes.FULL | {"tokens_per_forward": 24}
    begun = outs[1] / "sharded_sft.checkpoint"
    out = tmp_path / "sft"
    two_processes.sft(ModelSource(base), out, two_processes.Recorder(), config=config, resume_from=begun)
    for key, tensor in weights(outs[1] / "sharded_sft").items():
        torch.testing.assert_close(weights(out)[key], tensor, rtol=0, atol=GATE)


def test_an_adapter_on_spread_weights_of_a_version_is_refused(tmp_path: Path) -> None:
    version = ModelSource(tmp_path / "base", tmp_path / "version")
    with pytest.raises(ValueError, match="can't train an adapter on a version"):
        require_plain_saving(version, has_adapter=True)
    require_plain_saving(version, has_adapter=False)
    require_plain_saving(ModelSource(tmp_path / "base"), has_adapter=True)


# --- Memory ---


@pytest.mark.parametrize("adapters", [None, two_processes.LORA.as_json()], ids=["full", "adapters"])
def test_blocks_that_are_computed_again_change_nothing(adapters: Any, base: Path, tmp_path: Path) -> None:
    for name, again in (("kept", False), ("again", True)):
        config = {"gradient_checkpointing": again, "lora": adapters}
        two_processes.reward(ModelSource(base), tmp_path / name, two_processes.Recorder(), config=config)
    again_weights = weights(tmp_path / "again")
    for key, tensor in weights(tmp_path / "kept").items():
        torch.testing.assert_close(again_weights[key], tensor, rtol=0, atol=GATE)


@pytest.mark.parametrize("adapters", [None, two_processes.LORA.as_json()], ids=["full", "adapters"])
def test_blocks_that_ppo_computes_again_change_nothing(adapters: Any, base: Path, tmp_path: Path) -> None:
    source = ModelSource(base)
    two_processes.reward(source, tmp_path / "reward", two_processes.Recorder(), config={"epochs": 1})
    num_blocks: Counter[str] = Counter()
    for name, again in (("kept", False), ("again", True)):
        counted = register_module_forward_pre_hook(
            lambda module, _, name=name: num_blocks.update([name] if isinstance(module, LlamaMLP) else [])
        )
        changes = {"gradient_checkpointing": again, "lora": adapters, "num_episodes": 3}
        two_processes.ppo(source, tmp_path / name, two_processes.Recorder(), **changes)
        counted.remove()
    assert num_blocks["again"] > num_blocks["kept"]
    again_weights = weights(tmp_path / "again")
    for key, tensor in weights(tmp_path / "kept").items():
        torch.testing.assert_close(again_weights[key], tensor, rtol=0, atol=GATE)


def test_bfloat16_is_near_and_leaves_heads_and_weights_in_fp32(base: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        report = two_processes.Recorder()
        out = tmp_path / precision
        two_processes.reward(ModelSource(base), out, report, config={"precision": precision})
        losses[precision] = [values["loss/reward"] for _, values in report.points]
        assert {tensor.dtype for tensor in weights(out).values()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.02)


def test_ppo_in_bfloat16_is_near_and_keeps_its_weights_in_fp32(base: Path, tmp_path: Path) -> None:
    source = ModelSource(base)
    two_processes.reward(source, tmp_path / "reward", two_processes.Recorder())
    points = {}
    for precision in ("float32", "bfloat16"):
        report = two_processes.Recorder()
        shared = {"samples_per_prompt": 2, "minibatch_size": 2, "episodes_per_batch": 2, "num_episodes": 2}
        two_processes.ppo(source, tmp_path / precision, report, precision=precision, **shared)
        points[precision] = report.points[-1][1]
        assert {tensor.dtype for tensor in weights(tmp_path / precision).values()} == {torch.float32}
    one, other = points["float32"], points["bfloat16"]
    # The first rollout's answers are the same, and what is said of them is rounded.
    assert one["objective/length"] == other["objective/length"]
    assert 0 < abs(one["objective/reward"] - other["objective/reward"]) < 0.02


def test_bfloat16_rounds_what_a_transformer_says_and_not_what_a_head_makes_of_it(base: Path) -> None:
    model = load_causal_lm(ModelSource(base))
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        exact = model(tokens).logits
        compute_in_bfloat16(model)
        rounded = model(tokens).logits
    assert products_dtype(model) == rounded.dtype == torch.bfloat16
    assert 0 < (exact - rounded.float()).abs().max() < 0.05


def test_training_mode_brings_no_dropout_back(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "dropping")
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "dropping/config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    model = load_causal_lm(ModelSource(tmp_path / "dropping")).train()
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, model(tokens).logits)


# --- Parts and sums ---


@pytest.mark.parametrize(("num", "size"), [(7, 2), (1, 2), (0, 3), (9, 4)])
def test_the_parts_are_the_whole(num: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for rank in range(size):
        monkeypatch.setattr("trainer.distributed.world", lambda rank=rank: World(rank, size))
        parts.append(part_of(range(num)))
    assert sorted(item for part in parts for item in part) == list(range(num))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_is_left_as_it_is() -> None:
    with joined() as here:
        assert here == world() == World(0, 1)
    rows = torch.randn(3, 2)
    assert put_together(rows, [2, 1]) is rows
    assert add_up(0.1, 2) == [0.1, 2]


# --- The command ---


@pytest.mark.slow
def test_torchrun_trains_a_reward_model_on_a_file(base: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": f"r{number}",
            "prompt": "a b c",
            "responses": [{"id": "x", "text": "a a"}, {"id": "y", "text": "b"}],
            "annotations": [{"pairs": [{"a": "x", "b": "y", "pref": "x"}]}],
        }
        for number in range(5)
    ]
    (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["-m", "rankloop", "train", "reward", str(tmp_path / "rankings.jsonl"), "--model", str(base)]
    done = torchrun(*command, "--out", str(tmp_path / "reward"), "--set", "epochs=1", "--json", "-")
    assert done.returncode == 0, done.stderr
    # One report, and one version.
    assert [json.loads(line)["num_rankings"] for line in done.stdout.splitlines() if line.startswith("{")] == [5]
    assert (tmp_path / "reward/manifest.json").is_file()
    assert (tmp_path / "reward/reward_head.safetensors").is_file()


@pytest.mark.soak
def test_what_a_user_can_set_right_ends_all_processes(base: Path, tmp_path: Path) -> None:
    (tmp_path / "rankings.jsonl").write_text("")
    command = ["-m", "rankloop", "train", "reward", str(tmp_path / "rankings.jsonl"), "--model", str(base)]
    done = torchrun(*command, "--out", str(tmp_path / "reward"))
    assert done.returncode != 0
    assert "rankings.jsonl is empty" in done.stderr
    assert not (tmp_path / "reward").exists()
