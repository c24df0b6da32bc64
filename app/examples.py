"""What the OpenAPI document shows: one project, and one of each thing in it, by ids that are the same everywhere.

The example of a body stands beside its schema, made with `shown`; those of addresses and headers stand here. The tests
build this very world, send every example (tests/examples.py), and record the answers in openapi_answers.json.
"""

from __future__ import annotations

import uuid
from typing import Any

PROJECT = "support"


def example_id(noun: str) -> str:
    """The id of a thing in the examples."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"https://rankloop.example.org/{noun}"))


def shown(**fields: Any) -> dict[str, Any]:
    """The example of a schema, as its `json_schema_extra`."""
    return {"examples": [fields]}


A, B, C = (example_id(f"answer {letter}") for letter in "ABC")
FILE = b"{}"
FILE_SHA256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"

# What a parameter that an operation needs is filled with, by its name.
PARAMETERS: dict[str, Any] = {
    "project_id": PROJECT,
    "number": 1,
    "name": "config.json",
    "other": example_id("older dataset"),
    "size": len(FILE),
    "sha256": FILE_SHA256,
    "Rankloop-Fence": 1,
    **{
        f"{noun}_id": example_id(noun)
        for noun in (
            *("user", "token", "run", "version", "dataset", "corpus", "lease", "ranking", "webhook", "delivery"),
            "prompt",
        )
    },
}
