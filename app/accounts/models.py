"""Tables of people, of their roles, and of what proves who they are. Only hashes of secrets are stored."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

import sqlalchemy as sa
from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, FalseByDefault, UserId, UuidKey, ZeroByDefault


class Role(StrEnum):
    """What a person may do, in one project or in every one."""

    ANNOTATOR = "annotator"  # ranks
    REVIEWER = "reviewer"  # settles what annotators disagree about, too
    TRAINER = "trainer"  # reads everything and starts runs
    ADMIN = "admin"  # everything; an admin of every project owns the site


class Scope(StrEnum):
    """What a role, or an API token, allows."""

    ANNOTATE = "annotate"  # take tasks and rank them, as oneself
    REVIEW = "review"  # settle disagreements, approve what was written
    READ = "read"  # read everything of a project
    WRITE = "write"  # import, start runs
    ADMIN = "admin"  # settings, people and tokens too
    WORKER = "worker"  # claim runs and deliver their results


ROLE_SCOPES: dict[str | None, frozenset[str]] = {
    None: frozenset(),
    Role.ANNOTATOR: frozenset({Scope.ANNOTATE}),
    Role.REVIEWER: frozenset({Scope.ANNOTATE, Scope.REVIEW}),
    Role.TRAINER: frozenset({Scope.ANNOTATE, Scope.READ, Scope.WRITE, Scope.WORKER}),
    Role.ADMIN: frozenset(Scope),
}
IS_A_ROLE = "role in ('annotator', 'reviewer', 'trainer', 'admin')"


def nameless(user_id: uuid.UUID) -> str:
    """What a person is called for whoever is no admin and so may not read names; the macro `person` says the same."""
    return f"…{str(user_id)[-8:]}"


@dataclass(frozen=True)
class Roles:
    """The roles of one person: one for every project, if any, and single ones on top of it."""

    everywhere: str | None = None
    by_project: Mapping[uuid.UUID, str] = field(default_factory=dict)

    @property
    def is_owner(self) -> bool:
        """Whether the site is theirs: people, tokens, new projects."""
        return self.everywhere == Role.ADMIN

    def scopes_in(self, project_id: uuid.UUID | None) -> frozenset[str]:
        """What they may do in a project; with None, in every one."""
        own = self.by_project.get(project_id) if project_id else None
        return ROLE_SCOPES[self.everywhere] | ROLE_SCOPES[own]

    def role_in(self, project_id: uuid.UUID | None) -> str | None:
        """The role with which a page greets them there: the one that allows more."""
        roles = {self.everywhere, self.by_project.get(project_id) if project_id else None} - {None}
        return max(roles, key=lambda role: len(ROLE_SCOPES[role]), default=None)

    def projects_with(self, scopes: Iterable[str]) -> frozenset[uuid.UUID] | None:
        """The projects where they may do one of these; None: in every one."""
        wanted = frozenset(scopes)
        if ROLE_SCOPES[self.everywhere] & wanted:
            return None
        return frozenset(project_id for project_id, role in self.by_project.items() if ROLE_SCOPES[role] & wanted)


class Who(NamedTuple):
    """Of a person, what it takes to let them in."""

    id: uuid.UUID
    name: str
    role: str | None


class User(Base):
    """A person."""

    Facts: ClassVar[type[Who]] = Who

    __tablename__ = "users"
    __table_args__ = (
        Index("uq_users_email", text("lower(email)"), unique=True),
        CheckConstraint(IS_A_ROLE, name="role"),
        CheckConstraint("erased_at is null or (email is null and disabled_at is not null)", name="erased"),
    )

    id: Mapped[UuidKey]
    name: Mapped[str]
    email: Mapped[str | None]
    # In every project; null: only what their memberships say.
    role: Mapped[str | None]
    is_simulated: Mapped[FalseByDefault]
    # What they read (en, zh; none: everything), and tags of what they know, which an owner of the site gives.
    languages: Mapped[list[str]] = mapped_column(server_default="{}", default=list)
    skills: Mapped[list[str]] = mapped_column(server_default="{}", default=list)
    disabled_at: Mapped[datetime | None]
    # Their name and address are gone for good; what they ranked stays, under a name that tells nothing.
    erased_at: Mapped[datetime | None]
    created_at: Mapped[Created]


AnyUser = User | Who


class Membership(Base):
    """A person's role in one project."""

    __tablename__ = "memberships"
    __table_args__ = (CheckConstraint(IS_A_ROLE, name="role"),)

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    project_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    role: Mapped[str]
    # As the project's admins know them: languages to which they keep here (none: as the person says), and more skills.
    languages: Mapped[list[str]] = mapped_column(server_default="{}", default=list)
    skills: Mapped[list[str]] = mapped_column(server_default="{}", default=list)
    created_at: Mapped[Created]


class SignInLink(Base):
    """A one-time link; its secret is in the fragment of the address, so that no log sees it."""

    __tablename__ = "sign_in_links"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[Created]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class SignInMethod(StrEnum):
    """How a session began."""

    LINK = "link"
    PASSWORD = "password"  # noqa: S105
    INVITATION = "invitation"
    PROVIDER = "provider"


class UserSession(Base):
    """A signed-in browser. `id` names it to its owner; `device` is as much of the browser's name as they need."""

    __tablename__ = "sessions"
    __table_args__ = (
        CheckConstraint("method in ('link', 'password', 'invitation', 'provider')", name="method"),
        UniqueConstraint("id"),
    )

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[Created]
    last_seen_at: Mapped[Created]
    expires_at: Mapped[datetime]
    id: Mapped[uuid.UUID] = mapped_column(default=uuid.uuid4, server_default=text("gen_random_uuid()"))
    method: Mapped[str] = mapped_column(default=SignInMethod.LINK, server_default=SignInMethod.LINK)
    device: Mapped[str] = mapped_column(default="", server_default="")


class Password(Base):
    """The argon2id hash of a person's password. A table of its own, so that nothing loads it by the way."""

    __tablename__ = "passwords"

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    hash: Mapped[str]
    changed_at: Mapped[Created]


class Attempts(Base):
    """How often somebody tried of late, by a hash of whom it is about: an account, or a network address."""

    __tablename__ = "sign_in_attempts"

    key: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    num: Mapped[int]
    since: Mapped[Created]


class Invitation(Base):
    """A link that makes whoever opens it a member. Without a project, its role holds in every one."""

    __tablename__ = "invitations"
    __table_args__ = (
        CheckConstraint(IS_A_ROLE, name="role"),
        # However many accept at once, no more get in than were invited.
        CheckConstraint("num_used between 0 and max_uses", name="uses"),
    )

    id: Mapped[UuidKey]
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    project_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    role: Mapped[str]
    max_uses: Mapped[int]
    num_used: Mapped[ZeroByDefault]
    created_by: Mapped[UserId | None]
    created_at: Mapped[Created]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class Identity(Base):
    """Who a person is at the OpenID provider."""

    __tablename__ = "identities"

    issuer: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[Created]


class ProviderVisit(Base):
    """A browser that was sent to the OpenID provider and is to come back once: its state, nonce and PKCE verifier."""

    __tablename__ = "provider_visits"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    expires_at: Mapped[datetime]


class TokenFacts(NamedTuple):
    """Of a token, what it allows."""

    id: uuid.UUID
    scopes: list[str]
    project_ids: list[uuid.UUID] | None
    last_used_at: datetime | None


class ApiToken(Base):
    """A bearer token. `project_ids` null: all that its owner may reach."""

    Facts: ClassVar[type[TokenFacts]] = TokenFacts

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

    id: Mapped[int] = mapped_column(BigInteger, sa.Identity(always=True), primary_key=True)
    at: Mapped[Created]
    actor_id: Mapped[UserId | None]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
