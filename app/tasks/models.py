"""Tables of tasks, of leases, and of who may have them.

Triggers keep `num_taken` true and never let it exceed `overlap` (design, rule 1).
"""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, FalseByDefault, ProjectId, UserId, UuidKey, ZeroByDefault


class LeaseState(StrEnum):
    """Where a lease stands. `open` and `answered` leases take a place of their task."""

    OPEN = "open"  # -> answered, released, expired
    ANSWERED = "answered"
    RELEASED = "released"  # skipped: this person does not get the task again
    EXPIRED = "expired"  # -> open (its owner comes back while a place is free), answered (a late ranking)


class LeaseKind(StrEnum):
    """What an open lease is for. A person holds one in hand and one ahead, or a pack."""

    ACTIVE = "active"  # in hand; -> offline
    PRELOADED = "preloaded"  # fetched while the one in hand is ranked; -> active, offline
    OFFLINE = "offline"  # one of a pack that a device took along


class SkipKind(StrEnum):
    """Why an annotator gave a task back for good."""

    LANGUAGE = "language"
    SAME = "same"
    HARMFUL = "harmful"
    BROKEN = "broken"  # a report: an admin looks at the prompt
    OTHER = "other"  # said in words


class Purpose(StrEnum):
    """What the rankings of a task are for. A task keeps its purpose for ever."""

    LEARN = "learn"
    COMPARE = "compare"  # whether one version answers better than another: nothing learns from it


class Audience(Base):
    """Who may rank some tasks of a project: whoever reads the language and has all the skills. Made by a trigger."""

    __tablename__ = "audiences"
    __table_args__ = (UniqueConstraint("project_id", "language", "skills"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    project_id: Mapped[ProjectId]
    # Of zh-Hans it is zh.
    language: Mapped[str]
    skills: Mapped[list[str]]


class StandingState(StrEnum):
    """How far somebody is in a project that asks for a qualification, or looks at gold during work."""

    TESTING = "testing"  # ranks the tasks of the qualification -> qualified, failed, excluded
    QUALIFIED = "qualified"  # does real work -> paused
    FAILED = "failed"  # may try again -> testing
    PAUSED = "paused"  # was let in, but agrees too little with gold -> testing
    EXCLUDED = "excluded"  # until an admin says otherwise


class Standing(Base):
    """Whether somebody gets real work in a project. Written by `quality`; whoever has no row has not begun."""

    __tablename__ = "standings"
    __table_args__ = (
        CheckConstraint("state in ('testing', 'qualified', 'failed', 'paused', 'excluded')", name="state"),
        CheckConstraint("num_done between 0 and num_asked", name="num_done"),
        CheckConstraint("num_tries >= 0", name="num_tries"),
        CheckConstraint("score between 0 and 1", name="score"),
    )

    project_id: Mapped[ProjectId] = mapped_column(primary_key=True)
    annotator_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    state: Mapped[str]
    # Since the person was let in, or paused; a pause gives as many tries as there were at first.
    num_tries: Mapped[ZeroByDefault]
    # Of the try that runs, or ran last: its tasks, and those that are answered.
    num_asked: Mapped[ZeroByDefault]
    num_done: Mapped[ZeroByDefault]
    # Their newest ranking when that try began, or when an admin decided: only later ones count.
    since_number: Mapped[int] = mapped_column(BigInteger, server_default="0", default=0)
    # The agreement with known orders that led to this state; null: an admin decided, or nothing is decided yet.
    score: Mapped[float | None]
    changed_at: Mapped[Created]


class TaskFacts(NamedTuple):
    """Of a task, whose it is and what its ranking is for."""

    id: uuid.UUID
    project_id: uuid.UUID
    purpose: str
    is_gold: bool
    is_qualifying: bool


class Task(Base):
    """2..9 completions of one prompt that wait for `overlap` rankings."""

    Facts: ClassVar[type[TaskFacts]] = TaskFacts

    __tablename__ = "tasks"
    __table_args__ = (
        Index(
            "ix_tasks_waiting",
            "project_id",
            text("priority desc"),
            "number",
            postgresql_where=text("num_taken < overlap"),
        ),
        Index(
            "ix_tasks_audience",
            "audience_id",
            text("priority desc"),
            "number",
            postgresql_where=text("num_taken < overlap"),
        ),
        Index("ix_tasks_project", "project_id", "number"),
        Index("ix_tasks_prompt", "prompt_id"),
        Index("ix_tasks_gold", "project_id", postgresql_where=text("is_gold")),
        Index(
            "ix_tasks_compare",
            "project_id",
            "number",
            postgresql_where=text("purpose = 'compare' and num_taken < overlap and withdrawn_at is null"),
        ),
        CheckConstraint("purpose in ('learn', 'compare')", name="purpose"),
        CheckConstraint("overlap between 1 and 100", name="overlap"),
        CheckConstraint("is_gold or not is_qualifying", name="qualifying"),
        CheckConstraint("num_taken >= 0", name="num_taken"),
        CheckConstraint("chosen_by in ('random', 'disagreement', 'expected_gain', 'novelty')", name="chosen_by"),
        CheckConstraint("chosen_by = 'random' or (score is not null and judged_run_id is not null)", name="chosen"),
    )

    id: Mapped[UuidKey]
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    project_id: Mapped[ProjectId]
    prompt_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"))
    # What its prompt asks of people; set by a trigger when the task is made.
    audience_id: Mapped[int | None] = mapped_column(ForeignKey("audiences.id"))
    run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id"))
    purpose: Mapped[str] = mapped_column(server_default=Purpose.LEARN, default=Purpose.LEARN)
    # Written by `loop`.
    round: Mapped[int | None]
    priority: Mapped[ZeroByDefault]
    # Why it stands where it stands among the tasks of its round, by which score, and the run that said so. What came at
    # random has its score, too.
    chosen_by: Mapped[str] = mapped_column(server_default="random", default="random")
    score: Mapped[float | None]
    judged_run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id"))
    # Its answers as that run's reward model orders them, best first.
    judged_order: Mapped[list[uuid.UUID] | None]
    # Written by `quality`: a reviewer has decided about the rankings up to this one, and they are changed no more.
    settled_number: Mapped[int | None] = mapped_column(BigInteger)
    overlap: Mapped[int]
    # Left out of the share of tasks that several people rank: a new N of its project does not hold for it.
    is_single: Mapped[FalseByDefault]
    # Its order is known: everybody may get it. Written by the trigger of `quality`'s known orders.
    is_gold: Mapped[FalseByDefault]
    # Gold that belongs to the qualification: its order is shown afterwards, so it never comes between other tasks.
    is_qualifying: Mapped[FalseByDefault]
    # Open leases and current rankings; written by triggers alone.
    num_taken: Mapped[ZeroByDefault]
    withdrawn_at: Mapped[datetime | None]
    created_at: Mapped[Created]


class TaskCompletion(Base):
    """One of the completions that a task compares."""

    __tablename__ = "task_completions"
    __table_args__ = (
        UniqueConstraint("task_id", "position"),
        CheckConstraint("position between 0 and 8", name="position"),
    )

    task_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    completion_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("completions.id"), primary_key=True)
    position: Mapped[int]


class LeaseFacts(NamedTuple):
    """Of a lease, what its annotator sees and answers."""

    id: uuid.UUID
    task_id: uuid.UUID
    annotator_id: uuid.UUID | None
    state: str
    display_order: list[uuid.UUID]
    is_assisted: bool
    created_at: datetime
    expires_at: datetime


class Lease(Base):
    """One annotator's time-limited right to answer one task, with the display order it saw."""

    Facts: ClassVar[type[LeaseFacts]] = LeaseFacts

    __tablename__ = "leases"
    __table_args__ = (
        # Nobody gets a task twice.
        UniqueConstraint("task_id", "annotator_id"),
        # One task in hand and one fetched ahead a person, in however many tabs. A trigger keeps these apart from packs,
        # and a pack to one device and 25 tasks.
        Index(
            "uq_leases_active", "annotator_id", unique=True, postgresql_where=text("state = 'open' and kind = 'active'")
        ),
        Index(
            "uq_leases_preloaded",
            "annotator_id",
            unique=True,
            postgresql_where=text("state = 'open' and kind = 'preloaded'"),
        ),
        Index("ix_leases_annotator", "annotator_id", "state"),
        Index("ix_leases_expiry", "expires_at", postgresql_where=text("state = 'open'")),
        CheckConstraint("state in ('open', 'answered', 'released', 'expired')", name="state"),
        CheckConstraint("kind in ('active', 'preloaded', 'offline')", name="kind"),
        CheckConstraint("kind <> 'offline' or pack_id is not null", name="pack"),
        CheckConstraint("skip_kind in ('language', 'same', 'harmful', 'broken', 'other')", name="skip_kind"),
        CheckConstraint("skip_kind <> 'other' or skip_reason <> ''", name="skip_reason"),
        Index(
            "ix_leases_reports",
            "task_id",
            postgresql_where=text("skip_kind = 'broken' and report_closed_at is null"),
        ),
    )

    id: Mapped[UuidKey]
    task_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    annotator_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    state: Mapped[str] = mapped_column(server_default="open", default=LeaseState.OPEN)
    kind: Mapped[str] = mapped_column(server_default="active", default=LeaseKind.ACTIVE)
    # These stay when the kind changes: a ranking says how its task came to the annotator.
    was_preloaded: Mapped[FalseByDefault]
    pack_id: Mapped[uuid.UUID | None]
    # The completions as this annotator sees them, and the seed that shuffled them.
    display_order: Mapped[list[uuid.UUID]]
    seed: Mapped[int] = mapped_column(BigInteger)
    # The order is a reward model's. Written by a trigger when the lease is made, and never changed.
    is_assisted: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[Created]
    expires_at: Mapped[datetime]
    skip_kind: Mapped[str | None]
    skip_reason: Mapped[str | None]
    report_closed_at: Mapped[datetime | None]
    draft: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    draft_saved_at: Mapped[datetime | None]


MAX_WHY_LENGTH = 2000
"""Of the reason for a known order."""


class GoldOrder(Base):
    """The known order of a gold task, written by quality or by an import of rankings.

    Triggers hold it to the answers of its task, and keep `tasks.is_gold` with it.
    """

    __tablename__ = "gold_orders"
    __table_args__ = (CheckConstraint("1 <= all (places) and 9 >= all (places)", name="places"),)

    task_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    # Of the task's answers, in its order; 1 is best, two with the same place are tied.
    places: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    why: Mapped[str] = mapped_column(server_default="", default="")
    # Asked in the qualification, where the order is shown afterwards, and nowhere else.
    is_qualifying: Mapped[FalseByDefault]
    marked_by: Mapped[UserId | None]
    marked_at: Mapped[Created]


AnyTask = Task | TaskFacts
AnyLease = Lease | LeaseFacts
