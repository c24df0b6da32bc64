"""Other ways to a better policy than PPO: SFT, DPO, best of n, STaR.

Each is a run that registers a policy version with its lineage. The version waits: it answers nobody before an admin has
made it live.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.corpora import service as corpora
from app.corpora.models import CorpusKind
from app.datasets import service as datasets
from app.errors import Invalid
from app.loop.training import require_pairs
from app.projects.models import Project
from app.prompts import service as prompts
from app.prompts.models import Split
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunKind
from app.runs.service import RunFinished

ALTERNATIVES = (RunKind.SFT, RunKind.DPO, RunKind.BEST_OF_N, RunKind.STAR)
# Those that learn from the policy's own answers begin where it stands; the others begin at the project's version 1.
FROM_LIVE = (RunKind.BEST_OF_N, RunKind.STAR)


async def start(
    session: AsyncSession,
    *,
    project: Project,
    kind: str,
    version: Version | None = None,
    training: Mapping[str, Any] | None = None,
    actor_id: uuid.UUID | None = None,
    max_queued: int | None = None,
) -> Run:
    """Queue a run of another way of training, with everything frozen that it learns from.

    Args:
        version: where to begin; left out: version 1 for `sft` and `dpo`, the live policy for `best_of_n` and `star`.
        training: overrides of the trainer's defaults for this run; an unknown one fails the run by name.

    Raises:
        Invalid: there is nothing to learn from, or the version is none of this project's policies.
        QueueFull: too many runs wait already.
    """
    if kind not in ALTERNATIVES:
        raise Invalid.field("kind", f"must be one of {', '.join(ALTERNATIVES)}")
    kind = RunKind(kind)
    policy = version or await default_start(session, project, kind)
    if policy.project_id != project.id or policy.kind != VersionKind.POLICY:
        raise Invalid.field("version_id", "must be a policy of this project")
    config = {
        "policy": await registry.reference(session, policy),
        **await material(session, project=project, kind=kind, actor_id=actor_id),
        "training": dict(training or {}),
    }
    run = await runs.enqueue(
        session, project_id=project.id, kind=kind, config=config, created_by=actor_id, max_queued=max_queued
    )
    if kind in FROM_LIVE:
        left_out = prompts.uncheckable(project.id) if kind == RunKind.STAR else None
        await prompts.freeze_run_prompts(
            session, run_id=run.id, project_id=project.id, splits=(Split.TRAIN,), exclude=left_out
        )
    await audit(session, actor_id=actor_id, action=f"{kind}.start", subject=str(run.id))
    return run


async def default_start(session: AsyncSession, project: Project, kind: RunKind) -> Version:
    """The version to begin with when none is named."""
    live = await registry.live_version(session, project_id=project.id, kind=VersionKind.POLICY)
    return live if live is not None and kind in FROM_LIVE else await registry.base_version(session, project.id)


async def starts(session: AsyncSession, project: Project) -> list[Version]:
    """The policies that a run may begin from, newest first."""
    versions = await registry.list_versions(session, project.id)
    return [version for version in versions if version.kind == VersionKind.POLICY]


async def find_start(session: AsyncSession, project: Project, number: str) -> Version:
    """The policy of this number, as a form sends it.

    Raises:
        Invalid: this project has no such policy.
    """
    found = next((policy for policy in await starts(session, project) if str(policy.number) == number), None)
    if found is None:
        raise Invalid.field("version", "must be the number of a policy of this project")
    return found


async def material(
    session: AsyncSession, *, project: Project, kind: RunKind, actor_id: uuid.UUID | None
) -> dict[str, Any]:
    """What a run of this kind learns from, frozen, as its config names it.

    Raises:
        Invalid: there is none yet; the message says what to bring.
    """
    if kind == RunKind.SFT:
        return {"corpora": await worked_examples(session, project=project, actor_id=actor_id)}
    if kind == RunKind.DPO:
        dataset = await datasets.freeze_to_learn(session, project=project, created_by=actor_id)
        require_pairs(dataset)
        return {**await sft_version(session, project), "dataset": datasets.reference(dataset)}
    if kind == RunKind.STAR:
        if not await prompts.count_checkable(session, project.id):
            raise Invalid(
                "No training prompt has an answer that can be checked. Import prompts with "
                '`"meta": {"check": {"kind": "exact" | "numeric" | "regex", "value": …}}`.'
            )
        return {**await sft_version(session, project), "sampling": project.sampling}
    reward = await registry.live_version(session, project_id=project.id, kind=VersionKind.REWARD)
    if reward is None:
        raise Invalid("Best of n needs a reward model to choose by. Rank some tasks and press Train first.")
    return {"reward": await registry.reference(session, reward), "sampling": project.sampling}


async def sft_version(session: AsyncSession, project: Project) -> dict[str, Any]:
    """The project's version 1: DPO's reference, and where STaR's training begins each time (2203.14465)."""
    return {"sft": await registry.reference(session, await registry.base_version(session, project.id))}


async def worked_examples(
    session: AsyncSession, *, project: Project, actor_id: uuid.UUID | None
) -> list[dict[str, Any]]:
    """Every imported corpus of conversations, and the demonstrations as they stand now.

    Raises:
        Invalid: there is neither.
    """
    written = await corpora.freeze_demonstrations(session, project=project, created_by=actor_id)
    imported = await corpora.list_corpora(session, project.id, kind=CorpusKind.CONVERSATIONS)
    chosen = [corpus for corpus in imported if corpus.name != corpora.DEMONSTRATIONS or corpus is written]
    if not chosen:
        raise Invalid("There is nothing to imitate yet. Import a corpus of conversations, or demonstrations, first.")
    return [corpora.reference(corpus) for corpus in chosen]


async def run_finished(session: AsyncSession, event: RunFinished) -> None:
    """A run of another way -> its policy version, which waits to be promoted."""
    run = event.run
    if run.kind not in ALTERNATIVES:
        return
    config = run.config
    reward = (
        await registry.get_version(session, uuid.UUID(config["reward"]["version_id"])) if "reward" in config else None
    )
    dataset_id = uuid.UUID(config["dataset"]["id"]) if "dataset" in config else None
    version = await registry.register(
        session,
        project_id=run.project_id,
        kind=VersionKind.POLICY,
        parent=await registry.get_version(session, uuid.UUID(config["policy"]["version_id"])),
        run_id=run.id,
        # What a reward model was trained on made every policy that follows it.
        dataset_id=reward.dataset_id if reward else dataset_id,
        reward_version_id=reward.id if reward else None,
        metrics=run.result or {},
    )
    run.result = {**(run.result or {}), "version": {"number": version.number, "kind": version.kind}}
    await session.flush()
