"""Expected refusals. One base class with a status; the docstring of a subclass is its message. `app.main` renders them
as a page or as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as with_default
from typing import Any, TypeVar


@dataclass(frozen=True)
class FieldError:
    """Which field was refused, and by which rule: in English, and as a sentence of the catalogue with its gaps' values.

    A value that differs by language is a mapping from the language to its text.
    """

    field: str
    rule: str
    text: str = ""
    values: Mapping[str, object] = with_default(default_factory=dict)

    def in_words(self, words: Mapping[str, Any]) -> str:
        """The rule in the reader's language; `words` are those of `app.i18n.template_words`."""
        return str(words["_"](self.text or self.rule, **in_language(self.values, words["language"])))


def in_language(values: Mapping[str, object], language: str) -> dict[str, object]:
    """The values of a sentence's gaps for one language."""
    return {name: value[language] if isinstance(value, Mapping) else value for name, value in values.items()}


def refusal(field: str, text: str, **values: object) -> FieldError:
    """A refusal whose sentence can be translated; `text` is the English one, with its `{gaps}`."""
    return FieldError(field, text.format_map(in_language(values, "en")) if values else text, text, values)


class RankloopError(Exception):
    """Something can't be done as it was asked."""

    status = 400

    def __init__(self, message: str | None = None, *, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.errors = list(errors)
        # Where a person goes on from the page that says so.
        self.onward: str | None = None

    @property
    def is_sum_of_errors(self) -> bool:
        """Whether the message only repeats the fields and their rules."""
        return bool(self.errors) and str(self) == "; ".join(f"{item.field}: {item.rule}" for item in self.errors)


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


Thing = TypeVar("Thing")


def existing(thing: Thing | None, message: str) -> Thing:
    """What was looked for.

    Raises:
        NotFound: there is none, in these words.
    """
    if thing is None:
        raise NotFound(message)
    return thing


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
    def field(cls, field: str, rule: str, **values: object) -> Invalid:
        """A refusal of one field; `values` fill the gaps of its rule, which then can be translated."""
        error = refusal(field, rule, **values)
        return cls(f"{field}: {error.rule}", errors=[error])


class TooManyRequests(RankloopError):
    """Too many at once: wait a little and try again."""

    status = 429


class Unavailable(RankloopError):
    """This can't be done right now. Try again in a moment."""

    status = 503
