"""Every other way of training through the app and a worker: what is frozen is learned, and a version waits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.contract.conftest import House, house, tiny_folder, work_off

__all__ = ["house", "tiny_folder"]

pytestmark = pytest.mark.real_commits

SFT = {"epochs": 1, "validation_ratio": 0.0, "conversations_per_batch": 2, "checkpoint_every": 1}


def finished(house: House, project: dict[str, Any], kind: str, training: dict[str, Any]) -> dict[str, Any]:
    """Start such a run, let the worker do it, and return it."""
    run = house.admin.start_run(project["id"], kind, training=training)
    assert work_off(house) >= 1
    done = house.admin.get_run(run["id"])
    assert done["state"] == "finished", done["error"]
    return done


def newest(house: House, project: dict[str, Any]) -> dict[str, Any]:
    return house.admin.list_versions(project["id"])[0]


@pytest.fixture
def trained(house: House) -> dict[str, Any]:
    """A project whose first round is done: it has a reward model, a policy and answers of both rounds."""
    return first_round(house)


def first_round(house: House, **values: Any) -> dict[str, Any]:
    """Such a project, with these settings."""
    project = house.make_project(**values)
    house.import_prompts(project, 4)
    house.admin.start_sampling(project["id"])
    work_off(house)
    house.rank_everything(project)
    house.admin.start_training(project["id"])
    work_off(house)
    return project


def test_sft_learns_imported_conversations(house: House) -> None:
    project = house.make_project()
    lines = [json.dumps({"prompt": f"a {word}", "completion": "b c"}) for word in "abcd"]
    house.admin.import_corpus(project["id"], lines, name="chats")
    run = finished(house, project, "sft", SFT)
    version = newest(house, project)
    assert run["result"]["num_conversations"] == 4
    assert (version["number"], version["kind"], version["is_live"]) == (2, "policy", False)
    assert "model.safetensors" in {file["name"] for file in house.admin.get_version(version["id"])["files"]}


def test_dpo_best_of_n_and_a_guarded_ppo_with_text_learn_from_one_project(
    house: House, trained: dict[str, Any]
) -> None:
    dpo = finished(house, trained, "dpo", {"epochs": 1, "rankings_per_batch": 2})
    assert dpo["result"]["num_rankings"] == 4
    best = finished(house, trained, "best_of_n", {"n": 3, "max_new_tokens": 48, "sft": SFT})
    assert best["result"]["num_answers"] == 12
    assert best["result"]["reward"]["best"] >= best["result"]["reward"]["mean"]
    version = newest(house, trained)
    assert (version["kind"], version["is_live"]) == ("policy", False)

    house.admin.import_corpus(trained["id"], ['{"text": "a b c d a b"}', '{"text": "d c b a"}'], name="web")
    text = {"ptx_coefficient": 1.0, "tax_texts": 1}
    training = trained["training"] | {"ppo": trained["training"]["ppo"] | text | {"guard": 2}}
    house.admin.update_project(trained["id"], training=training)
    house.admin.start_training(trained["id"])
    work_off(house)
    ppo = next(run for run in house.admin.list_runs(trained["id"]) if run["kind"] == "ppo")
    assert ppo["state"] == "finished"
    curves = house.admin.run_metrics(ppo["id"])
    assert any("ptx" in name for name in curves), "the text was learned along"
    assert len(curves["tax/loss"]) == len(curves["tax/reference_loss"]) > 1, "one text was held out"
    assert "guard/score" in curves, "the first round's reward model watched"
    assert ppo["result"]["guard"]["num_episodes"] <= ppo["result"]["num_episodes"]


def test_ppo_begins_with_what_people_liked(house: House) -> None:
    # So many tokens that an answer ends before: what was cut is not learned.
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 48, "seed": 17}
    ppo = {"num_episodes": 4, "episodes_per_batch": 4, "minibatch_size": 4, "liked": SFT}
    project = first_round(house, sampling=sampling, training={"reward": {"rankings_per_batch": 1}, "ppo": ppo})
    run = next(run for run in house.admin.list_runs(project["id"]) if run["kind"] == "ppo")
    assert run["state"] == "finished", run["error"]
    assert {"loss/sft", "objective/kl"} <= set(house.admin.run_metrics(run["id"]))


def test_star_learns_what_passes_its_check(house: House) -> None:
    project = house.make_project()
    check = {"kind": "regex", "value": "(?s).*"}
    lines = [json.dumps({"prompt": f"a {word}", "meta": {"check": check}}) for word in "abcd"]
    house.admin.import_prompts(project["id"], [*lines, json.dumps({"prompt": "d d"})])
    run = finished(house, project, "star", {"n": 4, "max_new_tokens": 16, "sft": SFT})
    assert run["result"]["num_prompts"] == 4
    assert run["result"]["num_right"] == run["result"]["num_answers"] == 16


def test_an_unknown_setting_fails_the_run_by_name(house: House) -> None:
    project = house.make_project()
    house.admin.import_corpus(project["id"], [json.dumps({"prompt": "a", "completion": "b"})])
    run = house.admin.start_run(project["id"], "sft", training={"epoch": 1})
    work_off(house)
    failed = house.admin.get_run(run["id"])
    assert failed["state"] == "failed"
    assert "unknown key epoch" in failed["error"]
