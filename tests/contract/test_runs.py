"""The worker against the real app: runs from the queue to their result, and what happens when one side goes away."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.config import Settings
from tests.contract.conftest import LEASE_SECONDS, House, held_back, start_worker, wait_for, work_off
from trainer import artifacts
from trainer.artifacts import BadCheckpoint, CheckpointStore
from trainer.client import ApiError, Claim, Client, FenceLost, Json
from trainer.folders import sha256_file, write_manifest
from trainer.worker import LONGEST_POLL_SECONDS, Worker

pytestmark = pytest.mark.real_commits


def claim(client: Client) -> Claim:
    claimed = client.claim_run("worker-1", ["sample", "evaluate", "reward", "ppo"])
    assert claimed is not None
    return claimed


def sampling_run(house: House, num_prompts: int = 5, **fields: object) -> tuple[Json, Json]:
    """A project and a queued run that samples its prompts."""
    project = house.make_project(**fields)
    house.import_prompts(project, num_prompts)
    return project, house.admin.start_sampling(project["id"])


def test_a_sample_run_becomes_tasks(house: House) -> None:
    project, run = sampling_run(house)
    assert work_off(house) == 1
    finished = house.admin.get_run(run["id"])
    assert (finished["state"], finished["error"]) == ("finished", None)
    assert finished["result"]["num_prompts"] == 5
    assert finished["result"]["num_completions"] == 15
    assert finished["result"]["refused"] == []
    assert len(list(house.admin.list_tasks(project["id"]))) == 5
    completions = house.admin.completions(project["id"])
    assert {(row["sampling"]["max_new_tokens"], row["version"]) for row in completions} == {(6, 1)}


def test_an_evaluate_run_makes_no_tasks(house: House) -> None:
    project = house.make_project(test_share=0.9, validation_share=0.0)
    house.import_prompts(project, 20)
    house.admin.start_evaluation(project["id"])
    assert work_off(house) == 1
    assert {row["split"] for row in house.admin.completions(project["id"])} == {"test"}
    assert list(house.admin.list_tasks(project["id"])) == []


def test_a_prompt_over_the_context_is_refused_and_the_rest_goes_on(house: House) -> None:
    project = house.make_project()
    house.import_prompts(project, 2)
    house.admin.import_prompts(project["id"], [json.dumps({"prompt": "a " * 100})])
    run = house.admin.start_sampling(project["id"])
    work_off(house)
    result = house.admin.get_run(run["id"])["result"]
    assert result["num_prompts"] == 2
    assert len(result["refused"]) == 1
    assert "context" in result["refused"][0]["reason"]


def test_a_model_that_is_not_listed_fails_the_run_with_what_to_do(house: House) -> None:
    _, run = sampling_run(house, model_alias="unknown-model")
    work_off(house)
    failed = house.admin.get_run(run["id"])
    assert failed["state"] == "failed"
    assert "“unknown-model” is not in this worker's list" in failed["error"]
    assert "RANKLOOP_MODELS" in failed["error"] or "models.json" in failed["error"]
    assert str(house.worker_settings.data_dir.parent) not in failed["error"]


def test_a_setting_that_does_not_exist_fails_the_run_by_name(house: House) -> None:
    project = house.make_project(training={"reward": {"epoch": 3}, "ppo": {}})
    house.import_prompts(project, 2)
    house.admin.start_sampling(project["id"])
    work_off(house)
    house.rank_everything(project)
    run = house.admin.start_training(project["id"])
    work_off(house)
    assert "unknown key epoch" in house.admin.get_run(run["id"])["error"]


def test_a_cancelled_run_stops_and_keeps_what_it_had(house: House) -> None:
    project, run = sampling_run(house, num_prompts=250)
    worker = threading.Thread(target=work_off, args=[house])
    worker.start()
    wait_for(lambda: house.admin.completions(project["id"]))
    house.admin.cancel_run(run["id"])
    worker.join(60)
    assert house.admin.get_run(run["id"])["state"] == "cancelled"
    assert 0 < len(house.admin.completions(project["id"])) < 750


def test_the_run_of_a_dead_worker_waits_for_less_than_a_minute() -> None:
    assert Settings().run_lease_seconds + LONGEST_POLL_SECONDS < 60


def test_a_worker_that_was_given_up_can_not_write(house: House, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"late")
    _, run = sampling_run(house)
    with house.worker_client() as client:
        old = client.claimed(claim(client))
        time.sleep(LEASE_SECONDS + 0.2)
        new = client.claimed(claim(client))
        assert new.claim["fence"] > old.claim["fence"]
        for write in (
            lambda: old.heartbeat(None),
            lambda: old.metrics([{"step": 1, "name": "loss/reward", "value": 1.0}]),
            lambda: old.log([{"level": "info", "text": "late"}]),
            lambda: old.completions([]),
            lambda: old.upload("model.safetensors", tmp_path / "model.safetensors"),
            lambda: old.finish("finished", result={}),
            lambda: old.finish("failed", error="late"),
            old.release,
        ):
            with pytest.raises(FenceLost):
                write()
        new.heartbeat(None)
    assert house.admin.get_run(run["id"])["state"] == "running"


def test_finishing_twice_is_harmless(house: House) -> None:
    _, waiting = sampling_run(house)
    with house.worker_client() as client:
        run = client.claimed(claim(client))
        run.finish("failed", error="no reason")
        run.finish("failed", error="no reason")
    ended = house.admin.get_run(waiting["id"])
    assert (ended["state"], ended["error"], ended["attempt"]) == ("failed", "no reason", 1)


def test_a_worker_that_shuts_down_gives_its_run_back(house: House) -> None:
    _, run = sampling_run(house)
    stopping = threading.Event()
    with house.worker_client(stopping.wait) as client:
        claimed = claim(client)
        stopping.set()
        Worker(client, house.worker_settings, stopping).work(claimed)
    waiting = house.admin.get_run(run["id"])
    assert (waiting["state"], waiting["attempt"]) == ("queued", 0)


def test_sigterm_ends_a_worker_in_good_order(house: House, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with start_worker(house, log) as worker:
        wait_for(lambda: b"waits for runs" in log.read_bytes())
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


def test_a_killed_worker_s_sampling_is_finished_by_another(house: House, tmp_path: Path) -> None:
    project, run = sampling_run(house, num_prompts=20)
    is_begun = "(select count(*) from completions) >= 15"
    with held_back(house, "completions", is_begun), start_worker(house, tmp_path / "worker.log") as worker:
        wait_for(lambda: len(house.admin.completions(project["id"])) >= 15)
        worker.kill()
    num_before = len(house.admin.completions(project["id"]))
    assert 0 < num_before < 60
    assert house.admin.get_run(run["id"])["state"] == "running"
    time.sleep(LEASE_SECONDS + 0.2)
    assert work_off(house) == 1
    finished = house.admin.get_run(run["id"])
    assert (finished["state"], finished["attempt"]) == ("finished", 2)
    assert finished["result"]["num_completions"] == len(house.admin.completions(project["id"])) == 60


def test_a_run_survives_a_restart_of_the_web(house: House) -> None:
    project, run = sampling_run(house, num_prompts=40)
    worker = threading.Thread(target=work_off, args=[house])
    worker.start()
    wait_for(lambda: house.admin.completions(project["id"]))
    house.server.stop()
    time.sleep(0.5)
    house.server.start()
    worker.join(60)
    assert house.admin.get_run(run["id"])["state"] == "finished"
    assert len(house.admin.completions(project["id"])) == 120


def test_a_token_without_the_right_is_refused_with_the_reason(house: House) -> None:
    worker = Worker(house.admin, house.worker_settings, threading.Event())
    with pytest.raises(ApiError, match="worker"):
        worker.run_once()


# Artifacts and checkpoints


def checkpoint(folder: Path, step: int, size: int = 10) -> Path:
    """A folder as `trainer.checkpoints` writes it."""
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(bytes([step]) * size)
    (folder / "state.json").write_text(json.dumps({"step": step}), encoding="utf-8")
    write_manifest(folder, {"files": {path.name: sha256_file(path) for path in sorted(folder.iterdir())}})
    return folder


def test_a_file_of_many_chunks_arrives_and_comes_back(house: House, tmp_path: Path) -> None:
    sampling_run(house)
    source = tmp_path / "model.safetensors"
    source.write_bytes(os.urandom(20 * 1024 * 1024 + 17))
    with house.worker_client() as client:
        run = client.claimed(claim(client))
        delivered = run.upload("model.safetensors", source)
        assert run.artifacts() == [delivered]
        run.download(delivered, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_the_next_attempt_finds_the_last_checkpoint(house: House, tmp_path: Path) -> None:
    sampling_run(house)
    with house.worker_client() as client:
        run = client.claimed(claim(client))
        store = CheckpointStore(run)
        assert store.fetch(tmp_path / "none") is None
        for step in (1, 2, 3):
            store.deliver(checkpoint(tmp_path / f"step-{step}", step))
        run.release()
        found = CheckpointStore(client.claimed(claim(client))).fetch(tmp_path / "found")
    assert found is not None
    assert json.loads((found / "state.json").read_text()) == {"step": 3}
    assert (found / "weights.safetensors").read_bytes() == bytes([3]) * 10


def test_deliveries_of_checkpoints_keep_their_distance(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling_run(house)
    seconds = itertools.count()
    # Every look at the clock takes a second: a delivery lasts one, and the next one is due nine later.
    monkeypatch.setattr(artifacts, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    with house.worker_client() as client:
        store = CheckpointStore(client.claimed(claim(client)))
        assert store.is_due
        store.deliver(checkpoint(tmp_path / "step-1", 1))
        assert [store.is_due for _ in range(10)] == [False] * 8 + [True] * 2


def test_a_checkpoint_that_was_half_delivered_leaves_the_one_before(house: House, tmp_path: Path) -> None:
    sampling_run(house)
    with house.worker_client() as client:
        run = client.claimed(claim(client))
        store = CheckpointStore(run)
        store.deliver(checkpoint(tmp_path / "step-1", 1))
        store.deliver(checkpoint(tmp_path / "step-2", 2))
        half = checkpoint(tmp_path / "step-3", 3)
        (half / "manifest.json").unlink()
        store.deliver(half)
        found = CheckpointStore(run).fetch(tmp_path / "found")
    assert found is not None
    assert json.loads((found / "state.json").read_text()) == {"step": 2}


def test_a_checkpoint_whose_files_are_missing_is_not_used(house: House, tmp_path: Path) -> None:
    sampling_run(house)
    with house.worker_client() as client:
        run = client.claimed(claim(client))
        folder = checkpoint(tmp_path / "step-1", 1)
        run.upload("checkpoint/manifest.json", folder / "manifest.json")
        with pytest.raises(BadCheckpoint, match="not delivered"):
            CheckpointStore(run).fetch(tmp_path / "found")
