"""The matrix of routes and roles: a row for each page and each operation of the API.

The word is the lowest role that gets in: `person` is whoever is signed in, `owner` has the site, `trainer anywhere` has
that role in some project. A new route gets its row here; test_matrix.py then asks it as everybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.routing import APIRoute

from app.main import DOMAINS, PAGES

PAGE_MATRIX = {
    "GET /": "person",
    "GET /sign-in": "public",
    "POST /sign-in": "public",
    "GET /sign-in/forgot": "public",
    "POST /sign-in/forgot": "public",
    "GET /sign-in/link": "public",
    "POST /sign-in/link": "public",
    "POST /sign-out": "public",
    "POST /preferences": "public",
    "GET /people": "owner",
    "POST /people": "owner",
    "POST /people/invitations": "owner",
    "POST /people/invitations/{invitation_id}/revoke": "owner",
    "GET /people/{user_id}": "owner",
    "POST /people/{user_id}/role": "owner",
    "POST /people/{user_id}/link": "owner",
    "POST /people/{user_id}/sign-out": "owner",
    "POST /people/{user_id}/disable": "owner",
    "POST /people/{user_id}/enable": "owner",
    "POST /people/{user_id}/erase": "owner",
    "GET /audit": "owner",
    "GET /join": "public",
    "POST /join": "public",
    "GET /account": "person",
    "POST /account/password": "person",
    "POST /account/sessions/end": "person",
    "POST /account/sessions/{session_id}/end": "person",
    "GET /account/tokens": "person",
    "POST /account/tokens": "person",
    "POST /account/tokens/{token_id}/revoke": "person",
    "GET /projects/{slug}/people": "admin",
    "POST /projects/{slug}/people/{user_id}": "admin",
    "POST /projects/{slug}/people/invitations": "admin",
    "POST /projects/{slug}/people/invitations/{invitation_id}/revoke": "admin",
    "POST /leases/{lease_id}": "annotator",
    "POST /leases/{lease_id}/skip": "annotator",
    "POST /leases/{lease_id}/draft": "annotator",
    "POST /leases/{lease_id}/let-go": "annotator",
    "GET /projects/new": "owner",
    "POST /projects": "owner",
    "GET /projects/{slug}": "admin",
    "GET /projects/{slug}/rank": "annotator",
    "POST /projects/{slug}/rank/ahead": "annotator",
    "POST /projects/{slug}/rank/pack": "annotator",
    "POST /projects/{slug}/rank/pack/return": "annotator",
    "POST /projects/{slug}/sample": "admin",
    "POST /projects/{slug}/train": "admin",
    "GET /projects/{slug}/settings": "admin",
    "POST /projects/{slug}/settings": "admin",
    "GET /projects/{slug}/prompts": "admin",
    "GET /projects/{slug}/prompts/import": "admin",
    "POST /projects/{slug}/prompts/import": "admin",
    "GET /projects/{slug}/prompts/{prompt_id:uuid}": "admin",
    "GET /projects/{slug}/tasks": "admin",
    "GET /projects/{slug}/tasks/{task_id}": "admin",
    "POST /projects/{slug}/tasks/{task_id}/withdraw": "admin",
    "GET /projects/{slug}/rankings": "admin",
    "GET /projects/{slug}/rankings/{ranking_id}": "admin",
    "GET /projects/{slug}/my-work": "annotator",
    "GET /projects/{slug}/quality": "admin",
    "GET /projects/{slug}/quality/annotators": "admin",
    "GET /projects/{slug}/quality/annotators/{user_id}": "admin",
    "POST /projects/{slug}/quality/flags/{number:int}": "admin",
    "GET /projects/{slug}/quality/bias": "admin",
    "GET /projects/{slug}/quality/bias.csv": "admin",
    "GET /projects/{slug}/quality/bias.json": "admin",
    "GET /projects/{slug}/datasets": "admin",
    "POST /projects/{slug}/datasets": "admin",
    "GET /projects/{slug}/datasets/{number:int}": "admin",
    "GET /projects/{slug}/datasets/{number:int}/download": "admin",
    "GET /projects/{slug}/datasets/{number:int}/export": "admin",
    "GET /projects/{slug}/runs": "admin",
    "POST /projects/{slug}/runs": "admin",
    "GET /projects/{slug}/runs/{run_id}": "admin",
    "GET /projects/{slug}/runs/{run_id}/live": "admin",
    "POST /projects/{slug}/runs/{run_id}/cancel": "admin",
    "POST /projects/{slug}/runs/{run_id}/retry": "admin",
    "GET /projects/{slug}/versions": "admin",
    "GET /projects/{slug}/versions/{number}": "admin",
    "POST /projects/{slug}/versions/{number}/promote": "admin",
}
# Asked with a token that has every scope of its owner's role. Reading and writing need a trainer; so do workers.
API_MATRIX = {
    "POST /users": "owner",
    "GET /users": "owner",
    "POST /tokens": "owner",
    "POST /tokens/{token_id}/revoke": "owner",
    "GET /projects": "trainer anywhere",
    "POST /projects": "owner",
    "GET /projects/{project_id}": "trainer",
    "PATCH /projects/{project_id}": "admin",
    "GET /projects/{project_id}/members": "admin",
    "PUT /projects/{project_id}/members/{user_id}": "admin",
    "DELETE /projects/{project_id}/members/{user_id}": "admin",
    "POST /projects/{project_id}/prompts:import": "trainer",
    "POST /projects/{project_id}/completions:import": "trainer",
    "POST /projects/{project_id}/corpora:import": "trainer",
    "POST /projects/{project_id}/rankings:import": "trainer",
    "GET /projects/{project_id}/prompts": "trainer",
    "GET /projects/{project_id}/corpora": "trainer",
    "GET /projects/{project_id}/plan": "trainer",
    "GET /projects/{project_id}/changes": "trainer",
    "GET /projects/{project_id}/rounds": "trainer",
    "POST /projects/{project_id}/sample": "trainer",
    "POST /projects/{project_id}/train": "trainer",
    "POST /projects/{project_id}/runs": "trainer",
    "POST /projects/{project_id}/evaluate": "trainer",
    "GET /completions": "trainer",
    "GET /corpora/{corpus_id}/rows": "trainer",
    "GET /tasks": "trainer",
    "POST /tasks:next": "annotator",
    "POST /leases/{lease_id}:release": "annotator",
    "POST /leases/{lease_id}:extend": "annotator",
    "PUT /leases/{lease_id}/draft": "annotator",
    "POST /leases/{lease_id}/ranking": "annotator",
    "GET /rankings": "trainer",
    "GET /rankings/{ranking_id}": "trainer",
    "POST /rankings/{ranking_id}:revise": "annotator",
    "GET /projects/{project_id}/quality": "trainer",
    "GET /projects/{project_id}/quality/annotators": "admin",
    "GET /projects/{project_id}/quality/bias": "trainer",
    "GET /datasets": "trainer",
    "POST /datasets": "trainer",
    "GET /datasets/{dataset_id}": "trainer",
    "GET /datasets/{dataset_id}/rows": "trainer",
    "GET /datasets/{dataset_id}/export": "trainer",
    "GET /datasets/{dataset_id}/report": "trainer",
    "GET /datasets/{dataset_id}/card": "trainer",
    "GET /datasets/{dataset_id}/card.md": "trainer",
    "GET /runs": "trainer",
    "POST /runs:claim": "trainer anywhere",
    "GET /runs/{run_id}": "trainer",
    "GET /runs/{run_id}/metrics": "trainer",
    "GET /runs/{run_id}/prompts": "trainer",
    "GET /runs/{run_id}/artifacts": "trainer",
    "GET /runs/{run_id}/artifacts/{name:path}": "trainer",
    "PUT /runs/{run_id}/artifacts/{name:path}": "trainer",
    "POST /runs/{run_id}/heartbeat": "trainer",
    "POST /runs/{run_id}/metrics": "trainer",
    "POST /runs/{run_id}/log": "trainer",
    "POST /runs/{run_id}/completions": "trainer",
    "POST /runs/{run_id}/finish": "trainer",
    "POST /runs/{run_id}/release": "trainer",
    "POST /runs/{run_id}/cancel": "trainer",
    "POST /runs/{run_id}/retry": "trainer",
    "GET /versions": "trainer",
    "GET /versions/{version_id}": "trainer",
    "GET /versions/{version_id}/artifacts/{name:path}": "trainer",
    "POST /versions/{version_id}:promote": "admin",
}
# Roles that get in where the word is the lowest one. Reviewers and trainers are side by side.
ALLOWED = {
    "public": {"stranger", "outsider", "annotator", "reviewer", "trainer", "admin", "owner"},
    "person": {"outsider", "annotator", "reviewer", "trainer", "admin", "owner"},
    "annotator": {"annotator", "reviewer", "trainer", "admin", "owner"},
    "reviewer": {"reviewer", "admin", "owner"},
    "trainer": {"trainer", "admin", "owner"},
    "trainer anywhere": {"outsider", "trainer", "admin", "owner"},
    "admin": {"admin", "owner"},
    "owner": {"owner"},
}


def routes(routers: list[APIRouter]) -> Iterator[str]:
    """Method and path of every route, those of routers within routers too."""
    for router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute):
                yield from (f"{method} {route.path}" for method in sorted(route.methods or ()))
            else:
                yield from routes([route.original_router])  # type: ignore[attr-defined]


ID_GAP = re.compile(r"\{(?!project_id)\w+_id(:\w+)?\}")
PAGE_ROUTES = list(routes([module.router for module in PAGES]))
API_ROUTES = list(routes([module.router for module in DOMAINS]))
