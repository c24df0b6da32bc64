"""A worker whose runs are done by two processes (gloo): it starts torchrun itself, against the real app."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.contract.conftest import House, environment_of, wait_for, work_off
from trainer.client import Json
from trainer.worker import Worker

pytestmark = [pytest.mark.real_commits, pytest.mark.slow]
GATE = 1e-6
# Adam divides by a gradient's size: where that is nearly nothing, the last bits, in which two processes may differ, are
# made 300 times as large. With this epsilon three times, and a gradient that is wrong by a factor shows all the more.
TRAINING = {"rankings_per_batch": 2, "checkpoint_every": 1, "learning_rate": 3e-3, "adam_eps": 1e-3}


@pytest.fixture
def team(house: House) -> House:
    """The same house, whose worker works by two processes."""
    return dataclasses.replace(house, worker_settings=house.worker_settings.model_copy(update={"processes": 2}))


def ranked_project(house: House, **training: object) -> Json:
    """A project whose five prompts are ranked."""
    project = house.make_project(training={"reward": TRAINING | training, "ppo": {}})
    house.import_prompts(project, 5)
    house.admin.start_sampling(project["id"])
    work_off(house)
    assert house.rank_everything(project) == 5
    return project


def do_next_run(house: House) -> None:
    with house.worker_client() as client:
        assert Worker(client, house.worker_settings, threading.Event(), "worker-1").run_once()


def train_reward(house: House, project: Json) -> Json:
    """A reward run to its end, and no policy after it."""
    run = house.admin.start_training(project["id"])
    do_next_run(house)
    for other in house.admin.list_runs(project["id"]):
        if other["state"] == "queued":
            house.admin.cancel_run(other["id"])
    return house.admin.get_run(run["id"])


def weights_of(house: House, project: Json, folder: Path) -> list[dict[str, torch.Tensor]]:
    """The weights of each reward version of a project, newest first."""
    found = []
    for version in (row for row in house.admin.list_versions(project["id"]) if row["kind"] == "reward"):
        here = folder / version["id"]
        here.mkdir()
        files = [f for f in house.admin.get_version(version["id"])["files"] if f["name"].endswith(".safetensors")]
        for file in files:
            house.admin.download_version_file(version["id"], file, here / file["name"])
        found.append({f"{f['name']}/{n}": t for f in files for n, t in load_file(here / f["name"]).items()})
    return found


def processes_of(run: Json, rank: int) -> list[int]:
    """The members of a run's team with this rank."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is_member(entry, run["id"], f"RANK={rank}")
    ]


def _is_member(entry: Path, run_id: str, rank: str) -> bool:
    try:
        return run_id in (entry / "cmdline").read_text() and rank in (entry / "environ").read_text().split("\0")
    except OSError:
        return False


def test_two_processes_deliver_what_one_delivers(house: House, team: House, tmp_path: Path) -> None:
    project = ranked_project(house)
    runs = [train_reward(who, project) for who in (house, team)]
    assert [run["state"] for run in runs] == ["finished", "finished"]
    assert "2 processes do the run together." in house.log_of(runs[1]["id"])
    # One version a run, whose reports were heard once.
    two, one = weights_of(house, project, tmp_path)
    assert one
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=GATE)
    curves = [house.admin.run_metrics(run["id"])["loss/reward"] for run in runs]
    assert [step for step, _ in curves[1]] == [step for step, _ in curves[0]]
    assert [loss for _, loss in curves[1]] == pytest.approx([loss for _, loss in curves[0]], abs=GATE)
    assert not list((team.worker_settings.data_dir / "cache/runs").iterdir())


def test_a_killed_process_is_named_and_the_run_goes_on(house: House, team: House) -> None:
    project = ranked_project(house, epochs=30)
    run = house.admin.start_training(project["id"])
    worker = threading.Thread(target=do_next_run, args=[team])
    worker.start()
    wait_for(lambda: any("checkpoint/manifest" in file["name"] for file in house.admin.run_artifacts(run["id"])))
    (second,) = processes_of(run, 1)
    os.kill(second, signal.SIGKILL)
    worker.join(60)
    assert not worker.is_alive()
    assert processes_of(run, 0) == []
    left = house.admin.get_run(run["id"])
    assert (left["state"], left["attempt"]) == ("running", 1)
    assert "Process 2 of 2 was killed by SIGKILL." in house.log_of(run["id"])
    # A checkpoint doesn't know how many made it: one process goes on where two stopped.
    wait_for(lambda: work_off_one(house))
    ended = house.admin.get_run(run["id"])
    assert (ended["state"], ended["attempt"]) == ("finished", 2)
    assert "Goes on from the last checkpoint." in house.log_of(run["id"])
    assert len([row for row in house.admin.list_versions(project["id"]) if row["kind"] == "reward"]) == 1


def work_off_one(house: House) -> bool:
    with house.worker_client() as client:
        return Worker(client, house.worker_settings, threading.Event(), "worker-2").run_once()


@pytest.mark.soak
def test_sigterm_hands_a_team_s_run_back(house: House, team: House, tmp_path: Path) -> None:
    project = ranked_project(house, epochs=1000)
    run = house.admin.start_training(project["id"])
    environment = environment_of(team) | {"RANKLOOP_PROCESSES": "2"}
    with (tmp_path / "log").open("wb") as stream:
        command = [sys.executable, "-m", "rankloop", "worker", "--once"]
        worker = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        # Two processes begin with torch at once, beside all else that a soak's machine does.
        wait_for(lambda: house.admin.run_metrics(run["id"]), seconds=300)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(40) == 0
    finally:
        worker.kill()
        worker.wait()
    waiting = house.admin.get_run(run["id"])
    assert (waiting["state"], waiting["attempt"]) == ("queued", 0)
    assert processes_of(run, 0) + processes_of(run, 1) == []
    assert team.worker_settings.token not in (tmp_path / "log").read_text()
