"""Expected refusals. One base class with a status; the docstring of a subclass is its message. `app.main` renders them
as a page or as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """Which field was refused, and by which rule."""

    field: str
    rule: str


class RankloopError(Exception):
    """Something can't be done as it was asked."""

    status = 400

    def __init__(self, message: str | None = None, *, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.errors = list(errors)


class BadRequest(RankloopError):
    """The request can't be understood."""

    status = 400


class Unauthorized(RankloopError):
    """Sign in first."""

    status = 401


class Forbidden(RankloopError):
    """You may not do this."""

    status = 403


class NotFound(RankloopError):
    """There is nothing here, or it is not yours to see."""

    status = 404


class Conflict(RankloopError):
    """This no longer fits what is stored."""

    status = 409


class TooLarge(RankloopError):
    """This is larger than what is taken here."""

    status = 413


class Invalid(RankloopError):
    """Some of what was sent can't be taken."""

    status = 422

    @classmethod
    def field(cls, field: str, rule: str) -> Invalid:
        """A refusal of one field."""
        return cls(f"{field}: {rule}", errors=[FieldError(field, rule)])


class TooManyRequests(RankloopError):
    """Too many at once: wait a little and try again."""

    status = 429


class Unavailable(RankloopError):
    """This can't be done right now. Try again in a moment."""

    status = 503
