"""The form of a piece of writing: its fields as a body, and the buttons that add and remove few-shot pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from app.errors import FieldError
from app.writing.bodies import MAX_PAIRS
from app.writing.models import WritingKind

PROMPT_FIELDS = ("kind", "language", "instruction", "query", "use_case")
PAIR = re.compile(r"pair_(\d{1,3})_(query|response)")


def read_body(kind: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """What the fields hold, with the line ends of all systems but one; what is empty is left out."""
    texts = {name: value.replace("\r\n", "\n") for name, value in fields.items()}
    if kind == WritingKind.DEMONSTRATION:
        return {"text": texts.get("text", "")}
    body: dict[str, Any] = {name: texts[name] for name in PROMPT_FIELDS if texts.get(name)}
    numbers = sorted({int(found[1]) for name in texts if (found := PAIR.fullmatch(name))})
    pairs = [{part: texts.get(f"pair_{number}_{part}", "") for part in ("query", "response")} for number in numbers]
    return body | {"pairs": pairs} if pairs else body


def edit_body(body: Mapping[str, Any], action: str) -> dict[str, Any]:
    """The body after the button `pair:add` or `pair:remove:N`; others change nothing."""
    pairs = list(body.get("pairs", ()))
    verb, _, number = action.removeprefix("pair:").partition(":")
    if verb == "add" and len(pairs) < MAX_PAIRS:
        pairs.append({"query": "", "response": ""})
    elif verb == "remove" and number.isdecimal() and int(number) < len(pairs):
        del pairs[int(number)]
    return dict(body) | {"pairs": pairs}


def field_of(error: FieldError) -> str:
    """The field of the form that a path is about: `pairs.0.query` -> `pair_0_query`."""
    return re.sub(r"^pairs\.(\d+)\.", r"pair_\1_", error.field)
