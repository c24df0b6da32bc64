"""A run of any kind that is killed goes on as if it had not been killed. `make soak` kills at random moments."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.trainer.killable import TRAININGS, make_versions, require_equal, train
from tests.trainer.tiny import Recorder


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_versions(tmp_path_factory.mktemp("versions"))


class Killed(BaseException):
    """Stands for kill -9 right after a checkpoint was delivered."""


@pytest.mark.parametrize("name", TRAININGS)
def test_a_killed_run_goes_on_bit_for_bit(name: str, versions: tuple[Path, Path], tmp_path: Path) -> None:
    kept: list[Path] = []

    def keep(folder: Path) -> None:
        kept.append(Path(shutil.copytree(folder, tmp_path / f"kept{len(kept)}")))

    whole = train(name, *versions, tmp_path / "whole", on_checkpoint=keep)
    num_checkpoints = len(kept)
    assert num_checkpoints > 1

    def keep_and_die(folder: Path) -> None:
        keep(folder)
        if len(kept) == num_checkpoints + num_checkpoints // 2:
            raise Killed

    with pytest.raises(Killed):
        train(name, *versions, tmp_path / "killed", on_checkpoint=keep_and_die)
    assert not (tmp_path / "killed").exists()
    # Whatever has drawn random numbers in the meantime.
    torch.manual_seed(99)
    report = Recorder()
    resumed = train(name, *versions, tmp_path / "resumed", resume_from=kept[-1], report=report)
    assert report.points
    require_equal(tmp_path / "whole", tmp_path / "resumed")
    assert without_seconds(resumed.as_json()) == without_seconds(whole.as_json())


def without_seconds(value: object) -> object:
    """A result without what two runs need not share."""
    if not isinstance(value, dict):
        return value
    return {name: without_seconds(item) for name, item in value.items() if name != "seconds"}
