"""Files of JSON lines: the one way in which everything that is learned from is read. Knows no shape of a row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[tuple[int, Any]]:
    """What each line holds, with its number from 1; blank lines are passed over.

    ValueError names the file and what is wrong with it: it holds nothing, is no text, or a line is no JSON. OSError
    where it can't be opened.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is no file of JSON lines: its byte {error.start + 1} is no UTF-8.") from error
    # Not `splitlines`: a string of JSON may hold U+2028 and its like as they are.
    found = [(number, _parse(path, number, line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise ValueError(f"{path.name} is empty: it holds no line of JSON.")
    return found


def read_objects(path: Path) -> list[dict[str, Any]]:
    """As `read_lines`, of lines that hold an object each, without their numbers."""
    found = read_lines(path)
    for number, row in found:
        if not isinstance(row, dict):
            raise ValueError(f"{path.name}, line {number}: must be an object, one a line.")  # noqa: TRY004 (the user's mistake)
    return [row for _, row in found]


@contextmanager
def named_by(path: Path) -> Iterator[None]:
    """What is wrong with a row is said with the name of its file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _parse(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path.name}, line {number}: not valid JSON ({error}).") from error
