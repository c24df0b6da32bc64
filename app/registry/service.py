"""Versions: register, find, promote, and the references by which workers fetch them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Text, cast, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.accounts.models import AuditEntry
from app.errors import existing
from app.events import events
from app.registry.models import Version, VersionKind
from app.runs.models import Artifact


@dataclass(frozen=True)
class VersionPromoted:
    """A version is the live one of its kind from now on."""

    version: Version
    reason: str


async def register_base(session: AsyncSession, *, project_id: uuid.UUID, alias: str) -> Version:
    """Version 1 of a project: the SFT policy, a base model that the worker knows by its alias."""
    version = Version(project_id=project_id, number=1, kind=VersionKind.POLICY, alias=alias, is_live=True)
    session.add(version)
    await session.flush()
    return version


async def register(
    session: AsyncSession,
    *,
    project_id: uuid.UUID,
    kind: VersionKind,
    parent: Version,
    run_id: uuid.UUID,
    dataset_id: uuid.UUID | None,
    metrics: Mapping[str, Any],
    reward_version_id: uuid.UUID | None = None,
) -> Version:
    """A version that a run made. The same run again: the same version."""
    known = await session.scalar(select(Version).where(Version.run_id == run_id))
    if known is not None:
        return known
    version = Version(
        project_id=project_id,
        number=await next_number(session, project_id),
        kind=kind,
        alias=parent.alias,
        parent_id=parent.id,
        reward_version_id=reward_version_id,
        dataset_id=dataset_id,
        run_id=run_id,
        metrics=dict(metrics),
        sha256=files_sha256(await artifacts_of(session, run_id)),
    )
    session.add(version)
    await session.flush()
    return version


async def next_number(session: AsyncSession, project_id: uuid.UUID) -> int:
    """The next version number of a project; who asks at the same time waits."""
    await session.execute(text("select pg_advisory_xact_lock(hashtext(:key))"), {"key": f"versions {project_id}"})
    highest = await session.scalar(select(func.max(Version.number)).where(Version.project_id == project_id))
    return (highest or 0) + 1


def files_sha256(artifacts: Sequence[Artifact]) -> str:
    """One hash over the names and hashes of a version's files."""
    lines = "".join(f"{item.sha256}  {item.name}\n" for item in sorted(artifacts, key=lambda item: item.name))
    return hashlib.sha256(lines.encode()).hexdigest()


async def artifacts_of(session: AsyncSession, run_id: uuid.UUID | None) -> Sequence[Artifact]:
    """The files of the version that a run made; a base version has none."""
    if run_id is None:
        return []
    return (await session.scalars(select(Artifact).where(Artifact.run_id == run_id).order_by(Artifact.name))).all()


async def reference(session: AsyncSession, version: Version) -> dict[str, Any]:
    """The model reference of docs/protocol.md: enough for a worker to fetch the weights and check them."""
    files = await artifacts_of(session, version.run_id)
    return {
        "version_id": str(version.id),
        "number": version.number,
        "kind": version.kind,
        "alias": version.alias,
        "files": [{"name": item.name, "size": item.size, "sha256": item.sha256} for item in files],
    }


def win_rate_of(version: Version) -> dict[str, float] | None:
    """How often people prefer a policy to version 1: value, low, high; None where nobody was asked. Who delivers a
    version from elsewhere may call anything by this name.
    """
    rate = version.metrics.get("win_rate")
    bounds = ("value", "low", "high")
    if not isinstance(rate, dict) or not all(isinstance(rate.get(name), int | float) for name in bounds):
        return None
    return rate


async def promote(
    session: AsyncSession, *, version: Version, actor_id: uuid.UUID | None = None, reason: str = ""
) -> None:
    """Make a version the live one of its kind; the one before stays and can be promoted again."""
    await session.execute(
        update(Version)
        .where(Version.project_id == version.project_id, Version.kind == version.kind, Version.is_live)
        .values(is_live=False)
    )
    version.is_live = True
    await session.flush()
    await audit(session, actor_id=actor_id, action="version.promote", subject=str(version.id), reason=reason)
    await events.publish(session, VersionPromoted(version, reason))


async def live_before(session: AsyncSession, version: Version) -> Version | None:
    """The version of this kind that was promoted last before a live one, as the audit log has it; else version 1, of a
    policy.
    """
    promoted = await session.scalars(
        select(AuditEntry.subject)
        .join(Version, cast(Version.id, Text) == AuditEntry.subject)
        .where(AuditEntry.action == "version.promote")
        .where(Version.project_id == version.project_id, Version.kind == version.kind, Version.id != version.id)
        .order_by(AuditEntry.id.desc())
        .limit(1)
    )
    before = promoted.first()
    if before is not None:
        return await session.get(Version, uuid.UUID(before))
    base = await base_version(session, version.project_id)
    return base if version.kind == base.kind and base.id != version.id else None


async def get_version(session: AsyncSession, version_id: uuid.UUID) -> Version:
    """A version by id.

    Raises:
        NotFound: there is none.
    """
    return existing(await session.get(Version, version_id), "There is no such version.")


async def get_version_by_number(session: AsyncSession, *, project_id: uuid.UUID, number: int) -> Version:
    """A project's version by its number.

    Raises:
        NotFound: there is none.
    """
    version = await session.scalar(select(Version).where(Version.project_id == project_id, Version.number == number))
    return existing(version, f"This project has no version {number}.")


async def live_version(session: AsyncSession, *, project_id: uuid.UUID, kind: VersionKind) -> Version | None:
    """The live policy or reward model of a project."""
    return await session.scalar(
        select(Version).where(Version.project_id == project_id, Version.kind == kind, Version.is_live)
    )


async def base_version(session: AsyncSession, project_id: uuid.UUID) -> Version:
    """The SFT policy of a project: the reward model's start in every round, and the KL reference always."""
    return await get_version_by_number(session, project_id=project_id, number=1)


async def list_versions(session: AsyncSession, project_id: uuid.UUID) -> Sequence[Version]:
    """A project's versions, newest first."""
    return (
        await session.scalars(select(Version).where(Version.project_id == project_id).order_by(Version.number.desc()))
    ).all()
