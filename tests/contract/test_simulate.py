"""`rankloop simulate` against the real app: annotators who rank what waits, and whole rounds."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.contract.conftest import House, house, run_rankloop, start_worker, tiny_folder, work_off
from tests.trainer.tiny import make_model, make_tokenizer
from trainer import simulate
from trainer.artifacts import version_folder
from trainer.pocket.utility import utility
from trainer.pocket.world import (
    Quality,
    answer_of_quality,
    familiar_requests,
    held_out_requests,
    is_held_out,
)
from trainer.simulate import PROMPT_SEED, SAMPLING, Annotators, Loop, RunFailed, Story, hire, rank_waiting, run_loop
from trainer.simulate_exam import Exam, Marks
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


def test_people_wait_for_what_may_still_come(house: House) -> None:
    """The last answers come while somebody asks whether more may come, who hears that none will."""
    project_id = with_answers(house, num_prompts=2)
    people = Annotators(num=2, noise=0.0)
    words = iter([True, True, False])

    def may_come() -> bool:
        word = next(words)
        if not word:
            lines = [json.dumps({"prompt": "Say a number.", "completions": ["one", "two"]})]
            house.admin.import_prompts(project_id, [json.dumps({"prompt": "Say a number."})])
            house.admin.import_completions(project_id, lines)
        return word

    tokens = hire(house.admin, people, project_id)
    assert rank_waiting(house.server.url, tokens, project_id, people, may_come=may_come) == 3


def test_the_command_ranks_a_project_by_its_name(house: House, tmp_path: Path) -> None:
    with_answers(house, num_prompts=3)
    figures = tmp_path / "figures.json"
    options = ["--annotators", "2", "--url", house.server.url, "--token", house.admin_token, "--json", str(figures)]
    result = run_rankloop(house, "simulate", "--project", "tiny", *options)
    assert result.exit_code == 0, result.output
    assert json.loads(figures.read_text()) == {"num_ranked": 3}


def test_whole_rounds_end_with_what_the_truth_says_of_them(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "SAMPLING", SAMPLING | {"max_new_tokens": 12})
    monkeypatch.setattr(Exam, "sit", sit_late(house, Exam.sit))
    base = roomy_model(tmp_path / "pocket")
    assert house.worker_settings.models is not None
    house.worker_settings.models.write_text(json.dumps({"pocket": str(base)}), encoding="utf-8")
    people = Annotators(num=2)
    said: list[str] = []
    loop = Loop(
        client=house.admin,
        url=house.server.url,
        tokens=hire(house.admin, people),
        annotators=people,
        training={"ppo": {"num_episodes": 8, "episodes_per_batch": 4, "minibatch_size": 4}},
        find_model=lambda reference: ModelSource(
            base, version_folder(reference, house.admin, house.worker_settings), reference["alias"]
        ),
        say=said.append,
        num_prompts=80,
    )
    worker = start_worker(house, tmp_path / "worker.log")
    try:
        [marks] = run_loop(loop, rounds=2, seeds=1)
    finally:
        worker.terminate()
        worker.wait()
    assert len(marks.rounds) == len(marks.rewards) == len(marks.kl) == 2
    assert [line.partition(":")[0] for line in said] == ["seed 1, SFT", "seed 1, round 1", "seed 1, round 2"]
    assert episodes(house) == [8, 8]
    ranked, asked = ranked_prompts(house), set(marks.sft.utilities)
    # Two rounds; of each, everybody ranks every task.
    assert marks.num_rankings == 2 * people.num * len(ranked)
    assert asked
    assert not asked & ranked
    assert all(map(is_held_out, asked))
    held_out = held_out_requests(80, PROMPT_SEED)
    familiar = familiar_requests(held_out, PROMPT_SEED)
    assert familiar
    assert ranked | asked <= {request.prompt for request in [*held_out, *familiar]}


def sit_late(house: House, sit: Callable[[Exam, ModelSource], Marks]) -> Callable[[Exam, ModelSource], Marks]:
    """An exam that is sat once the second round trains: the loop waits for none."""

    def late(exam: Exam, policy: ModelSource) -> Marks:
        end = time.monotonic() + 120
        while len(episodes(house, kind="reward")) < 2:
            assert time.monotonic() < end, "the second round waits for the first one's exam"
            time.sleep(0.2)
        return sit(exam, policy)

    return late


def episodes(house: House, kind: str = "ppo") -> list[int | None]:
    """Of each run of a kind, in their order."""
    asked = "select result->'num_episodes' from runs where kind = %s order by created_at"
    with psycopg.connect(house.database_url) as connection:
        return [num for (num,) in connection.execute(asked, [kind])]


def roomy_model(folder: Path) -> Path:
    """A random model with room for a prompt of the pocket world and the longest answer."""
    tokenizer = make_tokenizer()
    make_model(tokenizer, context=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ranked_prompts(house: House) -> set[str]:
    """The text of each prompt that somebody ranked answers to."""
    with psycopg.connect(house.database_url) as connection:
        rows = connection.execute(
            "select distinct messages->-1->>'content' from rankings join tasks on tasks.id = task_id "
            "join prompts on prompts.id = prompt_id"
        ).fetchall()
    return {text for (text,) in rows}


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
