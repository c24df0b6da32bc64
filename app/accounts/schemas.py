"""Wire shapes of people and tokens."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.accounts.models import Membership, Role, Scope, User
from app.examples import example_id, shown
from app.validation import TAG

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
# No space and no comma: one of a list, not several.
Tag = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=TAG)]
Email = Annotated[str, StringConstraints(strip_whitespace=True, max_length=254, pattern=r"^[^@\s\x00]+@[^@\s\x00]+$")]


class UserIn(BaseModel):
    """A new person."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra=shown(name="Ada", email="ada@example.org", role="annotator")
    )

    name: Name
    email: Email | None = None
    role: Role | None = None
    """In every project; left out: only where they become members."""
    is_simulated: bool = False


class UserOut(BaseModel):
    """A person as the API shows one."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    name: str
    email: str | None
    role: Role | None
    is_simulated: bool
    created_at: datetime


class MemberIn(BaseModel):
    """A role in a project."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=shown(role="reviewer"))

    role: Role


class AbilitiesIn(BaseModel):
    """What a member can be asked in a project, in place of what was said before."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=shown(languages=["en"], skills=["law"]))

    languages: list[Tag] = Field(max_length=20)
    """Of those that they read, only these; none: all."""
    skills: list[Tag] = Field(max_length=20)
    """On top of those that hold in every project."""


class MemberOut(BaseModel):
    """A person in a project, as its admins see them. `languages`, `skills`: what was said of them for this project."""

    user_id: uuid.UUID
    name: str
    role: Role
    languages: list[str]
    skills: list[str]

    @classmethod
    def of(cls, user: User, member: Membership) -> MemberOut:
        """The wire shape."""
        told = {"role": Role(member.role), "languages": member.languages, "skills": member.skills}
        return cls(user_id=user.id, name=user.name, **told)


class TokenIn(BaseModel):
    """A new token. `user_id` left out: for the caller."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=shown(name="judge model", scopes=["annotate"], user_id=example_id("user"), days=30),
    )

    name: Name
    scopes: list[Scope] = Field(min_length=1)
    user_id: uuid.UUID | None = None
    project_ids: list[uuid.UUID] | None = None
    days: int | None = Field(90, ge=1, le=3650)


class TokenOut(BaseModel):
    """A token without its secret."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    user_id: uuid.UUID
    name: str
    prefix: str
    scopes: list[Scope]
    project_ids: list[uuid.UUID] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewToken(TokenOut):
    """A token with its secret, this one time."""

    token: str
