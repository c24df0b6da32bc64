"""What the ranking page's script fetches before it is needed: the next task, and packs of tasks to rank offline."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import Annotator
from app.accounts.models import User
from app.db import let_go
from app.projects.guards import PageProject
from app.rankings.pages import PACK_COOKIE, read_draft, show_sheet
from app.tasks import ahead
from app.tasks import service as tasks
from app.tasks.guards import SamePerson
from app.tasks.models import Lease
from app.tasks.service import PACK_LIFE
from app.web import SessionDep, SettingsDep, begins_late, see_other

router = APIRouter()


class PagesResponse(JSONResponse):
    """JSON that is made of pages, and is compressed as they are: see `NOT_COMPRESSED` in app/main.py."""

    media_type = "text/json"


class PageOut(BaseModel):
    """A task's ranking page, to be shown when its time comes."""

    lease_id: uuid.UUID
    html: str


class DeskOut(BaseModel):
    """What lies before the annotator. `in_hand` differs from what is shown when an admin took that back."""

    in_hand: uuid.UUID | None
    ahead: PageOut | None


class PackOut(BaseModel):
    """Tasks to rank offline, in this order, until the moment when others get what is left."""

    pack_id: uuid.UUID
    expires_at: datetime | None
    pages: list[PageOut]


@router.post("/projects/{slug}/rank/ahead", response_class=PagesResponse)
@begins_late
async def fetch_ahead(request: Request, project: PageProject, annotator: SamePerson, session: SessionDep) -> DeskOut:
    """The task after the one in hand, as a page."""
    desk = await ahead.preload(session, project=project, annotator=annotator, now=datetime.now(UTC))
    pages = await pages_of(request, session, [desk.ahead] if desk.ahead else [], annotator, num_before=1)
    return DeskOut(in_hand=desk.in_hand.id if desk.in_hand else None, ahead=pages[0] if pages else None)


@router.post("/projects/{slug}/rank/pack", response_class=PagesResponse)
async def take_pack(
    request: Request,
    response: Response,
    project: PageProject,
    annotator: SamePerson,
    session: SessionDep,
    settings: SettingsDep,
    num: Annotated[int, Form()],
    pack_id: Annotated[uuid.UUID, Form()],
) -> PackOut:
    """Tasks to take along. The device chose `pack_id`; sent again it gives what is left of the same pack."""
    now = datetime.now(UTC)
    leases = await ahead.take_pack(session, project=project, annotator=annotator, num=num, now=now, pack_id=pack_id)
    response.set_cookie(
        PACK_COOKIE,
        str(pack_id),
        max_age=int(PACK_LIFE.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=settings.has_secure_cookies,
    )
    pages = await pages_of(request, session, leases, annotator)
    return PackOut(pack_id=pack_id, expires_at=min((lease.expires_at for lease in leases), default=None), pages=pages)


@router.post("/projects/{slug}/rank/pack/return")
async def return_pack(project: PageProject, annotator: Annotator, session: SessionDep) -> RedirectResponse:
    """Give back what is left of a pack, and rank here again. Rankings that come later from its device are kept."""
    await ahead.return_pack(session, annotator=annotator, now=datetime.now(UTC))
    answer = see_other(f"/projects/{project.slug}/rank")
    answer.delete_cookie(PACK_COOKIE)
    return answer


async def pages_of(
    request: Request, session: AsyncSession, leases: Sequence[Lease], annotator: User, *, num_before: int = 0
) -> list[PageOut]:
    """The ranking pages of leases, as they will be seen one after the other, after so many others."""
    made = []
    for number, lease in enumerate(leases, num_before):
        sheet = await tasks.get_sheet(session, lease)
        draft = read_draft(lease)
        page = await show_sheet(request, session, sheet, annotator, answer=draft, num_before=number, is_ahead=True)
        made.append(page)
    await let_go(session)
    return [PageOut(lease_id=lease.id, html=await page.whole()) for lease, page in zip(leases, made, strict=True)]
