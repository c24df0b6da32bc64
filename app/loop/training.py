"""Training: from rankings to a reward model, from that to a policy, and what starts it."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.corpora import service as corpora
from app.datasets import service as datasets
from app.datasets.models import Dataset
from app.errors import Conflict, Invalid
from app.loop import service
from app.loop.choosing import BY_HEADS
from app.loop.models import Round
from app.projects import tallies
from app.projects.models import PolicyStart, Project, RewardStart
from app.projects.service import NO_REWARD_VERSION, get_project
from app.prompts import service as prompts
from app.prompts.models import Split
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunKind

# In the settings of PPO: the number of a reward version that watches it. The trainer's own settings have no such key.
GUARD = "guard"
# In the config of a reward run: where the PPO run that follows it begins.
POLICY_START = "policy_start"
# How many heads a reward model gets where it has to differ with itself.
HEADS = 5


class TrainingUnderWay(Conflict):
    """A reward or PPO run of this project is open. Wait for it, or cancel it first."""


async def start_training(
    session: AsyncSession,
    *,
    project: Project,
    reward_start: RewardStart | None = None,
    policy_start: PolicyStart | None = None,
    is_triggered: bool = False,
    actor_id: uuid.UUID | None = None,
    max_queued: int | None = None,
) -> Run:
    """Freeze the current rankings of all rounds, and queue a reward run.

    Args:
        reward_start, policy_start: where its reward model and then PPO begin; left out: as the project says.

    Raises:
        TrainingUnderWay: a reward or PPO run is open, or begins at this moment.
        RoundStopped: people like an earlier policy better.
        RoundChanging: the round ends at this moment.
        Invalid: no ranking can be learned from yet.
        QueueFull: too many runs wait already.
    """
    await begin_alone(session, project)
    await require_text(session, project)
    await guard_version(session, project)
    service.require_going(await service.current_round(session, project))
    dataset = await datasets.freeze_to_learn(session, project=project, created_by=actor_id)
    require_pairs(dataset)
    # Not locked before: freezing a million rankings takes minutes, and going back to an earlier policy waits for
    # nobody. What was decided meanwhile holds.
    now = await service.lock_round(session, project, waits=False)
    service.require_going(now)
    base = await registry.base_version(session, project.id)
    config = {
        "sft": await registry.reference(session, base),
        "start": await warm_start(session, project, reward_start),
        POLICY_START: policy_start or project.policy_start,
        "dataset": datasets.reference(dataset),
        "training": reward_training(project),
    }
    run = await runs.enqueue(
        session,
        project_id=project.id,
        kind=RunKind.REWARD,
        config=config,
        is_triggered=is_triggered,
        created_by=actor_id,
        max_queued=max_queued,
    )
    now.dataset_id, now.reward_run_id, now.policy_run_id = dataset.id, run.id, None
    await audit(session, actor_id=actor_id, action="training.start", subject=str(run.id), dataset=str(dataset.id))
    await session.flush()
    return run


async def begin_alone(session: AsyncSession, project: Project) -> None:
    """Nobody else begins a training of this project until the caller's transaction ends.

    Raises:
        TrainingUnderWay: somebody begins one at this moment, or one is open.
    """
    key = func.hashtextextended(f"training {project.id}", 0)
    is_alone = await session.scalar(select(func.pg_try_advisory_xact_lock(key)))
    if not is_alone or await training_run(session, project.id) is not None:
        raise TrainingUnderWay


async def warm_start(session: AsyncSession, project: Project, wish: RewardStart | None) -> dict[str, Any] | None:
    """The live reward model, where the next one goes on from it and there is one; null: a fresh one learns."""
    if (wish or project.reward_start) == RewardStart.SFT:
        return None
    live = await registry.live_version(session, project_id=project.id, kind=VersionKind.REWARD)
    return await registry.reference(session, live) if live else None


def reward_training(project: Project) -> dict[str, Any]:
    """The overrides of a reward run; it has an ensemble of heads where the next rankings are chosen by their doubt."""
    heads = {"num_heads": HEADS} if project.rank_next in BY_HEADS else {}
    return {**heads, **project.training.get("reward", {})}


def require_pairs(dataset: Dataset) -> None:
    """Something can be learned from a dataset.

    Raises:
        Invalid: no answer of a training prompt stands above another.
    """
    if not dataset.counts.get("num_pairs") or not dataset.counts.get("train"):
        raise Invalid(
            "Rank some tasks first: there must be at least one answer that was placed above another, "
            "on a training prompt."
        )


async def training_run(session: AsyncSession, project_id: uuid.UUID) -> Run | None:
    """The run that waits or runs of those that a training consists of: reward, score, PPO."""
    return await service.open_run(session, project_id, kinds=(RunKind.REWARD, RunKind.SCORE, RunKind.PPO))


async def num_new_rankings(session: AsyncSession, project_id: uuid.UUID) -> int:
    """How many rankings more there are to learn from than the newest reward run was given, or that were too many of one
    person for its dataset.
    """
    num_left_out = func.coalesce(Dataset.counts["left_out"]["num_rankings"].as_integer(), 0)
    num_seen = await session.scalar(
        select(Dataset.num_rows + num_left_out)
        .join(Round, Round.dataset_id == Dataset.id)
        .where(Round.project_id == project_id)
        .order_by(Round.number.desc())
        .limit(1)
    )
    held = (await tallies.read(session, project_id)).whole()
    return max(0, held.num_learnable - (num_seen or 0))


async def enqueue_ppo(session: AsyncSession, *, now: Round, reward: Version, reward_run: Run) -> Run:
    """The PPO run of a round. It follows from a run that ended, so the queue's limit does not hold it up."""
    project = await get_project(session, now.project_id)
    base = await registry.base_version(session, project.id)
    is_from_sft = reward_run.config.get(POLICY_START) == PolicyStart.SFT
    policy = base if is_from_sft else await registry.get_version(session, now.policy_version_id)
    guard, complaint = None, ""
    try:
        guard = await guard_version(session, project)
    except Invalid as refusal:
        # The settings changed meanwhile. What the worker delivered is no less good for it.
        complaint = f"No guard watches this run: {refusal}"
    config = {
        "sft": await registry.reference(session, base),
        "policy": await registry.reference(session, policy),
        "reward": await registry.reference(session, reward),
        "sampling": project.sampling,
        "guard": await registry.reference(session, guard) if guard else None,
        "training": {name: value for name, value in project.training.get("ppo", {}).items() if name != GUARD},
        "corpora": await pretraining_text(session, project),
        # What people liked best of what the reward model learned from, where PPO begins with that.
        "liked": reward_run.config["dataset"] if project.training.get("ppo", {}).get("liked") is not None else None,
    }
    run = await runs.enqueue(
        session,
        project_id=project.id,
        kind=RunKind.PPO,
        config=config,
        is_triggered=reward_run.is_triggered,
        created_by=reward_run.created_by,
        max_queued=None,
    )
    await prompts.freeze_run_prompts(session, run_id=run.id, project_id=project.id, splits=(Split.TRAIN,))
    if complaint:
        await runs.add_log(session, run_id=run.id, lines=[("warning", complaint)])
    return run


async def guard_version(session: AsyncSession, project: Project) -> Version | None:
    """The reward version that watches PPO, where the project names one by its number; it trains nothing.

    Raises:
        Invalid: the project has no reward version of this number.
    """
    number = project.training.get("ppo", {}).get(GUARD)
    if number is None:
        return None
    versions = await registry.list_versions(session, project.id)
    found = [item for item in versions if item.kind == VersionKind.REWARD and item.number == number]
    if not found:
        raise Invalid.field(f"training.ppo.{GUARD}", NO_REWARD_VERSION)
    return found[0]


async def require_text(session: AsyncSession, project: Project) -> None:
    """Refuse PPO-ptx where there is nothing to write, which is no corpus and no answers that people liked; and an
    alignment tax where there is nothing to measure it by.

    Raises:
        Invalid: so it is.
    """
    wishes = project.training.get("ppo", {})
    if await pretraining_text(session, project):
        return
    if wishes.get("tax_texts"):
        raise Invalid.field("training.ppo.tax_texts", "is above 0 and needs text to measure by: import a corpus")
    if wishes.get("ptx_coefficient") and wishes.get("liked") is None:
        raise Invalid.field(
            "training.ppo.ptx_coefficient",
            "is above 0 and needs text to learn: import a corpus, or set liked (to {})",
        )


async def pretraining_text(session: AsyncSession, project: Project) -> list[dict[str, Any]]:
    """What PPO goes on learning to write (PPO-ptx), or measures its tax by: every corpus of the project, where one of
    the two is switched on."""
    wishes = project.training.get("ppo", {})
    if not (wishes.get("ptx_coefficient") or wishes.get("tax_texts")):
        return []
    return [corpora.reference(corpus) for corpus in await corpora.list_corpora(session, project.id)]
