"""Folders appear whole, and what a killed process left beside one is swept away, unless somebody is at work there."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import folders
from trainer.folders import new_folder, recover


def write(target: Path, text: str) -> None:
    with new_folder(target) as building:
        (building / "file").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(work: Callable[..., None], *arguments: Any) -> None:
    """In a process of its own, which kills itself with -9."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def die_while_writing(target: Path) -> None:
    with new_folder(target) as building:
        (building / "file").write_text("half")
        die()


def die_between_the_renames(target: Path) -> None:
    """The old folder has been put aside, and the new one is not yet in its place."""
    rename = Path.rename

    def rename_or_die(path: Path, to: Any) -> Path:
        if to == target:
            die()
        return rename(path, to)

    Path.rename = rename_or_die  # type: ignore[assignment, method-assign]
    write(target, "new")


def die_before_the_old_one_is_gone(target: Path) -> None:
    folders.shutil.rmtree = lambda *_, **__: die()  # type: ignore[attr-defined]
    write(target, "new")


@pytest.mark.parametrize(
    ("work", "left"),
    [(die_while_writing, "old"), (die_between_the_renames, "old"), (die_before_the_old_one_is_gone, "new")],
)
def test_what_a_killed_process_left_is_swept_away_and_the_folder_is_whole(
    work: Callable[..., None], left: str, tmp_path: Path
) -> None:
    target = tmp_path / "out[1].checkpoint"
    write(target, "old")
    run_and_die(work, target)
    assert len(names(tmp_path)) > 1 or not target.exists()
    recover(target)
    assert names(tmp_path) == [target.name]
    assert (target / "file").read_text() == left


def test_the_next_one_who_writes_sweeps_too(tmp_path: Path) -> None:
    target = tmp_path / "out"
    run_and_die(die_while_writing, target)
    write(target, "new")
    assert names(tmp_path) == ["out"]


def test_what_somebody_works_on_and_what_has_another_name_stay(tmp_path: Path) -> None:
    (tmp_path / ".out-new-put-there-by-nobody.txt").touch()
    (tmp_path / ".output-new-abc").mkdir()
    with new_folder(tmp_path / "out") as building:
        (building / "file").write_text("mine")
        recover(tmp_path / "out")
        assert (building / "file").exists()
    assert (tmp_path / "out" / "file").read_text() == "mine"
    assert ".output-new-abc" in names(tmp_path)


def test_a_block_that_raises_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")
    with pytest.raises(ZeroDivisionError), new_folder(target):
        _ = 1 / 0
    assert names(tmp_path) == ["out"]
    assert (target / "file").read_text() == "old"
