"""Wire shapes of people and tokens."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.accounts.models import Role, Scope
from app.examples import example_id, shown

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
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


class MemberOut(BaseModel):
    """A person in a project, as its admins see them."""

    user_id: uuid.UUID
    name: str
    role: Role


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
