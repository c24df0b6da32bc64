"""Tables of datasets: the exact bytes are stored, so that exporting one twice gives the same ones."""

from __future__ import annotations

import uuid

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, EmptyObject, ProjectId, UserId, UuidKey


class Dataset(Base):
    """An immutable, hashed snapshot of rankings with its filter and its counts."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("project_id", "number"),)

    id: Mapped[UuidKey]
    project_id: Mapped[ProjectId]
    number: Mapped[int]
    name: Mapped[str] = mapped_column(server_default="", default="")
    licence: Mapped[str] = mapped_column(server_default="", default="")
    filter: Mapped[EmptyObject]
    counts: Mapped[EmptyObject]
    # How it was made, as things stood when it was frozen: instructions, agreement, biases (app/datasets/cards.py).
    card: Mapped[EmptyObject]
    num_rows: Mapped[int]
    # Over all lines, each with its newline, in order.
    sha256: Mapped[str]
    # Key of the pseudonyms; deleted when they must no longer lead back to a person.
    pseudonym_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_by: Mapped[UserId | None]
    created_at: Mapped[Created]


class DatasetRow(Base):
    """Which ranking a row of a dataset came from."""

    __tablename__ = "dataset_rows"
    __table_args__ = (Index("ix_dataset_rows_ranking", "ranking_id"),)

    # Deferred: a dataset is stored after its lines, when their hash is known, and never changes after that.
    dataset_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    ranking_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("rankings.id"))


class DatasetPiece(Base):
    """Some whole lines of a dataset, one for each row (app/datasets/pieces.py)."""

    __tablename__ = "dataset_pieces"

    dataset_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"), primary_key=True
    )
    # The byte of the file at which it begins.
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    num_bytes: Mapped[int]
    first_row: Mapped[int]
    num_rows: Mapped[int]
    # One zstd frame.
    lines: Mapped[bytes] = mapped_column(LargeBinary)
