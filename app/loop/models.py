"""Tables of the loop: rounds, and blind comparisons of what came out of them."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, EmptyObject, ProjectId, UserId, UuidKey


class Round(Base):
    """Policy version -> completions -> rankings -> reward version -> policy version. The newest of a project is the
    current one.
    """

    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("project_id", "number"),)

    id: Mapped[UuidKey]
    project_id: Mapped[ProjectId]
    number: Mapped[int]
    policy_version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("versions.id"))
    sample_run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id"))
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("datasets.id"))
    reward_run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id"))
    policy_run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id"))
    next_version_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("versions.id"))
    # Why people stopped it (app/loop/halts.py); empty: it goes on.
    stopped: Mapped[EmptyObject]
    created_at: Mapped[Created]
    closed_at: Mapped[datetime | None]


class ComparisonState(StrEnum):
    """Where a comparison of two versions stands."""

    # Both versions answer held-out prompts, and the judge scores them, where there is one -> ranking, stopped,
    # superseded; with a judge also better, worse, undecided.
    SAMPLING = "sampling"
    RANKING = "ranking"  # people rank, without knowing it -> better, worse, undecided, stopped, superseded
    BETTER = "better"  # the version answers better than the other
    WORSE = "worse"
    UNDECIDED = "undecided"  # everything is ranked, and one half is still within the interval
    STOPPED = "stopped"  # by a person, before it was decided
    SUPERSEDED = "superseded"  # nobody had begun it, and a policy went live that it did not ask about


class Comparison(Base):
    """People, or a second reward model, compare two policies blindly, on prompts that neither learned from."""

    __tablename__ = "comparisons"
    __table_args__ = (
        UniqueConstraint("project_id", "number"),
        # The same two are compared once at a time.
        Index(
            "uq_comparisons_open",
            "version_id",
            "against_id",
            unique=True,
            postgresql_where=text("state in ('sampling', 'ranking')"),
        ),
        Index("ix_comparisons_runs", "version_run_id"),
        Index("ix_comparisons_against_runs", "against_run_id"),
        CheckConstraint("version_id <> against_id", name="two_versions"),
        CheckConstraint(
            "state in ('sampling', 'ranking', 'better', 'worse', 'undecided', 'stopped', 'superseded')", name="state"
        ),
        CheckConstraint("(state in ('sampling', 'ranking')) = (closed_at is null)", name="closed"),
        # What nobody asks any more says which policy took its place, and a person's question is not taken back.
        CheckConstraint("(state = 'superseded') = (superseded_by_id is not null)", name="superseded"),
        CheckConstraint("state <> 'superseded' or created_by is null", name="superseded_unasked"),
    )

    id: Mapped[UuidKey]
    project_id: Mapped[ProjectId]
    number: Mapped[int]
    version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("versions.id"))
    against_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("versions.id"))
    # The runs in which the two answer the same prompts.
    version_run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("runs.id"))
    against_run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("runs.id"))
    # The reward model that judges; null: people do.
    judge_version_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("versions.id"))
    state: Mapped[str] = mapped_column(server_default=ComparisonState.SAMPLING, default=ComparisonState.SAMPLING)
    # app/loop/outcomes.py: Figures, as they were when it closed.
    figures: Mapped[EmptyObject]
    # The policy that had gone live; null: it was not superseded.
    superseded_by_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("versions.id"))
    # Who began it; null: it came with a new policy, or with its gate.
    created_by: Mapped[UserId | None]
    created_at: Mapped[Created]
    closed_at: Mapped[datetime | None]


class ComparedPrompt(Base):
    """One prompt of a comparison: which answers of its task are whose. A trigger keeps its task apart from learning."""

    __tablename__ = "compared_prompts"
    __table_args__ = (Index("ix_compared_prompts_prompt", "prompt_id"),)

    comparison_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("comparisons.id", ondelete="CASCADE"), primary_key=True)
    prompt_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"), primary_key=True)
    # Null where all answers are the same text: a tie that nobody needs to rank.
    task_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), unique=True)
    # One entry an answer that was drawn, naming the completion on the task's sheet with that text: it may be both's.
    of_version: Mapped[list[uuid.UUID]]
    of_against: Mapped[list[uuid.UUID]]
