"""Fragments: what is drawn once is right for everybody, whatever stands in its gaps."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import DictLoader, Environment, StrictUndefined, UndefinedError
from markupsafe import Markup

from app import fragments
from app.fragments import filled

TEMPLATES = {
    "card": (
        """<b id="{{ id }}" title="{{ _('Answer {letter}', letter=letter) }}">{{ letter }}: {{ text }}</b>"""
        "{{ place }}"
    ),
    "asks": "{% if id %}yes{% endif %}",
    "compares": "{{ id == letter }}",
}
HOSTILE = """"><script>alert(1)</script>{{ id }}\x00"""


@pytest.fixture(scope="module")
def jinja() -> Environment:
    return Environment(loader=DictLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)


def draw(jinja: Environment, template: str = "card", language: str = "en", place: Any = 1, **gaps: Any) -> str:
    values = {"id": "x", "letter": "A", "text": "so", **gaps}
    return str(filled(jinja, language, template, values, {"place": place}))


def test_every_gap_is_filled_each_time_anew(jinja: Environment) -> None:
    assert draw(jinja) == '<b id="x" title="Answer A">A: so</b>1'
    assert draw(jinja, id="y", letter="B", text="no") == '<b id="y" title="Answer B">B: no</b>1'


def test_what_a_piece_was_told_is_never_mixed_up(jinja: Environment) -> None:
    assert [draw(jinja, place=place)[-1] for place in (1, 2, 1)] == ["1", "2", "1"]
    assert 'title="回答 A"' in draw(jinja, language="zh")
    assert 'title="Answer A"' in draw(jinja)


def test_text_is_escaped_and_html_that_is_safe_is_not(jinja: Environment) -> None:
    assert "<script>" not in draw(jinja, id=HOSTILE, letter=HOSTILE, text=HOSTILE)
    assert "<p>so</p>" in draw(jinja, text=Markup("<p>so</p>"))


def test_what_stands_in_a_gap_makes_no_other(jinja: Environment) -> None:
    """Not even the very mark, which nobody knows: what is filled in is not looked through."""
    mark = f"{fragments._SECRET}-id-"
    assert f"A: {mark}</b>" in draw(jinja, text=mark)


@pytest.mark.parametrize("template", ["asks", "compares"])
def test_a_template_that_asks_about_a_gap_is_refused(jinja: Environment, template: str) -> None:
    with pytest.raises(TypeError, match="beside the gaps"):
        draw(jinja, template)


def test_what_a_piece_was_not_told_it_cannot_show(jinja: Environment) -> None:
    with pytest.raises(UndefinedError, match="place"):
        filled(jinja, "en", "card", {"id": "x", "letter": "A", "text": ""}, {})
