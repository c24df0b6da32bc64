"""Wire shapes of rounds."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from app.loop.outcomes import LabelShare

if TYPE_CHECKING:
    from app.loop.comparisons import ComparisonView


class PlanOut(BaseModel):
    """What *Train* would do now. `seconds` is null until something was measured."""

    model_config = ConfigDict(from_attributes=True)

    num_rankings: int
    num_new_rankings: int
    num_episodes: int | None
    seconds: float | None


class RoundOut(BaseModel):
    """A round and what it made."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    number: int
    policy_version_id: uuid.UUID
    sample_run_id: uuid.UUID | None
    dataset_id: uuid.UUID | None
    reward_run_id: uuid.UUID | None
    policy_run_id: uuid.UUID | None
    next_version_id: uuid.UUID | None
    stopped: dict[str, Any]
    """Why people stopped it; empty: it goes on."""
    created_at: datetime
    closed_at: datetime | None


class ComparisonOut(BaseModel):
    """A blind comparison of two policies. `low` and `high` may be looked at after every ranking."""

    number: int
    state: Literal["sampling", "ranking", "better", "worse", "undecided", "stopped", "superseded"]
    version_id: uuid.UUID
    against_id: uuid.UUID
    judge_version_id: uuid.UUID | None
    """The reward model that judges; null: people."""
    superseded_by_id: uuid.UUID | None
    """The policy that went live while nobody had begun this comparison; null: it was not superseded."""
    num_prompts: int
    num_ranked: int
    win_rate: float | None
    low: float
    high: float
    labels: list[LabelShare]
    created_at: datetime
    closed_at: datetime | None

    @classmethod
    def of(cls, view: ComparisonView) -> ComparisonOut:
        """The wire shape of a comparison with its figures."""
        row, figures = view.comparison, view.figures
        named = ("version_id", "against_id", "judge_version_id", "superseded_by_id")
        names = ("number", "state", *named, "created_at", "closed_at")
        said = ("num_prompts", "num_ranked", "win_rate", "low", "high", "labels")
        return cls(**{name: getattr(row, name) for name in names}, **{name: getattr(figures, name) for name in said})
