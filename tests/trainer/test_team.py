"""What a worker makes of the end of its processes; `tests/contract/test_team.py` starts real ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.reporting import RunCancelled
from trainer.settings import WorkerSettings
from trainer.team import DEATHS, MemberFailed, TeamBroke, end_file, judge, write_private

DONE = {"how": "done", "result": {"loss": 1.0}, "artifacts": ["manifest.json"]}
GONE = {"how": "failed", "cause": "Connection closed by peer", "lines": []}
WRONG = {"how": "failed", "cause": "There is no ranking to learn from.", "lines": ["in reward.py"]}


def outcome(folder: Path, *ends: dict[str, Any] | None, is_stopping: bool = False, **deaths: int) -> Any:
    """What is made of these ends, in the order in which the processes reached them."""
    for at, end in enumerate(ends):
        if end is not None:
            write_private(end_file(folder, end.get("rank", at)), {"at": at, **end})
    if deaths:
        write_private(folder / DEATHS, {name.removeprefix("rank"): code for name, code in deaths.items()})
    job = SimpleNamespace(folder=folder, report=SimpleNamespace(is_cancelled=False))
    try:
        return judge(job, 2, is_stopping=is_stopping)
    except RunCancelled:
        return "cancelled" if job.report.is_cancelled else "stopped"


def test_what_the_first_one_delivered_counts_whatever_came_after(tmp_path: Path) -> None:
    assert outcome(tmp_path, DONE, GONE, rank1=-9) == ({"loss": 1.0}, ["manifest.json"])


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_the_first_failure_is_the_cause(tmp_path: Path, ranks: tuple[int, int]) -> None:
    with pytest.raises(MemberFailed, match="no ranking") as failed:
        outcome(tmp_path, WRONG | {"rank": ranks[0]}, GONE | {"rank": ranks[1]}, rank0=1, rank1=1)
    assert failed.value.lines == ["in reward.py"]


def test_who_was_killed_is_the_cause_and_not_who_missed_it(tmp_path: Path) -> None:
    with pytest.raises(TeamBroke, match=r"Process 2 of 2 was killed by SIGKILL\."):
        outcome(tmp_path, GONE, None, rank0=1, rank1=-9)


def test_who_died_first_is_the_cause_and_not_whom_torchrun_stopped_then(tmp_path: Path) -> None:
    with pytest.raises(TeamBroke, match=r"Process 2 of 2 was killed by SIGKILL\."):
        outcome(tmp_path, GONE, None, rank1=-9, rank0=-15)


def test_a_run_that_was_taken_away_is_left(tmp_path: Path) -> None:
    with pytest.raises(TeamBroke, match="another worker"):
        outcome(tmp_path, {"how": "left", "cause": "This run was given to another worker."}, GONE)


def test_processes_that_say_nothing_leave_the_run_to_the_queue(tmp_path: Path) -> None:
    with pytest.raises(TeamBroke, match="without a word"):
        outcome(tmp_path)


def test_a_cancelled_run_and_one_that_goes_back_are_told_apart(tmp_path: Path) -> None:
    stopped = {"how": "stopped"}
    assert outcome(tmp_path, {"how": "cancelled"}, stopped) == "cancelled"
    assert outcome(tmp_path, stopped, stopped) == "stopped"
    assert outcome(tmp_path, GONE, None, is_stopping=True, rank1=-9) == "stopped"


def test_only_this_user_reads_what_is_handed_over(tmp_path: Path) -> None:
    write_private(tmp_path / "claim.json", {"fence": 1})
    assert (tmp_path / "claim.json").stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / "claim.json").read_text()) == {"fence": 1}


def test_settings_survive_the_way_to_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = WorkerSettings(url="http://x:1", token="rl_x", data_dir=tmp_path, device="cpu", processes=2)
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    assert WorkerSettings() == settings


def test_one_process_is_enough_for_a_cpu(tmp_path: Path) -> None:
    assert WorkerSettings(device="cpu").num_processes() == 1
    assert WorkerSettings(device="cpu", processes=2).num_processes() == 2
