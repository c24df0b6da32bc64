"""Lineage as a drawing that is followed both ways: from a version to the rankings that made it, and from a ranking to
every version that learned from it. Reads only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets.models import Dataset, DatasetRow
from app.loop import service
from app.loop.models import Round
from app.plots import Lineage, Node, lineage_layout
from app.projects.models import Project
from app.rankings.models import Ranking
from app.rankings.service import RankingView, views_of
from app.registry import service as registry
from app.registry.models import Version, VersionKind

Words = dict[str, Any]
Edge = tuple[str, str]
POLICIES, REWARDS, RANKINGS = range(3)


@dataclass(frozen=True)
class Page:
    """Where a drawing's boxes lead to, in whose words."""

    project: Project
    words: Words

    def address(self, place: str) -> str:
        """A page of the project."""
        return f"/projects/{self.project.slug}/{place}"


async def of_project(
    session: AsyncSession, *, project: Project, versions: Sequence[Version], words: Words, here: int | None = None
) -> Lineage:
    """All versions, and the rankings that they learned from: policies above, reward models below, rankings last."""
    page = Page(project, words)
    learned = {version.dataset_id for version in versions if version.dataset_id is not None}
    datasets = (await session.scalars(select(Dataset).where(Dataset.id.in_(learned)).order_by(Dataset.number))).all()
    rounds = await service.list_rounds(session, project.id)
    nodes = [version_node(version, page, here=here) for version in by_number(versions)]
    nodes += [dataset_node(dataset, page, versions) for dataset in datasets]
    return lineage_layout(nodes, [*version_edges(versions), *answered_edges(rounds, datasets)])


async def of_ranking(session: AsyncSession, *, project: Project, ranking: Ranking, words: Words) -> Lineage | None:
    """What learned from a ranking; None where nothing has."""
    page = Page(project, words)
    datasets = (
        await session.scalars(
            select(Dataset)
            .join(DatasetRow, DatasetRow.dataset_id == Dataset.id)
            .where(DatasetRow.ranking_id == ranking.id)
            .order_by(Dataset.number)
        )
    ).all()
    versions = await service.versions_of_ranking(session, ranking.id)
    if not versions:
        return None
    used = {version.dataset_id for version in versions}
    shown = [dataset for dataset in datasets if dataset.id in used]
    title = words["_"]("Ranking {number}", number=ranking.number)
    address = page.address(f"rankings/{ranking.id}")
    mine = Node(key=str(ranking.id), title=title, href=address, lane=RANKINGS, is_here=True)
    nodes = [version_node(version, page) for version in by_number(versions)]
    nodes += [mine, *(dataset_node(dataset, page, versions) for dataset in shown)]
    edges = [(str(ranking.id), str(dataset.id)) for dataset in shown]
    return lineage_layout(nodes, [*version_edges(versions), *edges])


def by_number(versions: Iterable[Version]) -> list[Version]:
    """Versions, oldest first."""
    return sorted(versions, key=lambda version: version.number)


def version_node(version: Version, page: Page, *, here: int | None = None) -> Node:
    """A version's box."""
    return Node(
        key=str(version.id),
        title=version_title(version, page.words),
        note=version_note(version),
        href=page.address(f"versions/{version.number}"),
        lane=POLICIES if version.kind == VersionKind.POLICY else REWARDS,
        is_live=version.is_live,
        is_here=version.number == here,
    )


def dataset_node(dataset: Dataset, page: Page, versions: Sequence[Version]) -> Node:
    """The box of the rankings that versions learned from; it leads to the list of them."""
    learner = next(version for version in by_number(versions) if version.dataset_id == dataset.id)
    return Node(
        key=str(dataset.id),
        title=page.words["n_"]("{n} ranking", "{n} rankings", dataset.num_rows),
        note=page.words["_"]("dataset {n}", n=dataset.number),
        href=page.address(f"versions/{learner.number}/rankings"),
        lane=RANKINGS,
    )


def version_edges(versions: Sequence[Version]) -> list[Edge]:
    """From parents, reward models and rankings to what came of them. A policy's rankings are its reward model's."""
    known = {version.id for version in versions}
    edges: list[Edge] = []
    for version in versions:
        edges += [(str(key), str(version.id)) for key in (version.parent_id, version.reward_version_id) if key]
        if version.dataset_id is not None and version.reward_version_id not in known:
            edges.append((str(version.dataset_id), str(version.id)))
    return edges


def answered_edges(rounds: Sequence[Round], datasets: Sequence[Dataset]) -> list[Edge]:
    """From the policy that answered in a round to the rankings at its end."""
    known = {dataset.id for dataset in datasets}
    return [(str(item.policy_version_id), str(item.dataset_id)) for item in rounds if item.dataset_id in known]


def version_title(version: Version, words: Words) -> str:
    """What people call a version."""
    if version.kind == VersionKind.REWARD:
        return str(words["_"]("reward model v{number}", number=version.number))
    return str(words["_"]("policy v{number}", number=version.number))


def version_note(version: Version) -> str:
    """The one figure that says most about a version."""
    accuracy = version.metrics.get("accuracy")
    if accuracy:
        return f"{accuracy['value']:.0%}"
    if version.metrics.get("kl") is not None:
        return f"KL {version.metrics['kl']:.2f}"
    return version.alias if version.parent_id is None else ""


# A board of rounds, and the rankings behind a version


@dataclass(frozen=True)
class RoundRow:
    """One round: who answered, what was ranked, what was trained and what came out."""

    round: Round
    policy: Version
    num_ranked: int
    num_wanted: int
    dataset: Dataset | None
    reward: Version | None
    outcome: Version | None


async def rounds_of(session: AsyncSession, project: Project, counts: Any) -> list[RoundRow]:
    """All rounds, newest first; `counts` tells (rankings made, rankings wanted) of one."""
    versions = {version.run_id: version for version in await registry.list_versions(session, project.id)}
    by_id = {version.id: version for version in versions.values()}
    datasets = {row.id: row for row in await session.scalars(select(Dataset).where(Dataset.project_id == project.id))}
    rows = []
    for item in await service.list_rounds(session, project.id):
        done, wanted = await counts(session, project, item)
        rows.append(
            RoundRow(
                round=item,
                policy=by_id[item.policy_version_id],
                num_ranked=done,
                num_wanted=wanted,
                dataset=datasets.get(item.dataset_id) if item.dataset_id else None,
                reward=versions.get(item.reward_run_id) if item.reward_run_id else None,
                outcome=versions.get(item.policy_run_id) if item.policy_run_id else None,
            )
        )
    return rows


async def rankings_behind(
    session: AsyncSession, version: Version, *, after: int = -1, limit: int = 50
) -> list[tuple[int, RankingView]]:
    """(position in the dataset, ranking) of what a version learned from, those after a position."""
    if version.dataset_id is None:
        return []
    query = select(DatasetRow.position, Ranking).join(Ranking, Ranking.id == DatasetRow.ranking_id)
    query = query.where(DatasetRow.dataset_id == version.dataset_id, DatasetRow.position > after)
    rows = (await session.execute(query.order_by(DatasetRow.position).limit(limit))).all()
    views = await views_of(session, [ranking for _, ranking in rows])
    return [(row.position, view) for row, view in zip(rows, views, strict=True)]
