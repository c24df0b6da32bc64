"""Tables of the queue: runs, and what their workers report and deliver."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Identity, Index, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, EmptyObject, FalseByDefault, ProjectId, UserId, UuidKey, ZeroByDefault


class RunKind(StrEnum):
    """What a worker is asked to do."""

    SAMPLE = "sample"  # answers that people will rank
    EVALUATE = "evaluate"  # answers to held-out prompts, that nobody trains on
    REWARD = "reward"  # a reward model from a dataset
    PPO = "ppo"  # a better policy against a reward model
    SFT = "sft"  # a policy that imitates demonstrations and corpora
    DPO = "dpo"  # a policy straight from rankings, without a reward model
    BEST_OF_N = "best_of_n"  # a policy that imitates its own answers that a reward model likes best
    STAR = "star"  # a policy that imitates its own answers that pass a check
    SCORE = "score"  # what reward models say of held-out rankings
    JUDGE = "judge"  # what a reward model says of answers that nobody has ranked yet
    EXTERNAL = "external"  # a version that was trained elsewhere, and is delivered here


class RunState(StrEnum):
    """Where a run stands. `app.runs.service` moves it along these arrows and refuses all others."""

    QUEUED = "queued"  # -> running (claimed), cancelled
    RUNNING = "running"  # -> finished, failed, cancelled, queued (released, or its worker fell silent)
    FINISHED = "finished"
    FAILED = "failed"  # -> queued (retried)
    CANCELLED = "cancelled"  # -> queued (retried)


class Run(Base):
    """One piece of work for a worker."""

    __tablename__ = "runs"
    __table_args__ = (
        # One open triggered run a project and kind; runs that a person starts may be several.
        Index(
            "uq_runs_triggered",
            "project_id",
            "kind",
            unique=True,
            postgresql_where=text("is_triggered and state in ('queued', 'running')"),
        ),
        Index("ix_runs_queue", "created_at", postgresql_where=text("state in ('queued', 'running')")),
        Index("ix_runs_project", "project_id", text("created_at desc")),
        CheckConstraint("state in ('queued', 'running', 'finished', 'failed', 'cancelled')", name="state"),
        CheckConstraint("(state = 'running') = (lease_expires_at is not null)", name="running_is_leased"),
        CheckConstraint("state <> 'failed' or error is not null", name="failure_has_cause"),
    )

    id: Mapped[UuidKey]
    project_id: Mapped[ProjectId]
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="queued", default=RunState.QUEUED)
    config: Mapped[EmptyObject]
    is_triggered: Mapped[FalseByDefault]
    created_by: Mapped[UserId | None]
    # Not the transaction's moment: several that it makes are done in their order.
    created_at: Mapped[Created] = mapped_column(default=func.clock_timestamp())
    # The lease number: it grows with every claim, and a write with an older one is refused.
    fence: Mapped[ZeroByDefault]
    attempt: Mapped[ZeroByDefault]
    worker: Mapped[str | None]
    claimed_token_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("api_tokens.id", ondelete="SET NULL"))
    lease_expires_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error: Mapped[str | None]


class RunMetric(Base):
    """One point of one curve."""

    __tablename__ = "run_metrics"

    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    value: Mapped[float] = mapped_column(Double)
    at: Mapped[Created]


class RunLogLine(Base):
    """One line that a worker, or the queue itself, said about a run."""

    __tablename__ = "run_log"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    at: Mapped[Created]
    level: Mapped[str]
    text: Mapped[str]


class Artifact(Base):
    """A file that a run delivered, complete and verified. Its path follows from the run, the fence and the name."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("run_id", "name"), CheckConstraint("size >= 0", name="size"))

    id: Mapped[UuidKey]
    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    name: Mapped[str]
    fence: Mapped[int]
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    created_at: Mapped[Created]
