"""Pydantic's refusals in our words, which say what to do and can be translated: the one place for all pages and routes.

The patterns of fields stand here too, each with its rule in words: nobody is shown a regular expression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from app.errors import FieldError, refusal

SLUG = r"^[a-z0-9][a-z0-9-]{0,59}$"
ALIAS = r"^[a-z0-9][a-z0-9._-]{0,63}$"
LABEL_KEY = r"^[a-z0-9_]{1,40}$"
NO_NUL = r"^[^\x00]*$"
EMAIL = r"^[^@\s\x00]+@[^@\s\x00]+$"
TAG = r"^[\w-]+$"
LANGUAGE = r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$"

PATTERNS = {
    SLUG: "Use at most 60 of a-z, 0-9 and -, beginning with a letter or a digit.",
    ALIAS: "Use at most 64 of a-z, 0-9, dot, _ and -, beginning with a letter or a digit.",
    LABEL_KEY: "Use at most 40 of a-z, 0-9 and _.",
    NO_NUL: "Leave out the NUL character.",
    EMAIL: "Write an e-mail address, such as ada@example.org.",
    TAG: "Use letters, digits, _ and - only.",
    LANGUAGE: "Write a language tag, such as en or zh-Hans.",
}
# Pydantic's kind of error -> our sentence; the gaps are filled from what pydantic says of the rule.
SENTENCES = {
    "missing": "This is required.",
    "extra_forbidden": "There is no such field.",
    "string_type": "This must be text.",
    "string_too_short": "This needs at least {min_length} characters.",
    "string_too_long": "This takes at most {max_length} characters.",
    "string_unicode": "This text holds half of a surrogate pair, which is no character.",
    "too_short": "This needs at least {min_length} entries.",
    "too_long": "This takes at most {max_length} entries.",
    "greater_than": "This must be more than {gt}.",
    "greater_than_equal": "This must be at least {ge}.",
    "less_than": "This must be less than {lt}.",
    "less_than_equal": "This must be at most {le}.",
    "int_type": "This must be a whole number.",
    "int_parsing": "This must be a whole number.",
    "int_parsing_size": "This number is too large.",
    "int_from_float": "This must be a whole number.",
    "float_type": "This must be a number.",
    "float_parsing": "This must be a number.",
    "finite_number": "This must be a finite number.",
    "bool_type": "This must be true or false.",
    "bool_parsing": "This must be true or false.",
    "enum": "Choose one of: {expected}.",
    "literal_error": "Choose one of: {expected}.",
    "list_type": "This must be a list.",
    "dict_type": "This must be an object.",
    "model_type": "This must be an object.",
    "model_attributes_type": "This must be an object.",
    "uuid_type": "This must be an id, as the API gives it.",
    "uuid_parsing": "This must be an id, as the API gives it.",
    "datetime_parsing": "This must be a date with its time, such as 2026-11-21T12:00:00Z.",
    "datetime_from_date_parsing": "This must be a date with its time, such as 2026-11-21T12:00:00Z.",
    "json_invalid": "This is not JSON.",
    "date_from_datetime_parsing": "This must be a day, such as 2026-11-21.",
    "date_parsing": "This must be a day, such as 2026-11-21.",
    "days_turned": "The first day is after the last one.",
    "body_size": "This takes at most {number} bytes. Send it in parts.",
    "body_fields": "This takes at most {number} fields. Send them in parts.",
    "more_fields": "{number} more fields can't be taken.",
    "label_twice": "Two labels have the key {key}. Give each its own.",
    "too_many_labels": "A project takes at most {max} labels. Remove some.",
}
OTHER_PATTERN = "This has a character, or a length, that is not allowed here."


def explain(item: ErrorDetails | Mapping[str, Any], path: str) -> FieldError:
    """One of pydantic's refusals, of the field at `path`; in pydantic's own words where we have none."""
    context: Mapping[str, Any] = item.get("ctx") or {}
    if item["type"] == "string_pattern_mismatch":
        return refusal(path, PATTERNS.get(context["pattern"], OTHER_PATTERN))
    if item["type"] == "string_too_short" and context["min_length"] == 1:
        return refusal(path, SENTENCES["missing"])
    text = SENTENCES.get(item["type"])
    values = {name: plainly(value) for name, value in context.items()}
    return refusal(path, text, **values) if text else FieldError(path, str(item["msg"]))


def plainly(value: object) -> str:
    """A value of pydantic's as it reads in any language: `0` for 0.0, `a, b` for 'a' or 'b'."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("' or '", "', '").replace("'", "")
