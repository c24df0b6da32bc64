"""A whole round against the real app: sample, rank, reward run, ppo run, and a worker that is killed in between."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.contract.conftest import LEASE_SECONDS, House, held_back, run_rankloop, start_worker, wait_for, work_off
from trainer.client import Json

pytestmark = pytest.mark.real_commits


def ranked_project(house: House, num_prompts: int = 4, **fields: object) -> Json:
    """A project whose sampled answers are all ranked."""
    project = house.make_project(**fields)
    house.import_prompts(project, num_prompts)
    house.admin.start_sampling(project["id"])
    work_off(house)
    assert house.rank_everything(project) == num_prompts
    return project


def runs_of(house: House, project: Json, kind: str) -> list[Json]:
    return [run for run in house.admin.list_runs(project["id"]) if run["kind"] == kind]


def test_a_round_leads_to_a_new_policy_and_its_answers(house: House) -> None:
    project = ranked_project(house, rank_next="disagreement")
    house.admin.start_training(project["id"])
    assert work_off(house) == 4
    assert {run["state"] for run in house.admin.list_runs(project["id"])} == {"finished"}

    policy, reward, base = house.admin.list_versions(project["id"])
    assert [version["kind"] for version in (policy, reward, base)] == ["policy", "reward", "policy"]
    assert policy["parent_id"] == base["id"]
    assert policy["reward_version_id"] == reward["id"]
    files = {file["name"] for file in house.admin.get_version(reward["id"])["files"]}
    assert {"manifest.json", "reward.json", "reward_head.safetensors"} <= files
    assert not any(name.startswith("checkpoint/") for name in files)

    result = runs_of(house, project, "reward")[0]["result"]
    assert (result["num_rankings"], result["accuracy"], result["refused"]) == (4, None, [])
    result = runs_of(house, project, "ppo")[0]["result"]
    assert result["num_episodes"] == 8
    assert set(result["reward"]) == {"first", "last", "interval"}
    assert {row["version"] for row in house.admin.completions(project["id"], policy["id"])} == {policy["number"]}
    # The new answers wait, and the worker said how much its heads differ about each.
    made = list(house.admin.list_tasks(project["id"]))
    assert [task["score"] is None for task in made] == [True] * 4 + [False] * 4
    assert all(0 < task["score"] <= 0.5 for task in made[4:])

    # The curves carry the names of the protocol.
    curves = house.admin.run_metrics(runs_of(house, project, "reward")[0]["id"])
    assert {"loss/reward", "accuracy/train"} <= set(curves)
    curves = house.admin.run_metrics(runs_of(house, project, "ppo")[0]["id"])
    assert {"objective/reward", "objective/kl", "ppo/policy/loss", "ppo/value/loss", "ppo/beta"} <= set(curves)
    assert [step for step, _ in curves["objective/kl"]] == [4, 8]


@pytest.mark.slow
def test_a_worker_asks_the_new_and_the_live_reward_model_about_the_same_rankings(house: House) -> None:
    project = house.make_project(validation_share=0.5, test_share=0.0)
    house.import_prompts(project, 8)
    house.admin.start_sampling(project["id"])
    for _ in range(2):
        work_off(house)
        house.rank_everything(project)
        # The second reward model goes on from the first, and PPO begins at version 1 again.
        house.admin.start_training(project["id"], reward_start="live", policy_start="sft")
    work_off(house)
    [score] = runs_of(house, project, "score")
    new, live = (reference["number"] for reference in score["config"]["rewards"])
    assert (score["state"], live < new) == ("finished", True)
    said = score["result"]["rankings"]
    assert len(said) >= 2
    assert all(0 <= right <= row["num_pairs"] for row in said for right in row["num_right"])
    [version] = [item for item in house.admin.list_versions(project["id"]) if item["number"] == new]
    assert version["gate"]["state"] in {"passed", "refused"}
    assert version["is_live"] == (version["gate"]["state"] == "passed")
    [learned, first] = runs_of(house, project, "reward")
    assert (learned["config"]["start"]["number"], first["config"]["start"]) == (live, None)
    assert "It goes on from an earlier reward model." in house.log_of(learned["id"])
    by_number = {item["number"]: item for item in house.admin.list_versions(project["id"])}
    assert by_number[new]["parent_id"] == by_number[live]["id"]
    assert {run["config"]["policy"]["number"] for run in runs_of(house, project, "ppo")} == {1}


@pytest.mark.parametrize(
    ("kind", "curve", "stride", "num_steps"),
    [pytest.param("reward", "loss/reward", 1, 16, marks=pytest.mark.soak), ("ppo", "objective/kl", 4, 4)],
)
@pytest.mark.slow
def test_a_killed_worker_s_training_goes_on_from_its_checkpoint(
    house: House, tmp_path: Path, kind: str, curve: str, stride: int, num_steps: int
) -> None:
    training = {
        "reward": {"rankings_per_batch": 1, "checkpoint_every": 1, "epochs": 4 if kind == "reward" else 1},
        "ppo": {"num_episodes": 16, "episodes_per_batch": 4, "minibatch_size": 4},
    }
    project = ranked_project(house, training=training)
    house.admin.start_training(project["id"])

    def has_checkpoint() -> bool:
        runs = runs_of(house, project, kind)
        delivered = house.admin.run_artifacts(runs[0]["id"]) if runs else []
        return "checkpoint/manifest.json" in {file["name"] for file in delivered}

    # What it delivers after its first checkpoint waits: the run can not end before it is killed.
    is_kept = (
        "exists (select from artifacts a join runs r on r.id = a.run_id where r.id = new.run_id"
        f" and r.kind = '{kind}' and a.name = 'checkpoint/manifest.json')"
    )
    with held_back(house, "artifacts", is_kept), start_worker(house, tmp_path / "worker.log") as worker:
        wait_for(has_checkpoint, 120)
        worker.kill()
    run = runs_of(house, project, kind)[0]
    assert run["state"] == "running"
    time.sleep(LEASE_SECONDS + 0.2)
    work_off(house)
    finished = house.admin.get_run(run["id"])
    assert (finished["state"], finished["attempt"], finished["error"]) == ("finished", 2, None)
    assert "Goes on from the last checkpoint." in house.log_of(run["id"])
    steps = [step for step, _ in house.admin.run_metrics(run["id"])[curve]]
    assert steps == [stride * number for number in range(1, num_steps + 1)], "the curve has no hole and no step twice"


def test_what_goes_wrong_in_training_is_the_run_s_cause(house: House) -> None:
    project = ranked_project(house, training={"reward": {"max_length": 3}, "ppo": {}})
    run = house.admin.start_training(project["id"])
    work_off(house)
    failed = house.admin.get_run(run["id"])
    assert failed["state"] == "failed"
    assert "There is no ranking to learn from" in failed["error"]
    log = house.log_of(run["id"])
    assert 'File "reward.py", line' in log
    assert str(Path(__file__).parents[2]) not in log


def test_a_version_is_exported_as_a_folder_of_its_own(house: House, tmp_path: Path) -> None:
    project = ranked_project(house)
    house.admin.start_training(project["id"])
    work_off(house)
    out = tmp_path / "exported"
    version = house.admin.list_versions(project["id"])[0]
    command = ["model", "export", version["id"], str(out), "--url", house.server.url, "--token", house.admin_token]
    result = run_rankloop(house, *command)
    assert result.exit_code == 0, result.output
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(out).eos_token == "<eos>"
