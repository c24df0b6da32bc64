"""The OpenAPI document as programs rely on it: FastAPI's own, with the refusals that every operation may answer, and
with examples of what it takes and gives.

FastAPI knows what a route returns, not what `app.errors` may say instead. Each of those is one shape, problem+json
(RFC 9457), so it is named once and every operation points to it. What is sent in the examples stands beside the schemas
(app/examples.py); what came back is recorded by the tests, which send them.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from app.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    RankloopError,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from app.examples import PARAMETERS

MEDIA_TYPE = "application/problem+json"
ANSWERS = Path(__file__).with_name("openapi_answers.json")
REFUSALS: tuple[type[RankloopError], ...] = (
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    Conflict,
    TooLarge,
    Invalid,
    TooManyRequests,
    Unavailable,
)
GAP = re.compile(r"\{(\w+)\}")
GAPS = {"project_id": {"description": "A project's id or short name"}}
# FastAPI's shape of a 422, which ours takes the place of.
REPLACED = ("HTTPValidationError", "ValidationError")


class ProblemField(BaseModel):
    """Which field was refused, and by which rule."""

    field: str = Field(examples=["places.6d5e…"])
    rule: str = Field(examples=["has no place yet"])


class Problem(BaseModel):
    """What could not be done, and why (RFC 9457)."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(description="The kind of refusal, for programs", examples=["NotFound"])
    status: int = Field(examples=[404])
    detail: str = Field(description="What to do about it, for people", examples=["There is no such ranking."])
    errors: list[ProblemField]


def document(app: FastAPI) -> dict[str, Any]:
    """The app's OpenAPI document, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, summary=app.summary
        )
        if base := app.state.settings.base_path:
            schema["servers"] = [{"url": base}]
        app.openapi_schema = show_answers(with_refusals(schema))
    return app.openapi_schema


def with_refusals(schema: dict[str, Any]) -> dict[str, Any]:
    """A document in which every operation may answer each refusal."""
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in REPLACED:
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs") | {"Problem": problem}
    components["responses"] = {refusal.__name__: response(refusal) for refusal in REFUSALS}
    for path, item in schema["paths"].items():
        for operation in item.values():
            document_refusals(operation["responses"])
            document_conditions(operation["responses"])
            document_gaps(path, operation)
            show_parameters(operation["parameters"])
    return schema


def document_conditions(responses: dict[str, Any]) -> None:
    """What a route says of a change that was too late gets the shape of all refusals."""
    if "412" in responses:
        responses["412"]["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}


def show_parameters(parameters: list[dict[str, Any]]) -> None:
    """An example of each parameter that is needed."""
    for parameter in parameters:
        if parameter["required"] and parameter["name"] in PARAMETERS:
            parameter["example"] = PARAMETERS[parameter["name"]]


def show_answers(schema: dict[str, Any]) -> dict[str, Any]:
    """What each operation answered when the tests sent its example."""
    answers: dict[str, Any] = json.loads(ANSWERS.read_text(encoding="utf-8"))
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            told = answers.get(f"{method.upper()} {path}")
            if told:
                operation["responses"][told["status"]]["content"][told["type"]]["example"] = told["body"]
    return schema


def document_gaps(path: str, operation: dict[str, Any]) -> None:
    """Name the gaps of an address that guards fill in, and the route's function never sees: its project."""
    parameters = operation.setdefault("parameters", [])
    named = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
    for gap in GAP.findall(path):
        if gap not in named:
            text = {"type": "string", "maxLength": 100}
            parameters.append({"name": gap, "in": "path", "required": True, "schema": text} | GAPS[gap])


def response(refusal: type[RankloopError]) -> dict[str, Any]:
    """One refusal as a response that operations point to."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": (refusal.__doc__ or HTTPStatus(refusal.status).phrase).strip(), "content": content}


def document_refusals(responses: dict[str, Any]) -> None:
    """Add the refusals to an operation. What its route says of one (when it is a 409, say) stays its description."""
    for refusal in REFUSALS:
        own = responses.get(str(refusal.status), {})
        if "description" in own and own["description"] != "Validation Error":
            own["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        else:
            responses[str(refusal.status)] = {"$ref": f"#/components/responses/{refusal.__name__}"}
