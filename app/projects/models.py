"""The table of projects: what is asked of annotators, and with which settings the loop runs."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import BigInteger, CheckConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, FalseByDefault, TrueByDefault, UserId, UuidKey, ZeroByDefault


class Asked(StrEnum):
    """Whether annotators are asked a question."""

    OFF = "off"
    OPTIONAL = "optional"
    REQUIRED = "required"


class CompareNew(StrEnum):
    """With which policies people compare every new one, without knowing it."""

    OFF = "off"
    BASE = "base"  # with version 1
    BOTH = "both"  # and with the one before


class RewardGate(StrEnum):
    """What a new reward model must show before it goes live."""

    OFF = "off"
    HELD_OUT = "held_out"  # no worse than the live one on held-out rankings of every round, better on the newest


class PolicyGate(StrEnum):
    """What a new policy must show before it goes live."""

    OFF = "off"
    SECOND_REWARD_MODEL = "second_reward_model"  # a reward model that did not train it does
    PEOPLE = "people"  # people prefer its answers to the live one's, without knowing whose they are


class RewardStart(StrEnum):
    """Where a reward model begins to learn the rankings of all rounds."""

    SFT = "sft"  # fresh, on the weights of version 1: nothing that an earlier one had wrong is kept
    LIVE = "live"  # a warm start: the live reward model goes on


class PolicyStart(StrEnum):
    """Where PPO begins. What it must stay near is version 1 in either case."""

    ROUND = "round"  # the policy that answered in the round goes on
    SFT = "sft"  # version 1: nothing that exploited an earlier reward model is kept


class RankNext(StrEnum):
    """Which of the tasks that wait come first."""

    RANDOM = "random"
    DISAGREEMENT = "disagreement"  # those about which the heads of the reward model differ most
    EXPECTED_GAIN = "expected_gain"  # those whose ranking is expected to tell most about which head is right
    NOVELTY = "novelty"  # those whose answers are least like any that was ranked


class Help(StrEnum):
    """What a model may do for annotators before they look."""

    NONE = "none"
    PRESORT = "presort"  # the reward model puts the cards in its order, the best first, and the page says so


class Layout(StrEnum):
    """How the ranking page lays out its answers at first; each annotator may choose another."""

    STACKED = "stacked"
    SIDE_BY_SIDE = "grid"
    TWO_COLUMNS = "columns"


class ProjectFacts(NamedTuple):
    """Of a project, what it takes to hand out a task and to check an answer."""

    id: uuid.UUID
    slug: str
    name: str
    is_paused: bool
    archived_at: datetime | None
    lease_minutes: int
    qualify_tasks: int
    gold_window: int
    ties_allowed: bool
    partial_allowed: bool
    labels: list[Any]
    rationale: str
    min_rationale: int
    confidence: str


class Project(Base):
    """What is asked of annotators, and how the loop runs."""

    Facts: ClassVar[type[ProjectFacts]] = ProjectFacts

    __tablename__ = "projects"
    __table_args__ = (
        CheckConstraint("k between 2 and 9", name="k"),
        CheckConstraint("overlap between 1 and 100", name="overlap"),
        CheckConstraint("overlap_share between 0 and 1", name="overlap_share"),
        CheckConstraint("gold_share between 0 and 0.5", name="gold_share"),
        CheckConstraint("compare_share between 0 and 1", name="compare_share"),
        CheckConstraint("compare_new in ('off', 'base', 'both')", name="compare_new"),
        CheckConstraint("compare_prompts between 1 and 2000", name="compare_prompts"),
        CheckConstraint("qualify_tasks between 0 and 25", name="qualify_tasks"),
        CheckConstraint("qualify_mark between 0 and 1", name="qualify_mark"),
        CheckConstraint("review_above between 0 and 1", name="review_above"),
        CheckConstraint("qualify_tries between 1 and 10", name="qualify_tries"),
        CheckConstraint("gold_window between 0 and 100", name="gold_window"),
        CheckConstraint(
            "max_annotator_share is null or (max_annotator_share > 0 and max_annotator_share <= 1)",
            name="max_annotator_share",
        ),
        CheckConstraint("lease_minutes between 1 and 1440", name="lease_minutes"),
        CheckConstraint("rationale in ('off', 'optional', 'required')", name="rationale"),
        CheckConstraint("min_rationale between 0 and 2000", name="min_rationale"),
        CheckConstraint("confidence in ('off', 'optional', 'required')", name="confidence"),
        CheckConstraint("layout in ('stacked', 'grid', 'columns')", name="layout"),
        CheckConstraint("reward_gate in ('off', 'held_out')", name="reward_gate"),
        CheckConstraint("policy_gate in ('off', 'people', 'second_reward_model')", name="policy_gate"),
        CheckConstraint("reward_start in ('sft', 'live')", name="reward_start"),
        CheckConstraint("policy_start in ('round', 'sft')", name="policy_start"),
        CheckConstraint("rank_next in ('random', 'disagreement', 'expected_gain', 'novelty')", name="rank_next"),
        CheckConstraint("random_share between 0.1 and 1", name="random_share"),
        CheckConstraint("help in ('none', 'presort')", name="help"),
        CheckConstraint("unassisted_share between 0.1 and 1", name="unassisted_share"),
        CheckConstraint("train_every_hours is null or train_every_hours between 1 and 8760", name="train_every_hours"),
        CheckConstraint("train_threshold is null or train_threshold > 0", name="train_threshold"),
        CheckConstraint(
            "validation_share >= 0 and test_share >= 0 and validation_share + test_share < 1", name="shares"
        ),
    )

    id: Mapped[UuidKey]
    slug: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    guidelines: Mapped[str] = mapped_column(server_default="", default="")
    model_alias: Mapped[str]
    k: Mapped[int] = mapped_column(server_default="4", default=4)
    ties_allowed: Mapped[TrueByDefault]
    partial_allowed: Mapped[FalseByDefault]
    # [{"key", "en", "zh", "required", "removed"}]: what an annotator may mark on an answer. Keys stay for ever.
    labels: Mapped[list[Any]] = mapped_column(JSONB, server_default="[]")
    # What is asked about the whole ranking.
    rationale: Mapped[str] = mapped_column(server_default=Asked.OPTIONAL, default=Asked.OPTIONAL)
    min_rationale: Mapped[ZeroByDefault]
    confidence: Mapped[str] = mapped_column(server_default=Asked.OFF, default=Asked.OFF)
    asks_all_bad: Mapped[FalseByDefault]
    # [{"prompt", "good", "good_why", "bad", "bad_why"}]: shown with the guidelines.
    examples: Mapped[list[Any]] = mapped_column(JSONB, server_default="[]", default=list)
    layout: Mapped[str] = mapped_column(server_default=Layout.SIDE_BY_SIDE, default=Layout.SIDE_BY_SIDE)
    # What annotators may write, and whether an author may approve what they wrote themselves.
    writes_demonstrations: Mapped[FalseByDefault]
    writes_prompts: Mapped[FalseByDefault]
    allows_self_review: Mapped[FalseByDefault]
    # Whether an ideal answer may begin as a model's; the share without help is that of rankings.
    drafts_demonstrations: Mapped[FalseByDefault]
    # Whether an order is looked at once more before it is sent.
    has_review_step: Mapped[FalseByDefault]
    overlap: Mapped[int] = mapped_column(server_default="1", default=1)
    # Of its tasks, how many `overlap` holds for; the others are ranked once.
    overlap_share: Mapped[float] = mapped_column(server_default="1", default=1.0)
    # How many of the tasks that a person gets have a known order.
    gold_share: Mapped[float] = mapped_column(server_default="0", default=0.0)
    # While versions are compared: how many of the tasks that a person gets are for that.
    compare_share: Mapped[float] = mapped_column(server_default="0.25", default=0.25)
    # Which comparisons begin by themselves with each new policy, and on how many held-out prompts each.
    compare_new: Mapped[str] = mapped_column(server_default=CompareNew.OFF, default=CompareNew.OFF)
    compare_prompts: Mapped[int] = mapped_column(server_default="200", default=200)
    # The tasks of a qualification (0: none is asked), the agreement with their known orders that passes it, and how
    # often somebody may try. The same mark holds during work, over so many of the newest gold tasks (0: nobody looks).
    qualify_tasks: Mapped[ZeroByDefault]
    qualify_mark: Mapped[float] = mapped_column(server_default="0.7", default=0.7)
    qualify_tries: Mapped[int] = mapped_column(server_default="2", default=2)
    gold_window: Mapped[ZeroByDefault]
    # A task waits for a reviewer where people differ on a larger share of the pairs of answers; 1: none does.
    review_above: Mapped[float] = mapped_column(server_default="0.5", default=0.5)
    # How much of what a training learns from may be one person's (app/datasets/caps.py); null: all of it.
    max_annotator_share: Mapped[float | None]
    lease_minutes: Mapped[int] = mapped_column(server_default="60", default=60)
    # {"temperature", "top_p", "max_new_tokens", "seed"}
    sampling: Mapped[dict[str, Any]] = mapped_column(JSONB)
    # {"reward": {...}, "ppo": {...}}: overrides of the trainer's defaults.
    training: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    # Which of the waiting tasks come first, and how many of them are at random whatever that is.
    rank_next: Mapped[str] = mapped_column(server_default=RankNext.RANDOM, default=RankNext.RANDOM)
    random_share: Mapped[float] = mapped_column(server_default="0.2", default=0.2)
    # What a model may do for annotators, and on how many of the tasks it never does, so that one sees whether it leads.
    help: Mapped[str] = mapped_column(server_default=Help.NONE, default=Help.NONE)
    unassisted_share: Mapped[float] = mapped_column(server_default="0.25", default=0.25)
    # What a new version must show before it goes live.
    reward_gate: Mapped[str] = mapped_column(server_default=RewardGate.HELD_OUT, default=RewardGate.HELD_OUT)
    policy_gate: Mapped[str] = mapped_column(server_default=PolicyGate.OFF, default=PolicyGate.OFF)
    # The number of the reward version that judges policies; null: the newest that did not train the one in question.
    policy_judge: Mapped[int | None]
    # Where a training begins, unless whoever starts it says otherwise.
    reward_start: Mapped[str] = mapped_column(server_default=RewardStart.SFT, default=RewardStart.SFT)
    policy_start: Mapped[str] = mapped_column(server_default=PolicyStart.ROUND, default=PolicyStart.ROUND)
    # Train by itself once so many hours have passed since the last training; null: not by the clock.
    train_every_hours: Mapped[int | None]
    # Train by itself after so many new rankings; null: by hand only.
    train_threshold: Mapped[int | None]
    validation_share: Mapped[float] = mapped_column(server_default="0.15", default=0.15)
    test_share: Mapped[float] = mapped_column(server_default="0.1", default=0.1)
    # Salt of the split: the same conversation may be held out in one project and not in another.
    seed: Mapped[int] = mapped_column(BigInteger, server_default="17", default=17)
    is_paused: Mapped[FalseByDefault]
    created_by: Mapped[UserId | None]
    created_at: Mapped[Created]
    archived_at: Mapped[datetime | None]


AnyProject = Project | ProjectFacts
