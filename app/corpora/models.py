"""Tables of corpora: like a dataset, the exact lines are stored and never change."""

from __future__ import annotations

import uuid
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, ProjectId, UserId, UuidKey


class CorpusKind(StrEnum):
    """What a corpus can teach."""

    CONVERSATIONS = "conversations"  # SFT on the assistant's turns; also text for PPO-ptx
    TEXT = "text"  # text for PPO-ptx


class Corpus(Base):
    """An immutable, hashed collection of texts or conversations."""

    __tablename__ = "corpora"
    __table_args__ = (
        UniqueConstraint("project_id", "number"),
        CheckConstraint("kind in ('conversations', 'text')", name="kind"),
        CheckConstraint("num_rows > 0", name="num_rows"),
    )

    id: Mapped[UuidKey]
    project_id: Mapped[ProjectId]
    number: Mapped[int]
    name: Mapped[str]
    kind: Mapped[str]
    num_rows: Mapped[int]
    # Over all lines, each with its newline, in order.
    sha256: Mapped[str]
    created_by: Mapped[UserId | None]
    created_at: Mapped[Created]


class CorpusRow(Base):
    """One line of a corpus."""

    __tablename__ = "corpus_rows"

    # Deferred: the lines are stored before their number and hash are known.
    corpus_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("corpora.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    line: Mapped[str]
