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
from typing import Any, NoReturn

from jinja2 import Environment
from markupsafe import Markup, escape

from app import i18n
from app.remembering import Remembered

# Of HTML and what it was told, in letters: a card has some five thousand.
CACHE_SIZE = 5_000_000
# Nobody can write this into a text, as nobody knows it beforehand.
_SECRET = secrets.token_hex(16)
_GAP = re.compile(rf"{_SECRET}-(\w+)-")


Key = tuple[str, str, tuple[str, ...], str]
Pieces = tuple[str, ...]
KEPT: Remembered[Key, Pieces] = Remembered(CACHE_SIZE, size=lambda key, pieces: len(key[-1]) + sum(map(len, pieces)))


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
    key = (language, template, tuple(gaps), json.dumps(told, sort_keys=True))
    pieces = KEPT.get(key) or KEPT.keep(key, _drawn(jinja, *key))
    values = {name: escape(value) for name, value in gaps.items()}
    # Every second piece is a gap's name.
    html = [values[piece] if number % 2 else piece for number, piece in enumerate(pieces)]
    return Markup("".join(html))  # noqa: S704 - a template's own words, and what was escaped right here


def _drawn(jinja: Environment, language: str, template: str, gaps: tuple[str, ...], told: str) -> Pieces:
    """The template's own words, and between them the names of its gaps."""
    marks = {name: Gap(f"{_SECRET}-{name}-") for name in gaps}
    context = i18n.template_words(language) | json.loads(told) | marks
    return tuple(_GAP.split(jinja.get_template(template).render(context)))
