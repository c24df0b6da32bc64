"""The form of a project's settings: its fields as they are shown, as they were typed, and as settings.

Labels and examples are rows with numbered fields (`label_0_en`). They are added, moved and removed by buttons that send
the whole form: nothing is stored, and the form comes back changed. So it works without a script.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from starlette.datastructures import FormData

from app.errors import FieldError
from app.projects.schemas import MAX_EXAMPLES, MAX_LABELS, parse_object

CHECKBOXES = (
    "ties_allowed",
    "partial_allowed",
    "asks_all_bad",
    "has_review_step",
    "writes_demonstrations",
    "writes_prompts",
    "allows_self_review",
    "drafts_demonstrations",
    "is_paused",
)
SAMPLING = {"temperature": "temperature", "top_p": "top_p", "max_new_tokens": "max_new_tokens", "sampling_seed": "seed"}
TRAINING = {"training_reward": "reward", "training_ppo": "ppo"}
# What a row consists of: fields to write in, and boxes.
ROWS = {
    "label": (("key", "en", "zh"), ("required", "removed")),
    "example": (("prompt", "good", "good_why", "bad", "bad_why"), ()),
}
MAX_ROWS = {"label": MAX_LABELS, "example": MAX_EXAMPLES}
FOLDED = ("sampling", "training", "labels", "examples")

Row = dict[str, Any]
Values = dict[str, Any]


# Settings -> fields


def form_values(settings: Mapping[str, Any]) -> Values:
    """Settings as the form's fields: sampling and training unfolded, labels and examples as rows."""
    values = {name: value for name, value in settings.items() if name not in FOLDED}
    values |= {field: settings["sampling"][name] for field, name in SAMPLING.items()}
    for field, name in TRAINING.items():
        overrides = settings["training"].get(name)
        values[field] = json.dumps(overrides, ensure_ascii=False) if overrides else ""
    return values | {"labels": [dict(row) for row in settings["labels"]], "examples": list(settings["examples"])}


# What was sent -> fields


def as_typed(form: FormData) -> Values:
    """The fields as they were sent, to be shown again; rows without any text are left out."""
    texts = {name: value for name, value in form.items() if isinstance(value, str)}
    values: Values = {name: value for name, value in texts.items() if not re.match(r"(label|example)_\d", name)}
    values |= {name: name in form for name in CHECKBOXES}
    return values | {"labels": read_rows(texts, "label"), "examples": read_rows(texts, "example")}


def read_rows(texts: Mapping[str, str], kind: str) -> list[Row]:
    """The rows of one kind, in the order of their numbers."""
    fields, boxes = ROWS[kind]
    numbers = {int(match[1]) for name in texts if (match := re.match(rf"{kind}_(\d{{1,4}})_", name))}
    rows = []
    for number in sorted(numbers):
        row: Row = {field: texts.get(f"{kind}_{number}_{field}", "").strip() for field in fields}
        if any(row.values()):
            rows.append(row | {box: f"{kind}_{number}_{box}" in texts for box in boxes})
    return rows


# Buttons that change the form


def edit(values: Values, action: str, stored_keys: Collection[str]) -> Values:
    """The fields after a button such as `label:add`, `label:up:2` or `example:remove:0`; others change nothing."""
    kind, _, rest = action.partition(":")
    verb, _, number = rest.partition(":")
    if kind not in ROWS:
        return values
    rows: list[Row] = list(values[f"{kind}s"])
    if verb == "add" and len(rows) < MAX_ROWS[kind]:
        rows.append(empty_row(kind) | {"is_new": True})
    elif number.isdecimal() and int(number) < len(rows):
        rows = edit_row(rows, int(number), verb, stored_keys)
    # What was removed stands last, so that no row moves past it unseen.
    return values | {f"{kind}s": sorted(rows, key=lambda row: bool(row.get("removed")))}


def edit_row(rows: list[Row], place: int, verb: str, stored_keys: Collection[str]) -> list[Row]:
    """The rows after one of them was moved, removed or restored. What rankings may have is only marked as removed."""
    row = rows[place]
    rest = rows[:place] + rows[place + 1 :]
    if verb in {"up", "down"}:
        place = max(0, place - 1) if verb == "up" else place + 1
        return [*rest[:place], row, *rest[place:]]
    if verb == "remove":
        return [*rest, row | {"removed": True}] if row.get("key") in stored_keys else rest
    return [*rest, row | {"removed": False}] if verb == "restore" else rows


def empty_row(kind: str) -> Row:
    """A row with nothing in it."""
    fields, boxes = ROWS[kind]
    return dict.fromkeys(fields, "") | dict.fromkeys(boxes, False)


# Fields -> settings


def settings_of(values: Values) -> dict[str, Any]:
    """The fields as settings: empty ones left out, what the page unfolds folded again.

    Raises:
        Invalid: a field that holds JSON doesn't parse.
    """
    unfolded = {*SAMPLING, *TRAINING, "labels", "examples", "edit"}
    settings = {name: value for name, value in values.items() if value != "" and name not in unfolded}
    settings["guidelines"] = values.get("guidelines", "")
    for name in ("train_threshold", "train_every_hours", "policy_judge", "max_annotator_share"):
        settings[name] = values.get(name) or None
    settings["sampling"] = {name: values[field] for field, name in SAMPLING.items() if values.get(field)}
    settings["training"] = {name: parse_object(field, values.get(field)) for field, name in TRAINING.items()}
    settings["labels"] = with_keys(values["labels"])
    settings["examples"] = [{name: row[name] for name in ROWS["example"][0]} for row in values["examples"]]
    return settings


def with_keys(labels: Sequence[Row]) -> list[Row]:
    """The labels, each with a key: one that has none gets it from its English name, or from its place."""
    taken = {row["key"] for row in labels}
    keyed = []
    for place, row in enumerate(labels, start=1):
        key = row["key"] or free_key(
            re.sub(r"[^a-z0-9]+", "_", row["en"].lower()).strip("_") or f"label_{place}", taken
        )
        taken.add(key)
        keyed.append({name: row.get(name) for name in (*ROWS["label"][0], *ROWS["label"][1])} | {"key": key})
    return keyed


def free_key(wanted: str, taken: Collection[str]) -> str:
    """The key, cut to its length, with a number behind it where it is taken."""
    tries = [wanted[:40], *(f"{wanted[:36]}_{number}" for number in range(2, 100))]
    return next((key for key in tries if key not in taken), wanted[:40])


def field_of(error: FieldError) -> str:
    """The field of the form that a setting's path is about: `labels.2.en` -> `label_2_en`."""
    parts = error.field.split(".")
    if parts[0] in {"labels", "examples"} and len(parts) == 3:
        return "_".join([parts[0].removesuffix("s"), *parts[1:]])
    unfolded = {f"sampling.{name}": field for field, name in SAMPLING.items()}
    unfolded |= {f"training.{name}": field for field, name in TRAINING.items()}
    return unfolded.get(error.field, error.field)
