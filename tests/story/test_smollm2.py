"""The same road with a real language model: SmolLM2-135M answers, is ranked, and is trained with 8 episodes of PPO."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.contract.conftest import House, house, run_rankloop, tiny_folder, work_off

__all__ = ["house", "tiny_folder"]

pytestmark = [pytest.mark.real_commits, pytest.mark.slow]

PROMPTS = ("What is the capital of France?", "Name three fruits.", "Why is the sky blue?", "Write one line about rain.")
# One reading of each episode: a core takes a minute and a half for four.
TRAINING = {
    "reward": {},
    "ppo": {"num_episodes": 8, "episodes_per_batch": 4, "minibatch_size": 4, "num_epochs": 1},
}


def test_smollm2_answers_is_ranked_and_trained(house: House, tmp_path: Path) -> None:
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16, "seed": 17}
    project = house.make_project(model_alias="smollm2-135m", k=2, sampling=sampling, training=TRAINING)
    house.admin.import_prompts(project["id"], [json.dumps({"prompt": text}) for text in PROMPTS])
    house.admin.start_sampling(project["id"])
    assert work_off(house) == 1
    answers = [row["text"] for row in house.admin.completions(project["id"])]
    assert len(set(answers)) == len(answers) == 8
    assert sum(len(text.split()) >= 3 for text in answers) >= 6, "a real model writes sentences"

    assert house.rank_everything(project) == len(PROMPTS)
    house.admin.start_training(project["id"])
    assert work_off(house) == 3
    policy, reward, _ = house.admin.list_versions(project["id"])
    assert (policy["metrics"]["num_episodes"], reward["metrics"]["num_rankings"]) == (8, len(PROMPTS))
    adapter = {file["name"]: file["size"] for file in house.admin.get_version(policy["id"])["files"]}
    assert adapter["adapter_model.safetensors"] < 20_000_000, "adapters travel, not the whole model"

    exported = tmp_path / "exported"
    command = ["model", "export", policy["id"], str(exported), "--url", house.server.url, "--token", house.admin_token]
    assert run_rankloop(house, *command).exit_code == 0
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert model.num_parameters() > 130_000_000
    assert AutoTokenizer.from_pretrained(exported).chat_template
