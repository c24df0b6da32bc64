"""A version that was trained elsewhere: delivered, registered with its lineage, promoted, sampled from."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.accounts.models import Scope
from app.loop.delivered import Figures
from tests.contract.conftest import House, house, tiny_folder, work_off
from tests.trainer.tiny import make_model, make_tokenizer
from trainer.client import ApiError, Client, ClientError
from trainer.preferences import Answer, Ranking
from trainer.reward_report import make_report

__all__ = ["house", "tiny_folder"]

pytestmark = pytest.mark.real_commits


@pytest.fixture
def trained_elsewhere(tmp_path: Path) -> Path:
    """Weights that Rankloop did not make."""
    folder = tmp_path / "mine"
    tokenizer = make_tokenizer()
    make_model(tokenizer, seed=23).save_pretrained(folder)
    return folder


WIN_RATE = {"value": 0.58, "low": 0.53, "high": 0.63}
ACCURACY = WIN_RATE | {"num_pairs": 900, "num_prompts": 60}


def trainer_of(house: House, *scopes: Scope) -> Client:
    token = house.admin.create_token(name="cluster", scopes=list(scopes))["token"]
    return Client(house.server.url, token)


def test_a_delivered_version_is_registered_promoted_and_sampled_from(house: House, trained_elsewhere: Path) -> None:
    project = house.make_project()
    house.import_prompts(project, 2)
    house.admin.start_sampling(project["id"])
    work_off(house)
    house.rank_everything(project)
    dataset = house.admin.create_dataset(project_id=project["id"])
    with trainer_of(house, Scope.READ, Scope.WRITE, Scope.WORKER, Scope.ADMIN) as trainer:
        version = trainer.register_version(
            project["id"],
            trained_elsewhere,
            dataset_id=dataset["id"],
            training={"framework": "ours"},
            metrics={"accuracy": ACCURACY, "win_rate": WIN_RATE, "wins_of_our_own": 0.58},
        )
        assert (version["number"], version["kind"], version["is_live"]) == (2, "policy", False)
        assert version["dataset_id"] == dataset["id"]
        assert version["metrics"] == {"accuracy": ACCURACY, "win_rate": WIN_RATE, "wins_of_our_own": 0.58}
        assert version["parent_id"] == house.admin.list_versions(project["id"])[-1]["id"]
        trainer.promote_version(version["id"], "better, by our own judges")
    house.import_prompts(project, 4)
    house.admin.start_sampling(project["id"])
    work_off(house)
    answers = house.admin.completions(project["id"], version_id=version["id"])
    assert answers, "the next answers are by the delivered version"


def test_our_own_report_is_a_figure_that_may_come_from_elsewhere() -> None:
    """Whoever trains with `rankloop train reward` delivers it, and pages read each of its parts."""
    people = [ranking(number, by) for number in range(8) for by in ("ada", "bashir")]
    scores = [[0.5, 0.1, -0.2]] * len(people)
    lengths, heads = [[3, 5, 4]] * len(people), [[[value, value] for value in row] for row in scores]
    report = make_report(people, scores, lengths, people=people, members=heads)
    found = Figures.model_validate({"report": report}).report
    assert found is not None
    assert [row.policies for row in found.by_policies] == [("p", "p")]
    assert found.by_margin
    assert found.by_agreement
    with pytest.raises(ValidationError, match="by_margin"):
        Figures.model_validate({"report": report | {"by_margin": 1}})


def ranking(number: int, annotator: str) -> Ranking:
    """Three answers of one policy, in order."""
    answers = tuple(Answer(f"{number} {place}", "text", "stop", policy="p") for place in range(3))
    return Ranking(f"{number} {annotator}", str(number), [], answers, (0, 1, 2), "validation", annotator)


@pytest.mark.parametrize("name", ["accuracy", "win_rate", "reward", "validation_loss", "num_pairs", "report"])
def test_a_figure_under_a_name_of_ours_has_our_shape(house: House, trained_elsewhere: Path, name: str) -> None:
    project = house.make_project()
    with (
        trainer_of(house, Scope.READ, Scope.WRITE, Scope.WORKER) as trainer,
        pytest.raises(ApiError, match=name),
    ):
        trainer.register_version(project["id"], trained_elsewhere, metrics={name: 0.58})
    assert len(house.admin.list_versions(project["id"])) == 1


def test_what_fails_on_the_way_leaves_a_failed_run_and_no_version(house: House, trained_elsewhere: Path) -> None:
    project = house.make_project()
    (trained_elsewhere / "no good name!.bin").write_bytes(b"x")
    with (
        trainer_of(house, Scope.READ, Scope.WRITE, Scope.WORKER) as trainer,
        pytest.raises(ClientError),
    ):
        trainer.register_version(project["id"], trained_elsewhere)
    [run] = house.admin.list_runs(project["id"])
    assert (run["kind"], run["state"]) == ("external", "failed")
    assert "no good name" in run["error"]
    assert len(house.admin.list_versions(project["id"])) == 1


def test_parents_and_datasets_of_other_projects_do_not_exist(house: House, trained_elsewhere: Path) -> None:
    project, other = house.make_project(), house.make_project(slug="other", name="Other")
    foreign = house.admin.list_versions(other["id"])[0]["id"]
    with trainer_of(house, Scope.READ, Scope.WRITE, Scope.WORKER) as trainer:
        with pytest.raises(ApiError, match="parent_id"):
            trainer.register_version(project["id"], trained_elsewhere, parent_id=foreign)
        with pytest.raises(ApiError, match="no such dataset"):
            trainer.register_version(project["id"], trained_elsewhere, dataset_id=str(uuid.UUID(int=7)))
    assert house.admin.list_runs(project["id"]) == []
