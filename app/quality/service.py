"""Quality of a project as pages and API show it. Reads a bounded number of rankings, however many there are."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.accounts.models import User, nameless
from app.db import at_most
from app.errors import Conflict, NotFound
from app.projects.models import Project
from app.quality import drafts, reading
from app.quality.agreement import Agreement, by, kappa_of_labels, measure
from app.quality.bias import Report, report_of
from app.quality.detectors import Check, Crowd, Evidence, crowd_of, flags_of, read
from app.quality.models import AnnotatorRecord, QualityFlag
from app.quality.orders import Judgement
from app.quality.people import Gold, Portrait, portray
from app.rankings.models import Ranking
from app.rankings.service import is_current
from app.registry.models import Version
from app.remembering import Remembered
from app.tasks.standings import may_annotate

# InstructGPT (Ouyang et al. 2022), section 3.4: how often its training labelers agreed with each other.
INSTRUCTGPT = {"value": 0.726, "margin": 0.015}
AT_ONCE = 25
"""So many people are measured in one go: those with new rankings who were measured longest ago."""
PORTRAIT = TypeAdapter(Portrait)
EVIDENCE = TypeAdapter(Evidence)
AGREEMENT = TypeAdapter(Agreement)
NO_GOLD: Gold = {}
Figure = TypeVar("Figure")
STALE = 0.01
"""What somebody is compared with is worked out anew when so many rankings are new, as a share of those behind it."""


class FlagSettled(Conflict):
    """Somebody has settled this flag already."""


@dataclass(frozen=True)
class Overview:
    """How well people agree in a project, in parts too. `kappas`: Fleiss' kappa of each label that was used."""

    everything: Agreement
    by_round: list[tuple[Any, Agreement]]
    by_language: list[tuple[Any, Agreement]]
    kappas: Mapping[str, float | None]


@dataclass(frozen=True)
class PersonRow:
    """One annotator as the list shows them."""

    id: uuid.UUID
    name: str
    is_disabled: bool
    num_rankings: int
    share: float | None
    """Of all that the people of this list ranked; None where that is nothing."""
    measured_at: datetime
    portrait: Portrait
    flags: Sequence[QualityFlag]


@dataclass(frozen=True)
class Usual(Generic[Figure]):
    """What is usual in a project, as of one of its rankings."""

    figure: Figure
    number: int
    num_rankings: int
    gold: Gold

    def holds(self, number: int, gold: Gold) -> bool:
        """Whether it may still be compared with, now that the newest ranking has this number."""
        return gold == self.gold and number - self.number <= STALE * self.num_rankings


_overviews: Remembered[tuple[reading.Key, ...], Overview] = Remembered(64)
_usual_overviews: Remembered[uuid.UUID, Usual[Overview]] = Remembered(64)
_crowds: Remembered[uuid.UUID, Usual[Crowd]] = Remembered(64)


# Agreement


async def overview(session: AsyncSession, project: Project) -> Overview:
    """Agreement over the newest rankings of tasks that more than one person ranked."""
    keys = tuple(await reading.overlapping_keys(session, project.id))
    known = _overviews.get(keys)
    if known is not None:
        return known
    judgements = await reading.judgements(session, keys)
    return _overviews.keep(keys, await asyncio.to_thread(overview_of, judgements))


async def usual_overview(session: AsyncSession, project: Project) -> Overview:
    """The same, but for a few of the newest rankings (`STALE`): to compare something else with."""
    number, known = await reading.newest_number(session, project.id), _usual_overviews.get(project.id)
    if known is None or not known.holds(number, NO_GOLD):
        found = await overview(session, project)
        known = Usual(found, number, found.everything.num_rankings, NO_GOLD)
        _usual_overviews.keep(project.id, known)
    return known.figure


def overview_of(judgements: Sequence[Judgement]) -> Overview:
    """All coefficients, of everything and of parts; a part that is everything is not measured again."""
    everything = measure(judgements)

    def parts(key: Callable[[Judgement], object]) -> list[tuple[Any, Agreement]]:
        groups = by(judgements, key)
        return [(name, everything if len(groups) == 1 else measure(part)) for name, part in groups]

    return Overview(
        everything=everything,
        by_round=parts(lambda judgement: judgement.round),
        by_language=parts(lambda judgement: judgement.language),
        kappas=kappa_of_labels(judgements),
    )


# Leanings


async def bias_report(session: AsyncSession, project: Project, *, tells_names: bool = True) -> Report:
    """What the newest rankings lean on."""
    judgements = await reading.newest(session, project.id)
    names = await names_of(session, project, judgements, tells_names=tells_names)
    found = await asyncio.to_thread(report_of, judgements, names)
    return replace(found, drafted=await drafts.report(session, project))


async def names_of(
    session: AsyncSession, project: Project, judgements: Sequence[Judgement], *, tells_names: bool = True
) -> dict[Hashable, str]:
    """What annotators and versions are called; imported ones go by the name in their file. Without names, a person is
    the end of their id.
    """
    ids = {row.annotator for row in judgements if isinstance(row.annotator, uuid.UUID)}
    found = await session.execute(select(User.id, User.name).where(User.id.in_(ids)))
    people: dict[Hashable, str] = {key: name if tells_names else nameless(key) for key, name in found}
    versions = await session.execute(
        select(Version.id, Version.kind, Version.number).where(Version.project_id == project.id)
    )
    return {**people, **{str(version.id): f"{version.kind} v{version.number}" for version in versions}}


# Annotators


async def usual_in(session: AsyncSession, project: Project, gold: Gold = NO_GOLD) -> Crowd:
    """What is usual in a project: from its newest rankings, and from those that overlap; but for a few (`STALE`)."""
    number, known = await reading.newest_number(session, project.id), _crowds.get(project.id)
    if known is None or not known.holds(number, gold):
        newest = await reading.newest_keys(session, project.id, with_gold=True)
        keys = dict.fromkeys([*newest, *await reading.overlapping_keys(session, project.id)])
        judgements = await reading.judgements(session, keys)
        crowd = await asyncio.to_thread(lambda: crowd_of(read(judgements, gold)))
        known = _crowds.keep(project.id, Usual(crowd, number, len(keys), dict(gold)))
    return known.figure


async def portraits(
    session: AsyncSession, project: Project, people: Sequence[uuid.UUID], gold: Gold = NO_GOLD
) -> Mapping[Hashable, Portrait]:
    """What is said of these people, from their newest rankings. Who has none is left out."""
    theirs = await reading.of_people(session, project.id, people)
    if not theirs:
        return {}
    others = await reading.beside(session, theirs, gold=gold)
    crowd = await usual_in(session, project, gold)
    return await asyncio.to_thread(portray, theirs, others, crowd, gold)


async def measure_people(session: AsyncSession, project: Project, *, gold: Gold = NO_GOLD, limit: int = AT_ONCE) -> int:
    """Measure those again who have new rankings, those first whose last time is longest ago; raise flags.

    Returns:
        How many people were measured.
    """
    waiting = await people_to_measure(session, project, limit=limit)
    found = await portraits(session, project, list(waiting), gold)
    # In one order everywhere, so that two who measure at once do not wait for each other in a circle.
    for person in sorted(waiting):
        if person in found:
            await keep(session, project, person, found[person], last_number=waiting[person])
    return len(found)


async def people_to_measure(session: AsyncSession, project: Project, *, limit: int) -> dict[uuid.UUID, int]:
    """Who ranked since they were last measured, and their newest ranking's number."""
    recent = (
        select(Ranking.annotator_id, Ranking.number)
        .where(Ranking.project_id == project.id)
        .order_by(Ranking.number.desc())
        .limit(at_most(reading.SCANNED))
        .subquery()
    )
    last = func.max(recent.c.number)
    query = (
        select(recent.c.annotator_id, last)
        .outerjoin(
            AnnotatorRecord,
            (AnnotatorRecord.annotator_id == recent.c.annotator_id) & (AnnotatorRecord.project_id == project.id),
        )
        .where(recent.c.annotator_id.is_not(None))
        .group_by(recent.c.annotator_id, AnnotatorRecord.last_number, AnnotatorRecord.measured_at)
        .having(last > func.coalesce(AnnotatorRecord.last_number, 0))
        .order_by(AnnotatorRecord.measured_at.nulls_first(), recent.c.annotator_id)
        .limit(limit)
    )
    return {person: number for person, number in await session.execute(query)}


async def keep(
    session: AsyncSession, project: Project, person: uuid.UUID, portrait: Portrait, *, last_number: int
) -> None:
    """Store what was measured, and raise the flags that are new."""
    num = await count_of_person(session, project, person)
    values = {
        "num_rankings": num,
        "last_number": last_number,
        "figures": PORTRAIT.dump_python(portrait, mode="json"),
        "measured_at": func.now(),
    }
    statement = insert(AnnotatorRecord).values(project_id=project.id, annotator_id=person, **values)
    await session.execute(statement.on_conflict_do_update(index_elements=["project_id", "annotator_id"], set_=values))
    for check in flags_of(portrait.checks):
        await raise_flag(session, project, person, check, portrait.checks[check], last_number)


async def count_of_person(session: AsyncSession, project: Project, person: uuid.UUID) -> int:
    """How many current rankings somebody has in a project."""
    query = select(func.count()).select_from(Ranking)
    found = await session.scalar(
        query.where(Ranking.annotator_id == person, Ranking.project_id == project.id, is_current())
    )
    return found or 0


async def raise_flag(
    session: AsyncSession, project: Project, person: uuid.UUID, check: Check, evidence: Evidence, last_number: int
) -> None:
    """Flag somebody, unless that flag is up. One that was dismissed comes back with a window of new rankings only."""
    settled = await session.scalar(
        select(func.max(QualityFlag.last_number)).where(
            QualityFlag.project_id == project.id,
            QualityFlag.annotator_id == person,
            QualityFlag.check_name == check,
            QualityFlag.settled_at.is_not(None),
        )
    )
    if settled is not None and await count_since(session, project, person, settled) < reading.PER_PERSON:
        return
    statement = insert(QualityFlag).values(
        project_id=project.id,
        annotator_id=person,
        check_name=check,
        evidence=EVIDENCE.dump_python(evidence, mode="json"),
        last_number=last_number,
    )
    await session.execute(statement.on_conflict_do_nothing())


async def count_since(session: AsyncSession, project: Project, person: uuid.UUID, number: int) -> int:
    """How many rankings somebody stored after this one."""
    query = select(func.count()).where(
        Ranking.annotator_id == person, Ranking.project_id == project.id, Ranking.number > number
    )
    return await session.scalar(query) or 0


async def person_view(session: AsyncSession, project: Project, user: User, gold: Gold = NO_GOLD) -> Portrait | None:
    """One annotator as of now; None where all they ranked was superseded or came too late."""
    return (await portraits(session, project, [user.id], gold)).get(user.id)


async def list_people(session: AsyncSession, project: Project, *, limit: int, offset: int = 0) -> list[PersonRow]:
    """Everybody who was measured: those with open flags first, then by name."""
    num_flags = (
        select(func.count())
        .where(
            QualityFlag.project_id == project.id,
            QualityFlag.annotator_id == AnnotatorRecord.annotator_id,
            QualityFlag.settled_at.is_(None),
        )
        .correlate(AnnotatorRecord)
        .scalar_subquery()
    )
    query = (
        select(AnnotatorRecord, User, func.sum(AnnotatorRecord.num_rankings).over())
        .join(User, User.id == AnnotatorRecord.annotator_id)
        .where(AnnotatorRecord.project_id == project.id)
        .order_by(num_flags.desc(), User.name, User.id)
        .limit(limit)
        .offset(offset)
    )
    rows = (await session.execute(query)).all()
    flags = await flags_of_people(session, project, [user.id for _, user, _ in rows])
    return [person_row(record, user, int(num_all), flags.get(user.id, [])) for record, user, num_all in rows]


def person_row(record: AnnotatorRecord, user: User, num_all: int, flags: Sequence[QualityFlag]) -> PersonRow:
    """A record as the list shows it, beside what all in it ranked; of flags, the open ones."""
    return PersonRow(
        id=user.id,
        name=user.name,
        is_disabled=user.disabled_at is not None,
        num_rankings=record.num_rankings,
        share=record.num_rankings / num_all if num_all else None,
        measured_at=record.measured_at,
        portrait=PORTRAIT.validate_python(record.figures),
        flags=[flag for flag in flags if flag.settled_at is None],
    )


async def flags_of_people(
    session: AsyncSession, project: Project, people: Sequence[uuid.UUID]
) -> dict[uuid.UUID, list[QualityFlag]]:
    """All flags of these people, newest first."""
    query = select(QualityFlag).where(QualityFlag.project_id == project.id, QualityFlag.annotator_id.in_(people))
    found: dict[uuid.UUID, list[QualityFlag]] = {}
    for flag in await session.scalars(query.order_by(QualityFlag.id.desc())):
        found.setdefault(flag.annotator_id, []).append(flag)
    return found


async def get_person(session: AsyncSession, project: Project, person: uuid.UUID) -> User:
    """Somebody who ranked in a project, or may.

    Raises:
        NotFound: there is nobody of this id, or they never had to do with it.
    """
    user = await session.get(User, person)
    if user is not None and await may_annotate(session, project, user):
        return user
    ranked = select(Ranking.id).where(Ranking.annotator_id == person, Ranking.project_id == project.id).limit(1)
    if user is None or await session.scalar(ranked) is None:
        raise NotFound("Nobody of this id ranked anything in this project.")
    return user


async def settle_flag(
    session: AsyncSession, project: Project, flag_id: int, *, settlement: str, note: str, actor_id: uuid.UUID
) -> QualityFlag:
    """Say of a flag that it is right (`confirmed`) or wrong (`dismissed`). It stays in the history.

    Raises:
        NotFound: the project has no such flag.
        FlagSettled: somebody was faster.
    """
    query = select(QualityFlag).where(QualityFlag.id == flag_id, QualityFlag.project_id == project.id)
    flag = await session.scalar(query.with_for_update())
    if flag is None:
        raise NotFound("There is no such flag in this project.")
    if flag.settled_at is not None:
        raise FlagSettled
    flag.settled_at = datetime.now(UTC)
    flag.settled_by, flag.settlement, flag.note = actor_id, settlement, note
    await session.flush()
    await audit(session, actor_id=actor_id, action=f"flag.{settlement}", subject=str(flag.annotator_id), flag=flag.id)
    return flag
