"""Pieces of pages that stand there again and again and differ in little: drawn once, filled in ever after.

A card of the ranking page has thirty buttons, four to nine cards are on every page, and only the answer's text, its
letter and its id are new. What a template was given besides these is the key by which the piece is kept, all of it:
nothing that a piece shows can be forgotten there.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Environment
from markupsafe import Markup, escape

from app import i18n

# Of some four thousand letters each.
MOST_KEPT = 1_000
# Nobody can write this into a text, as nobody knows it beforehand.
_SECRET = secrets.token_hex(16)
_GAP = re.compile(rf"{_SECRET}-(\w+)-")


class Gap(str):
    """What a template sees in the place of a value that is filled in later: it can be shown, and not asked about."""

    __slots__ = ()

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("A gap of a fragment is only shown: what a template asks about is handed in beside the gaps.")

    __bool__ = __eq__ = __ne__ = __len__ = _refuse
    __hash__ = str.__hash__


def filled(
    jinja: Environment, language: str, template: str, gaps: Mapping[str, Any], told: Mapping[str, Any]
) -> Markup:
    """A template's HTML, with these values in its gaps: text, or HTML that is safe (`Markup`).

    Args:
        gaps: what the template shows and nothing more, by name.
        told: what it asks about, as JSON has it.
    """
    pieces = _drawn(jinja, language, template, tuple(gaps), json.dumps(told, sort_keys=True))
    values = {name: escape(value) for name, value in gaps.items()}
    # Every second piece is a gap's name.
    html = [values[piece] if number % 2 else piece for number, piece in enumerate(pieces)]
    return Markup("".join(html))  # noqa: S704 - a template's own words, and what was escaped right here


@lru_cache(MOST_KEPT)
def _drawn(jinja: Environment, language: str, template: str, gaps: tuple[str, ...], told: str) -> tuple[str, ...]:
    """The template's own words, and between them the names of its gaps."""
    marks = {name: Gap(f"{_SECRET}-{name}-") for name in gaps}
    context = i18n.template_words(language) | json.loads(told) | marks
    return tuple(_GAP.split(jinja.get_template(template).render(context)))
