"""Tables of people and of what proves who they are. Only hashes of secrets are stored."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, LargeBinary, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, FalseByDefault, UserId, UuidKey


class Role(StrEnum):
    """What a person may do."""

    ANNOTATOR = "annotator"  # ranks
    TRAINER = "trainer"  # reads and starts runs through the API
    ADMIN = "admin"  # everything


class Scope(StrEnum):
    """What an API token may do."""

    ANNOTATE = "annotate"  # take tasks and rank them, as its owner
    READ = "read"  # read everything of its projects
    WRITE = "write"  # import, start runs, promote
    ADMIN = "admin"  # people and tokens too
    WORKER = "worker"  # claim runs and deliver their results


# What each role may do, by its browser or by a token; a browser never claims runs.
ROLE_SCOPES: dict[str, frozenset[str]] = {
    Role.ANNOTATOR: frozenset({Scope.ANNOTATE}),
    Role.TRAINER: frozenset({Scope.ANNOTATE, Scope.READ, Scope.WRITE, Scope.WORKER}),
    Role.ADMIN: frozenset(Scope),
}


class User(Base):
    """A person."""

    __tablename__ = "users"
    __table_args__ = (
        Index("uq_users_email", text("lower(email)"), unique=True),
        CheckConstraint("role in ('annotator', 'trainer', 'admin')", name="role"),
    )

    id: Mapped[UuidKey]
    name: Mapped[str]
    email: Mapped[str | None]
    role: Mapped[str]
    is_simulated: Mapped[FalseByDefault]
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[Created]


class SignInLink(Base):
    """A one-time link; its secret is in the fragment of the address, so that no log sees it."""

    __tablename__ = "sign_in_links"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[Created]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class UserSession(Base):
    """A signed-in browser."""

    __tablename__ = "sessions"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[Created]
    last_seen_at: Mapped[Created]
    expires_at: Mapped[datetime]


class ApiToken(Base):
    """A bearer token. `projects` empty: all of them."""

    __tablename__ = "api_tokens"

    id: Mapped[UuidKey]
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    prefix: Mapped[str]
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    scopes: Mapped[list[str]]
    project_ids: Mapped[list[uuid.UUID] | None]
    created_at: Mapped[Created]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class AuditEntry(Base):
    """Who did what. Rows are only ever added."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[Created]
    actor_id: Mapped[UserId | None]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
