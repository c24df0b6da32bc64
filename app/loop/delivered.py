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
    num_prompts: Count | None = None


class Accuracy(Share):
    """Of a reward model, on held-out pairs."""

    num_pairs: Count
    num_prompts: Count


class Agreeing(Accuracy):
    """On the pairs about which so many people agree."""

    agreeing: Count
    of: Count


class Between(Accuracy):
    """On the pairs between two bounds of what the group is by."""

    begin: Annotated[Finite, Field(alias="from")]
    end: Annotated[Finite, Field(alias="to")]


class OfPolicies(Share):
    """On the pairs of answers of two policies."""

    policies: tuple[str, str]


class Calibration(BaseModel):
    """How far the stated chances are from what people did."""

    model_config = ConfigDict(extra="allow")

    error: Finite


class Length(BaseModel):
    """What the scores have to do with length."""

    model_config = ConfigDict(extra="allow")

    correlation: Finite | None
    longer_is_better: Accuracy | None


class People(BaseModel):
    """How people agree with each other."""

    model_config = ConfigDict(extra="allow")

    agreement: Accuracy | None
    num_annotators: Count


class Report(BaseModel):
    """Where a reward model is right, as `rankloop train reward` writes it."""

    model_config = ConfigDict(extra="allow")

    calibration: Calibration | None
    length: Length
    people: People
    by_agreement: list[Agreeing]
    by_margin: list[Between]
    by_doubt: list[Between]
    by_length_difference: list[Between]
    by_policies: list[OfPolicies]


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
    report: Report | None = None
    sft: dict[str, Any] | None = None
