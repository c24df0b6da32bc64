"""Every operation of the API has an example that works, and shows an answer that is still true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Response
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.main import create_app
from app.openapi import ANSWERS
from tests.examples import Operation, World, all_answers, operations, told

ID = re.compile(r"^[0-9a-f]{16}$|^[0-9a-f-]{36}$")
RECORD = "see what it answers, then `python -m tests.examples`"


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("document"))).openapi()


def shape(value: Any) -> Any:
    """Which fields there are, whatever is in them; of a list, those of its first entry; of names that are ids, one."""
    if isinstance(value, dict):
        return {ID.sub("*", name): shape(item) for name, item in value.items()}
    return [shape(item) for item in value[:1]] if isinstance(value, list) else None


def trouble(world: World, operation: Operation, answer: Response) -> str | None:
    """What is wrong with an answer to an example."""
    if answer.status_code not in operation.promised:
        return f"{answer.status_code} {answer.text}"
    recorded = json.loads(ANSWERS.read_text(encoding="utf-8")).get(operation.route)
    body = told(world, operation, answer)
    if (body is None) != (recorded is None):
        return f"an answer that is described is shown, and no other: {RECORD}"
    return f"has other fields than the one that is shown: {RECORD}" if shape(body) != shape(recorded) else None


async def test_every_example_works_and_shows_what_is_answered(shared_engine: AsyncEngine, tmp_path: Path) -> None:
    found = {
        operation.route: problem
        async for world, operation, answer in all_answers(shared_engine, tmp_path)
        if (problem := trouble(world, operation, answer))
    }
    assert found == {}


def require_fit(value: Any, content: dict[str, Any], document: dict[str, Any]) -> None:
    """ValidationError where a value is not what a part of the document says."""
    # Here: jsonschema takes 2.5 s to import, in every process that collects tests.
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

    Draft202012Validator(content["schema"] | {"components": document["components"]}).validate(value)


def test_every_answer_that_is_shown_fits_its_schema(document: dict[str, Any]) -> None:
    shown = 0
    for operation in operations(document).values():
        for response in operation.described["responses"].values():
            for content in response.get("content", {}).values():
                if "example" in content:
                    require_fit(content["example"], content, document)
                    shown += 1
    assert shown > 50


def test_every_body_that_is_shown_fits_its_schema(document: dict[str, Any]) -> None:
    shown = 0
    for operation in operations(document).values():
        for media_type, content in operation.described.get("requestBody", {}).get("content", {}).items():
            if media_type == "application/json":
                require_fit(json.loads(operation.request(document)["content"]), content, document)
                shown += 1
    assert shown > 20
