"""Rows as CSV that a spreadsheet opens and doesn't run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows with a header. A cell that a spreadsheet would take for a formula is quoted (ASVS 1.2.10)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({key: quoted(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def quoted(value: object) -> object:
    """A text that begins like a formula, with an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
