"""Pages of quality: agreement, annotators, leanings for admins; one's own work for everybody who ranks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from app.accounts.guards import Admin, Annotator
from app.plots import Whisker, whiskers
from app.projects.guards import PageProject
from app.quality import gold, qualification, service, watch
from app.quality.agreement import Agreement, Estimate
from app.quality.bias import Lean, as_csv
from app.quality.detectors import threshold
from app.quality.schemas import BiasOut, SettleForm
from app.tasks.standings import has_gate
from app.web import SessionDep, render, see_other

router = APIRouter()
PAGE_SIZE = 50


@router.get("/projects/{slug}/quality")
async def show_agreement(request: Request, project: PageProject, user: Admin, session: SessionDep) -> HTMLResponse:
    """How well people agree: in all, by round, by language, and on each label."""
    overview = await service.overview(session, project)
    return render(
        request,
        "quality/agreement.html",
        here="quality",
        project=project,
        overview=overview,
        parts=agreement_rows(overview),
        instructgpt=service.INSTRUCTGPT,
        label_names={label["key"]: label for label in project.labels},
    )


def agreement_rows(overview: service.Overview) -> list[dict[str, Any]]:
    """One row a round and a language, with their agreement drawn on one axis. A single part would repeat the whole."""
    parts: list[tuple[str, Any, Agreement]] = []
    for kind, found in (("round", overview.by_round), ("language", overview.by_language)):
        if len(found) > 1:
            parts += [(kind, key, agreement) for key, agreement in found]
    drawn = [(kind, key, part, part.with_ties) for kind, key, part in parts if part.with_ties]
    pictures = whiskers([(*interval(estimate), None) for *_, estimate in drawn])
    return [
        {"kind": kind, "key": key, "agreement": part, "whisker": picture}
        for (kind, key, part, _), picture in zip(drawn, pictures, strict=True)
    ]


def interval(estimate: Estimate) -> tuple[float, float, float]:
    """Value, low, high."""
    return estimate.value, estimate.low, estimate.high


@router.get("/projects/{slug}/quality/annotators")
async def list_annotators(
    request: Request,
    project: PageProject,
    user: Admin,
    session: SessionDep,
    after: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> HTMLResponse:
    """Everybody who ranked, those with flags first."""
    await watch.look_on_the_way(session, project)
    rows = await service.list_people(session, project, limit=PAGE_SIZE + 1, offset=after)
    return render(
        request,
        "quality/annotators.html",
        here="quality",
        project=project,
        rows=rows[:PAGE_SIZE],
        has_gate=has_gate(project),
        standings=await qualification.list_standings(session, project, [row.id for row in rows]),
        may_lag=bool(await service.people_to_measure(session, project, limit=1)),
        next_url=f"?after={after + PAGE_SIZE}" if len(rows) > PAGE_SIZE else None,
        is_first=after == 0,
    )


@router.get("/projects/{slug}/quality/annotators/{user_id}")
async def show_annotator(
    user_id: uuid.UUID, request: Request, project: PageProject, user: Admin, session: SessionDep
) -> HTMLResponse:
    """One annotator as of now, with every flag that was ever raised."""
    person = await service.get_person(session, project, user_id)
    flags = await service.flags_of_people(session, project, [person.id])
    known = await gold.known_orders(session, project)
    return render(
        request,
        "quality/annotator.html",
        here="quality",
        project=project,
        person=person,
        portrait=await service.person_view(session, project, person, known),
        flags=flags.get(person.id, []),
        has_gate=has_gate(project),
        standing=await qualification.find_standing(session, project, person.id),
        threshold=threshold(),
    )


@router.post("/projects/{slug}/quality/flags/{number:int}")
async def settle_flag(
    number: int, project: PageProject, user: Admin, session: SessionDep, form: Annotated[SettleForm, Form()]
) -> RedirectResponse:
    """Say that a flag is right or wrong."""
    flag = await service.settle_flag(
        session, project, number, settlement=form.settlement, note=form.note.strip(), actor_id=user.id
    )
    return see_other(f"/projects/{project.slug}/quality/annotators/{flag.annotator_id}")


@router.get("/projects/{slug}/quality/bias")
async def show_bias(request: Request, project: PageProject, user: Admin, session: SessionDep) -> HTMLResponse:
    """What rankings lean on besides the answers."""
    report = await service.bias_report(session, project)
    return render(
        request,
        "quality/bias.html",
        here="quality",
        project=project,
        report=report,
        seats=with_pictures(report.by_seat),
        lengths=with_pictures([*([report.longer] if report.longer else []), *report.by_length]),
        versions=with_pictures(report.by_version),
        people=with_pictures(report.by_annotator),
    )


def with_pictures(leans: Sequence[Lean]) -> list[tuple[Lean, Whisker]]:
    """Rates with their intervals on one axis."""
    pictures = whiskers([(*interval(lean.rate), lean.expected) for lean in leans])
    return list(zip(leans, pictures, strict=True))


@router.get("/projects/{slug}/quality/bias.csv")
async def download_bias_csv(project: PageProject, user: Admin, session: SessionDep) -> Response:
    """The rates of that page, as a file for spreadsheets."""
    text = as_csv(await service.bias_report(session, project))
    return Response(text, media_type="text/csv; charset=utf-8", headers=as_file(f"{project.slug}-bias.csv"))


@router.get("/projects/{slug}/quality/bias.json")
async def download_bias_json(project: PageProject, user: Admin, session: SessionDep) -> Response:
    """The same as JSON."""
    text = BiasOut.of(await service.bias_report(session, project)).model_dump_json(indent=2)
    return Response(text, media_type="application/json", headers=as_file(f"{project.slug}-bias.json"))


def as_file(name: str) -> dict[str, str]:
    """A download under this name; other characters than a header takes are left out."""
    plain = name.encode("ascii", "ignore").decode() or "bias"
    return {"content-disposition": f'attachment; filename="{plain}"'}


# One's own work


@router.get("/projects/{slug}/my-work")
async def show_my_work(request: Request, project: PageProject, user: Annotator, session: SessionDep) -> HTMLResponse:
    """What an annotator's own rankings look like to those who run the project."""
    portrait = await gold.own_view(session, project, user)
    overview = await service.usual_overview(session, project) if portrait else None
    return render(request, "quality/my_work.html", project=project, portrait=portrait, overview=overview)
