"""What a version from elsewhere says of itself, under names that pages, gates and costs read.

All other names are the trainer's own: they are kept as they came.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Portion = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Share(BaseModel):
    """A share with its interval, without which it is no figure here."""

    model_config = ConfigDict(extra="allow")

    value: Portion
    low: Portion
    high: Portion


class Accuracy(Share):
    """Of a reward model, on held-out pairs."""

    num_pairs: Count
    num_prompts: Count


class Course(BaseModel):
    """What training began and ended with."""

    model_config = ConfigDict(extra="allow")

    first: Finite
    last: Finite


class HeldOutLoss(BaseModel):
    """In nats a token, at the start and where it was lowest."""

    model_config = ConfigDict(extra="allow")

    first: Finite
    best: Finite


class Figures(BaseModel):
    """The names that are ours, each as our own trainings report it."""

    model_config = ConfigDict(extra="allow")

    accuracy: Accuracy | None = None
    win_rate: Share | None = None
    kl: Finite | None = None
    reward: Course | None = None
    validation_loss: HeldOutLoss | None = None
    num_rankings: Count | None = None
    num_pairs: Count | None = None
    num_prompts: Count | None = None
    num_completions: Count | None = None
    num_answers: Count | None = None
    num_kept: Count | None = None
    num_duplicates: Count | None = None
    num_conversations: Count | None = None
    num_episodes: Count | None = None
    seconds: Finite | None = None
    tokens_per_second: Finite | None = None
    guard: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    sft: dict[str, Any] | None = None
