"""Settings of projects: what is refused, and by which name."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import Invalid
from app.projects.models import Project
from app.projects.schemas import ProjectIn, checked, checked_changes
from app.projects.service import DEFAULT_SAMPLING, INSTRUCTGPT_LABELS

GOOD: dict[str, Any] = {"name": "Tone", "model_alias": "tiny"}


@pytest.mark.parametrize("k", [1, 10, 0, -4])
def test_k_outside_2_to_9_is_refused(k: int) -> None:
    with pytest.raises(Invalid, match="k: ") as refusal:
        checked(ProjectIn, GOOD | {"k": k})
    assert [item.field for item in refusal.value.errors] == ["k"]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"sampling": {"temperature": 0}}, "sampling.temperature"),
        ({"sampling": {"top_k": 5}}, "sampling.top_k"),
        ({"model_alias": "../../etc"}, "model_alias"),
        ({"model_alias": "https://example.org/model"}, "model_alias"),
        ({"overlap": 0}, "overlap"),
        ({"gold_share": 0.51}, "gold_share"),
        ({"qualify_tasks": 26}, "qualify_tasks"),
        ({"qualify_mark": 1.1}, "qualify_mark"),
        ({"qualify_tries": 0}, "qualify_tries"),
        ({"gold_window": -1}, "gold_window"),
        ({"review_above": 1.1}, "review_above"),
        ({"max_annotator_share": 0}, "max_annotator_share"),
        ({"max_annotator_share": 1.01}, "max_annotator_share"),
        ({"compare_share": 1.01}, "compare_share"),
        ({"compare_new": "always"}, "compare_new"),
        ({"compare_prompts": 0}, "compare_prompts"),
        ({"reward_start": "round"}, "reward_start"),
        ({"policy_start": "live"}, "policy_start"),
        ({"policy_gate": "luck"}, "policy_gate"),
        ({"overlap_share": 1.01}, "overlap_share"),
        ({"name": "  "}, "name"),
        ({"training": {"dpo": {}}}, "training.dpo"),
    ],
)
def test_the_field_is_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        checked(ProjectIn, GOOD | values)
    assert [item.field for item in refusal.value.errors] == [field]


def make_project() -> Project:
    return Project(
        name="Tone",
        slug="tone",
        model_alias="tiny",
        guidelines="",
        k=4,
        ties_allowed=True,
        partial_allowed=False,
        labels=INSTRUCTGPT_LABELS,
        overlap=1,
        overlap_share=1.0,
        gold_share=0.0,
        qualify_tasks=0,
        qualify_mark=0.7,
        qualify_tries=2,
        gold_window=0,
        review_above=0.5,
        compare_share=0.25,
        compare_new="off",
        compare_prompts=200,
        reward_gate="held_out",
        policy_gate="off",
        reward_start="sft",
        policy_start="round",
        rank_next="random",
        random_share=0.2,
        help="none",
        unassisted_share=0.25,
        lease_minutes=60,
        sampling=DEFAULT_SAMPLING,
        training={},
        train_threshold=None,
        is_paused=False,
        rationale="optional",
        min_rationale=0,
        confidence="off",
        asks_all_bad=False,
        examples=[],
        layout="grid",
        has_review_step=False,
        writes_demonstrations=False,
        writes_prompts=False,
        allows_self_review=False,
        drafts_demonstrations=False,
    )


def test_only_what_differs_is_a_change() -> None:
    assert checked_changes(make_project(), {"k": 4, "overlap": 3}) == {"overlap": 3}


def test_what_a_project_was_made_from_stays() -> None:
    with pytest.raises(Invalid) as refusal:
        checked_changes(make_project(), {"model_alias": "other"})
    assert [item.field for item in refusal.value.errors] == ["model_alias"]
