"""Cells that a spreadsheet opens and doesn't run (OWASP ASVS 1.2.10), and rows of them as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows with a header. A cell that a spreadsheet would take for a formula is quoted."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({key: quoted(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def quoted(value: object) -> object:
    """A text that begins like a formula, with an apostrophe before it; all else as it is."""
    return f"'{value}" if isinstance(value, str) and is_formula(value) else value


def unquoted(text: str) -> str:
    """The text of a cell that `quoted` made."""
    return text[1:] if text.startswith("'") and is_formula(text) else text


def is_formula(text: str) -> bool:
    """Whether it begins like a formula, quoted or not: quoted ones get one more mark, and come back whole."""
    return text.lstrip("'").startswith(FORMULA)
