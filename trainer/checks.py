"""Whether an answer is right, for prompts that carry a checkable answer: exact, numeric or a regular expression.

No torch. A check is `{"kind": "exact" | "numeric" | "regex", "value": …}` in a prompt's `meta`, written by whoever
wrote the prompt; a pattern is searched with a time limit, so that none can hold a worker up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import regex

SECONDS_PER_SEARCH = 0.2
"""A pattern that takes longer on one answer counts as not found, and is reported."""
LONGEST_PATTERN = 1000
# A number as people write it: thousands with commas, a fraction, an exponent.
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?|[-+]?\.\d+")


class CheckTimeout(Exception):
    """A regular expression took too long on an answer."""


@dataclass(frozen=True)
class Check:
    """What an answer must say."""

    kind: str
    value: str | float
    tolerance: float = 0.0
    """For "numeric": how far off the number may be."""

    @classmethod
    def from_json(cls, fields: Any) -> Check:
        """The `check` of a prompt's `meta`. ValueError names the field and the rule."""
        if not isinstance(fields, Mapping):
            raise ValueError("check: must be an object with kind and value.")  # noqa: TRY004 (the user's mistake)
        kind, value = fields.get("kind"), fields.get("value")
        unknown = sorted(set(fields) - {"kind", "value", "tolerance"})
        if unknown:
            raise ValueError(f"check.{unknown[0]} is not known; known are kind, value, tolerance.")
        if kind not in ("exact", "numeric", "regex"):
            raise ValueError(f"check.kind: must be exact, numeric or regex, and is {kind!r}.")
        tolerance = fields.get("tolerance", 0.0)
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
            raise ValueError(f"check.tolerance: must be a number of at least 0, and is {tolerance!r}.")
        if kind == "numeric":
            return cls(kind, _number(value), float(tolerance))
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"check.value: must be a text that is not empty, and is {value!r}.")
        check = cls(kind, value)
        if kind == "regex":
            _ = check.pattern
        return check

    @cached_property
    def pattern(self) -> regex.Pattern[str]:
        """The compiled expression. ValueError when it is none, or too long."""
        text = str(self.value)
        if len(text) > LONGEST_PATTERN:
            raise ValueError(f"check.value: a pattern has at most {LONGEST_PATTERN} characters, not {len(text)}.")
        try:
            return regex.compile(text, regex.VERSION0)
        except (regex.error, OverflowError, RecursionError) as error:
            raise ValueError(f"check.value: {text!r} is no regular expression ({error}).") from error

    def passes(self, answer: str) -> bool:
        """Whether the answer is right.

        exact: the whole answer, white space apart. numeric: the last number of the answer. regex: found anywhere in it.
        Raises CheckTimeout.
        """
        if self.kind == "exact":
            return " ".join(answer.split()) == " ".join(str(self.value).split())
        if self.kind == "numeric":
            found = NUMBER.findall(answer)
            number = float(found[-1].replace(",", "")) if found else math.nan
            return abs(number - float(self.value)) <= self.tolerance + 1e-9 * abs(float(self.value))
        try:
            return self.pattern.search(answer, timeout=SECONDS_PER_SEARCH) is not None
        except TimeoutError as error:
            raise CheckTimeout(f"{self.value!r} took over {SECONDS_PER_SEARCH} s on an answer.") from error


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(str(value).replace(",", ""))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"check.value: must be a number, and is {value!r}.")
    return number
