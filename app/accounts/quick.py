"""Routes that are asked at every ranking, past the machinery that all others share.

FastAPI finds what an endpoint wants through dependencies, each with its scope, its cache and its exit stacks. For what
is asked hundreds of times a second this was a quarter of the web processes' time. A `QuickRoute` calls such an endpoint
by itself. Whatever is not the usual case goes FastAPI's way, so that there is one place for its answers.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.accounts.guards import Ranker, bearer, find_ranker
from app.bodies import MOST_FIELDS, has_more_fields
from app.db import committed
from app.web import is_late, sessions_of

Handler = Callable[[Request], Awaitable[Response]]
JSON = "application/json"


class QuickRoute(APIRoute):
    """As FastAPI's route, and quicker for an endpoint that `begins_late`. It takes a `body`, a `caller: Ranker` and a
    `session`; a `response`, if it likes, and the ids that its address names. It answers with its model, or a response.
    """

    def get_route_handler(self) -> Any:
        """What answers a request: in the usual case, the endpoint alone."""
        usual = super().get_route_handler()
        if not is_late(self.endpoint):
            return usual
        desk = Desk.of(self)

        async def answer(request: Request) -> Response:
            given = await desk.read(request)
            return await usual(request) if given is None else await desk.answer(request, given)

        return answer


@dataclass(frozen=True)
class Desk:
    """One endpoint: what it is asked with, and what it answers with."""

    endpoint: Callable[..., Awaitable[Any]]
    body: type[BaseModel]
    ids: frozenset[str]
    takes_response: bool
    answers: TypeAdapter[Any]
    status: int

    @classmethod
    def of(cls, route: APIRoute) -> Desk:
        """From the endpoint's own types. Raises TypeError for one that wants more than a `QuickRoute` gives."""
        hints = get_type_hints(route.endpoint, include_extras=True)
        model = route.response_model or hints["return"]
        ids = {name for name in route.param_convertors if hints.get(name) is uuid.UUID}
        wants = hints.keys() - ids - {"response", "return"}
        if wants != {"body", "caller", "session"} or hints["caller"] != Ranker or ids != route.param_convertors.keys():
            raise TypeError(f"{route.path}: a quick route gives a body, a Ranker, a session and ids alone")
        status = route.status_code or 200
        return cls(route.endpoint, hints["body"], frozenset(ids), "response" in hints, TypeAdapter(model), status)

    async def read(self, request: Request) -> dict[str, Any] | None:
        """The ids of the address and the body. None: something is out of the ordinary, or wrong."""
        headers = request.headers
        if "authorization" not in headers or headers.get("content-type") != JSON:
            return None
        try:
            given: dict[str, Any] = {name: uuid.UUID(request.path_params[name]) for name in self.ids}
            sent = await request.json()
            if has_more_fields(sent, MOST_FIELDS):
                return None
            given["body"] = self.body.model_validate(sent)
        except (ValidationError, ValueError, RecursionError):
            return None
        return given

    async def answer(self, request: Request, given: dict[str, Any]) -> Response:
        """What the endpoint says. It is committed before it is sent, as everywhere."""
        told = Response(status_code=self.status, media_type=JSON)
        if self.takes_response:
            given["response"] = told
        async with committed(sessions_of(request)) as session:
            caller = await find_ranker(request, session, await bearer(request))
            found = await self.endpoint(**given, caller=caller, session=session)
        if isinstance(found, Response):
            return found
        content = self.answers.dump_json(found)
        return Response(content, told.status_code, media_type=JSON)
