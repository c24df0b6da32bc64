"""Rankings that were made with other tools: Label Studio's Ranker and Pairwise, Argilla's ranking questions.

https://labelstud.io/tags/ranker.html · https://docs.argilla.io (records of version 1 and 2 as JSON)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from app.formats.items import Item, Misfit, Record, Turn, turns_of

PROMPT_FIELDS = ("messages", "prompt", "instruction", "question", "text", "input", "query", "context", "chat")


def asked(fields: Mapping[str, Any]) -> list[Turn]:
    """The prompt among the fields of a task."""
    for name in PROMPT_FIELDS:
        value = fields.get(name)
        if isinstance(value, str) and value.strip():
            return [{"role": "user", "content": value}]
        if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
            return turns_of(value)
    raise Misfit(f"no prompt among its fields; it is looked for as {', '.join(PROMPT_FIELDS)}")


# Label Studio


def label_studio(record: Record) -> Iterator[Item]:
    """A task of a JSON export: all its annotations of one list of answers."""
    data = record.get("data")
    if not isinstance(data, dict):
        raise Misfit("needs `data`, an object")
    responses = listed_answers(data)
    known = {answer["id"] for answer in responses}
    annotations = [
        {"annotator": f"label-studio {who_of(annotation)}", "ranks": ranks}
        for annotation in record.get("annotations") or []
        if isinstance(annotation, dict) and not annotation.get("was_cancelled")
        for result in annotation.get("result") or []
        if isinstance(result, dict) and (ranks := ranks_of(result, known))
    ]
    item: Item = {"messages": asked(data), "responses": responses}
    yield item | ({"annotations": annotations} if annotations else {})


def who_of(annotation: Mapping[str, Any]) -> str:
    """Who made an annotation: a number, or an object in later versions."""
    who = annotation.get("completed_by", "")
    return str(who.get("id", who.get("email", ""))) if isinstance(who, dict) else str(who)


def listed_answers(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """The answers of a List tag, or those of a pairwise template."""
    for value in data.values():
        if isinstance(value, list) and value and all(isinstance(one, dict) and "id" in one for one in value):
            return [{"id": str(one["id"]), "text": str(one.get("body", one.get("title", "")))} for one in value]
    pair = [name for name in ("answer1", "answer2", "response1", "response2", "left", "right") if name in data]
    if len(pair) == 2:
        sides = ("left", "right")
        return [{"id": side, "text": str(data[name])} for side, name in zip(sides, pair, strict=True)]
    raise Misfit("no list of answers with ids in `data`")


def ranks_of(result: Mapping[str, Any], known: set[str]) -> dict[str, int]:
    """One result as ranks: an order, or the side that was chosen."""
    value = result.get("value")
    if not isinstance(value, dict):
        return {}
    if result.get("type") == "pairwise" and known == {"left", "right"}:
        better = value.get("selected")
        return {side: 1 if better in (side, "tie", None) else 2 for side in ("left", "right")}
    order = value.get("ranker")
    if isinstance(order, dict):
        # The tag's own name holds the order; with buckets, `_` is the list from which they were filled.
        named = [names for bucket, names in order.items() if bucket != "_"]
        order = named[0] if len(named) == 1 else order.get("_", [])
    if not isinstance(order, list):
        return {}
    return {str(key): place for place, key in enumerate(order, start=1) if str(key) in known}


# Argilla


def argilla(record: Record) -> Iterator[Item]:
    """A record with a ranking question, whose values name the fields that hold the answers."""
    fields = record.get("fields")
    if not isinstance(fields, dict):
        raise Misfit("needs `fields`, an object")
    found = [one for one in argilla_ranks(record.get("responses")) if one["ranks"]]
    names = {matching_field(name, fields): name for one in found for name in one["ranks"]}
    prompt_fields = {name for name in fields if name in PROMPT_FIELDS}
    if not names:
        names = {name: name for name in fields if name not in prompt_fields}
    responses = [{"id": name, "text": str(fields[field])} for field, name in names.items() if field in fields]
    item: Item = {"messages": asked(fields), "responses": responses}
    if isinstance(record.get("id"), str | int):
        item["id"] = str(record["id"])[:200]
    yield item | ({"annotations": found} if found else {})


def matching_field(name: str, fields: Mapping[str, Any]) -> str:
    """The field that a value of a ranking stands for: `response-1` is `response-1`, `response_1` or `response1`."""
    plain = {field.replace("-", "").replace("_", "").lower(): field for field in fields}
    return name if name in fields else plain.get(name.replace("-", "").replace("_", "").lower(), name)


def argilla_ranks(responses: Any) -> Iterator[dict[str, Any]]:
    """Who ranked, and the ranks: a list by person in version 1, an object by question in version 2."""
    if isinstance(responses, dict):
        answers = [(one, one.get("value")) for question in responses.values() for one in question or []]
    else:
        answers = [
            (one, (answer or {}).get("value"))
            for one in responses or []
            for answer in (one.get("values") or {}).values()
        ]
    for one, value in answers:
        if one.get("status", "submitted") == "submitted" and is_ranking(value):
            ranks = {str(entry["value"]): int(entry["rank"]) for entry in value}
            yield {"annotator": f"argilla {one.get('user_id', '')}".strip(), "ranks": ranks}


def is_ranking(value: Any) -> bool:
    """Whether an answer is one to a ranking question."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(entry, dict) and isinstance(entry.get("rank"), int) and "value" in entry for entry in value)
    )
