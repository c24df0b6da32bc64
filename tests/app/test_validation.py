"""Pydantic's refusals in our words: every rule that a form or the API can break has a sentence, in both languages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from app.config import Settings
from app.i18n import template_words
from app.main import create_app
from app.validation import OTHER_PATTERN, PATTERNS, SENTENCES, explain
from tests.messages import read_catalogue

# These are for programs alone: names of metrics and files, and hashes.
FOR_PROGRAMS = {r"^[a-z0-9_]+(/[a-z0-9_]+)*$", "^[0-9a-f]{64}$"}


class Sample(BaseModel):
    """A field of each common kind."""

    number: int = Field(3, ge=1, le=9)
    share: float = Field(0.5, gt=0, lt=1)
    text: str = Field("abc", min_length=2, max_length=5)
    kind: str = Field("a", pattern="^[ab]$")


def patterns_of(value: Any) -> Iterator[str]:
    """Every pattern of an OpenAPI document."""
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            yield value["pattern"]
        for item in value.values():
            yield from patterns_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from patterns_of(item)


def test_every_pattern_has_its_rule_in_words(tmp_path: Any) -> None:
    document = create_app(Settings(data_dir=tmp_path)).openapi()
    assert set(patterns_of(document["components"])) - set(PATTERNS) - FOR_PROGRAMS == set()


def test_every_sentence_has_its_chinese_one() -> None:
    catalogue = read_catalogue()
    sentences = {*PATTERNS.values(), *SENTENCES.values(), OTHER_PATTERN}
    assert {text for text in sentences if text not in catalogue or not catalogue[text].string} == set()


@pytest.mark.parametrize(
    ("values", "english", "chinese"),
    [
        ({"number": 12}, "This must be at most 9.", "不能大于 9。"),
        ({"number": "x"}, "This must be a whole number.", "必须是整数。"),
        ({"share": 0}, "This must be more than 0.", "必须大于 0。"),
        ({"share": float("inf")}, "This must be less than 1.", "必须小于 1。"),
        ({"text": "a"}, "This needs at least 2 characters.", "这里至少要 2 个字符。"),
        ({"text": "abcdef"}, "This takes at most 5 characters.", "这里最多 5 个字符。"),
        ({"kind": "c"}, OTHER_PATTERN, "这里有不允许的字符或长度。"),
    ],
)
def test_a_refusal_says_what_to_do(values: dict[str, Any], english: str, chinese: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Sample.model_validate(values)
    (item,) = refused.value.errors()
    error = explain(item, "field")
    assert (error.field, error.rule) == ("field", english)
    assert error.in_words(template_words("zh")) == chinese
