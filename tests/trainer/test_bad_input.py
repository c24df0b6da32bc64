"""What is wrong with what a run is given: every kind of training says so, or does the right thing; never silence."""

import errno
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.killable import KINDS, make_versions, train
from tests.trainer.tiny import make_tokenizer, save_tiny
from trainer.checkpoints import CheckpointError
from trainer.reward_model import RewardModel
from trainer.weights import ModelSource


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_versions(tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def broken(versions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model, one of whose numbers is NaN."""
    folder = Path(shutil.copytree(versions[0], tmp_path_factory.mktemp("broken") / "base"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_a_model_with_nan_in_it_is_refused_and_leaves_no_version(
    name: str, broken: Path, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        train(name, broken, versions[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", KINDS)
def test_nothing_to_learn_from_is_said(name: str, versions: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no \w+ to learn"):
        train(name, *versions, tmp_path / "out", data=[])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", KINDS)
def test_one_element_is_enough(name: str, versions: tuple[Path, Path], tmp_path: Path) -> None:
    train(name, *versions, tmp_path / "out", data=KINDS[name][:1])
    for path in (tmp_path / "out").glob("*.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize("name", KINDS)
def test_a_tokenizer_of_another_model_is_refused_by_name(
    name: str, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(versions[0], tmp_path / "base"))
    make_tokenizer(tuple(f"word{number}" for number in range(40))).save_pretrained(base)
    with pytest.raises(ValueError, match=r"tokenizer of “base” has 43 tokens, and its model knows 9"):
        train(name, base, versions[1], tmp_path / "out")


@pytest.mark.parametrize("name", ["ppo", "best_of_n"])
def test_a_reward_model_that_reads_other_tokens_is_refused(
    name: str, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    other = save_tiny(tmp_path / "other", words=("a", "b"))
    (tmp_path / "judge").mkdir()
    RewardModel.from_sft(ModelSource(other), None).save(tmp_path / "judge")
    with pytest.raises(ValueError, match=r"knows 5 tokens, and the policy 9|has 9 tokens, and its model knows 5"):
        train(name, versions[0], tmp_path / "judge", tmp_path / "out")


class Enough(BaseException):
    """A checkpoint was delivered."""


@pytest.fixture(scope="module")
def first_checkpoint(versions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The first checkpoint that a training of this name delivers."""

    def make(name: str) -> Path:
        def stop(folder: Path) -> None:
            raise Enough

        out = tmp_path_factory.mktemp(name) / "out"
        with pytest.raises(Enough):
            train(name, *versions, out, on_checkpoint=stop)
        return out.with_name("out.checkpoint")

    return make


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_that_ends_too_early_is_refused_by_the_file_s_name(
    name: str, first_checkpoint: Callable[[str], Path], versions: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint = first_checkpoint(name)
    for file in ("state.json", "random.safetensors"):
        cut = Path(shutil.copytree(checkpoint, tmp_path / file))
        (cut / file).write_bytes((cut / file).read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=f"damaged: {file}"):
            train(name, *versions, tmp_path / "out", resume_from=cut)
    assert not (tmp_path / "out").exists()


@contextmanager
def a_disk_that_takes(num_bytes: int) -> Iterator[None]:
    """No file may grow larger: the kernel says EFBIG, as it says ENOSPC of a disk that is full. (`make soak` fills
    a real one.)"""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", KINDS)
def test_a_disk_that_takes_no_more_ends_a_run_with_the_system_s_words(
    name: str, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    with a_disk_that_takes(4096), pytest.raises(OSError, match="File too large") as caught:
        train(name, *versions, tmp_path / "out")
    assert caught.value.errno == errno.EFBIG
    # Neither half a version nor half a checkpoint, nor anything on the way to one.
    assert not [path for path in tmp_path.iterdir() if path.name != "out.checkpoint"]
    for manifest in tmp_path.glob("out.checkpoint/manifest.json"):
        assert json.loads(manifest.read_text())["files"]
