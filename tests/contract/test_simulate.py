"""`rankloop simulate` against the real app: annotators who rank what waits, and whole rounds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import psycopg
import pytest

from tests.contract.conftest import House, house, run_rankloop, tiny_folder, work_off
from trainer.pocket.utility import utility
from trainer.pocket.world import Quality, answer_of_quality, held_out_requests
from trainer.simulate import Annotators, Loop, RunFailed, Story, hire, rank_waiting
from trainer.weights import ModelSource

__all__ = ["house", "tiny_folder"]

pytestmark = pytest.mark.real_commits


def with_answers(house: House, num_prompts: int) -> str:
    """A project whose prompts of the pocket world have a rude and a good answer each."""
    project_id = str(house.make_project()["id"])
    rng = random.Random(17)
    requests = held_out_requests(num_prompts, seed=17)
    house.admin.import_prompts(project_id, [json.dumps({"prompt": request.prompt}) for request in requests])
    lines = []
    for request in requests:
        texts = [answer_of_quality(request, quality, rng) for quality in (Quality.RUDE, Quality.GOOD)]
        lines.append(json.dumps({"prompt": request.prompt, "completions": texts}))
    house.admin.import_completions(project_id, lines)
    return project_id


def test_people_share_all_that_waits_and_judge_by_the_true_utility(house: House) -> None:
    project_id = with_answers(house, num_prompts=7)
    people = Annotators(num=3, noise=0.0)
    tokens = hire(house.admin, people, project_id)
    assert rank_waiting(house.server.url, tokens, project_id, people) == 7
    assert rank_waiting(house.server.url, tokens, project_id, people) == 0
    with psycopg.connect(house.database_url) as connection:
        shares = connection.execute(
            "select count(*) from rankings join users on users.id = annotator_id "
            "where is_simulated group by annotator_id"
        ).fetchall()
        places = connection.execute(
            "select messages->-1->>'content', text, place from ranking_places "
            "join completions on completions.id = completion_id join prompts on prompts.id = prompt_id"
        ).fetchall()
    assert sorted(count for (count,) in shares) == [2, 2, 3]
    best = {prompt: utility(prompt, text) for prompt, text, place in places if place == 1}
    worst = {prompt: utility(prompt, text) for prompt, text, place in places if place == 2}
    assert len(best) == len(worst) == 7
    assert all(best[prompt] > worst[prompt] for prompt in best)


def test_the_command_ranks_a_project_by_its_name(house: House, tmp_path: Path) -> None:
    with_answers(house, num_prompts=3)
    figures = tmp_path / "figures.json"
    options = ["--annotators", "2", "--url", house.server.url, "--token", house.admin_token, "--json", str(figures)]
    result = run_rankloop(house, "simulate", "--project", "tiny", *options)
    assert result.exit_code == 0, result.output
    assert json.loads(figures.read_text()) == {"num_ranked": 3}


def test_a_run_that_fails_ends_the_simulation_with_its_cause(house: House) -> None:
    loop = Loop(
        client=house.admin,
        url=house.server.url,
        tokens=[],
        annotators=Annotators(num=1),
        training={},
        find_model=lambda _: ModelSource(Path()),
        say=print,
    )
    story = Story(loop, seed=1)
    project = house.make_project(model_alias="missing")
    house.import_prompts(project, 1)
    run = house.admin.start_sampling(project["id"])
    assert work_off(house) == 1
    with pytest.raises(RunFailed, match=r"The sample run .* failed: .*missing"):
        story._finished(run["id"])
