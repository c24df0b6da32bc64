"""What pages show of the loop: the road of a round, figures, rows of versions, the lineage drawing. Reads only."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import User
from app.datasets import service as datasets
from app.loop import forecast, sampling, service, training, watch
from app.loop.models import Round
from app.plots import Plot, line_plot, metric_plots
from app.projects import tallies
from app.projects.models import Project
from app.quality import service as quality
from app.rankings import own
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunState

Words = dict[str, Any]


async def my_progress(session: AsyncSession, *, project: Project, user: User) -> dict[str, int]:
    """What waits for this person, and what they did today."""
    found = await own.progress_of(session, project=project, annotator=user, now=datetime.now(UTC))
    return {"num_waiting": found.num_waiting, "done_today": found.num_done}


async def project_view(session: AsyncSession, *, project: Project, user: User, words: Words) -> dict[str, Any]:
    """Everything on a project's first page."""
    now = await service.current_round(session, project)
    progress = await my_progress(session, project=project, user=user)
    made = await versions_view(session, project)
    return {
        "round": now,
        "policy": await registry.get_version(session, now.policy_version_id),
        "steps": await road(session, project=project, words=words),
        "figures": await figures(session, project=project, words=words),
        "plots": [*wins_plot(made["versions"]), *await latest_plots(session, project)],
        **made,
        "num_waiting": progress["num_waiting"],
        "train": await train_button(session, project, words),
        "open_runs": [run for run in await runs.list_runs(session, project_id=project.id) if is_open(run)],
    }


def is_open(run: Run) -> bool:
    """Whether a run waits or runs."""
    return run.state in runs.OPEN_STATES


async def train_button(session: AsyncSession, project: Project, words: Words) -> dict[str, Any]:
    """Whether *Train* can be pressed, and if not, why."""
    plan = await forecast.plan_training(session, project)
    reason = ""
    if (await service.current_round(session, project)).stopped:
        reason = words["_"]("This round has stopped.")
    elif await training.training_run(session, project.id) is not None:
        reason = words["_"]("Training is under way.")
    elif plan.num_rankings == 0:
        reason = words["_"]("Rank some tasks first: there is nothing to learn from yet.")
    return {
        "can": not reason,
        "reason": reason,
        "num_rankings": plan.num_rankings,
        "num_new": plan.num_new_rankings,
        "estimate_seconds": plan.seconds,
    }


# The road of a round


async def road(session: AsyncSession, *, project: Project, words: Words) -> list[dict[str, Any]]:
    """The five steps of the current round, with the one that it stands at."""
    now = await service.current_round(session, project)
    base = f"/projects/{project.slug}"
    steps = [
        await sampled_step(session, now, base, words),
        await ranking_step(session, project, now, base, words),
        await run_step(session, now.reward_run_id, words["_"]("Reward model"), base, words),
        await run_step(session, now.policy_run_id, words["_"]("Policy"), base, words),
    ]
    steps[position(now, num_tasks=steps[1]["total"] or 0)]["is_now"] = True
    return steps


def position(now: Round, *, num_tasks: int) -> int:
    """Where a round stands: 0 sampling, 1 ranking, 2 reward model, 3 policy."""
    if now.policy_run_id is not None:
        return 3
    if now.reward_run_id is not None:
        return 2
    return 1 if num_tasks else 0


def step(
    title: str, note: str, href: str | None = None, done: int | None = None, total: int | None = None
) -> dict[str, Any]:
    """One step as `_macros/figures.html: road` draws it."""
    return {"title": title, "note": note, "href": href, "is_now": False, "done": done, "total": total}


async def sampled_step(session: AsyncSession, now: Round, base: str, words: Words) -> dict[str, Any]:
    """How many prompts have their answers."""
    title = words["_"]("Sampled")
    if now.sample_run_id is None:
        return step(title, words["_"]("not yet"), f"{base}/prompts")
    done, total = await sampling.num_sampled_prompts(session, now.sample_run_id)
    note = words["_"]("{done} of {total} prompts", done=words["number"](done), total=words["number"](total))
    return step(title, note, f"{base}/runs/{now.sample_run_id}", done, total)


async def ranking_step(session: AsyncSession, project: Project, now: Round, base: str, words: Words) -> dict[str, Any]:
    """How many places of this round's tasks are filled."""
    done, total = await num_ranked_places(session, project, now)
    note = words["_"]("{done} of {total} rankings", done=words["number"](done), total=words["number"](total))
    return step(words["_"]("Ranking"), note, f"{base}/tasks", done, total)


async def num_ranked_places(session: AsyncSession, project: Project, now: Round) -> tuple[int, int]:
    """Rankings that this round's tasks have, and those that they want."""
    held = (await tallies.read(session, project.id)).of_round(now.number)
    return held.num_ranked, held.num_places


async def run_step(
    session: AsyncSession, run_id: uuid.UUID | None, title: str, base: str, words: Words
) -> dict[str, Any]:
    """How far a training run is."""
    if run_id is None:
        return step(title, words["_"]("after the ranking"))
    run = await runs.get_run(session, run_id)
    progress = run.progress or {}
    names = {
        RunState.QUEUED: words["_"]("waits for a worker"),
        RunState.RUNNING: words["_"]("running"),
        RunState.FINISHED: words["_"]("finished"),
        RunState.FAILED: words["_"]("failed"),
        RunState.CANCELLED: words["_"]("cancelled"),
    }
    is_running = run.state == RunState.RUNNING
    done, total = (progress.get("step"), progress.get("total")) if is_running else (None, None)
    return step(title, names[RunState(run.state)], f"{base}/runs/{run.id}", done, total)


# Figures and curves


async def figures(session: AsyncSession, *, project: Project, words: Words) -> list[dict[str, str]]:
    """What was measured so far, each with its interval or with what it stands on."""
    shown = []
    held = (await tallies.read(session, project.id)).whole()
    num_new = await training.num_new_rankings(session, project.id)
    shown.append(
        figure(
            words["_"]("Rankings"),
            words["number"](held.num_rankings),
            note=words["_"]("{n} since the last training", n=words["number"](num_new)),
        )
    )
    reward = await registry.live_version(session, project_id=project.id, kind=VersionKind.REWARD)
    if reward is not None:
        shown += [accuracy_figure(reward, words), *agreement_figure(reward, words)]
    policy = await registry.live_version(session, project_id=project.id, kind=VersionKind.POLICY)
    if policy is not None and policy.reward_version_id is not None:
        shown.append(wins_figure(policy, words))
    if policy is not None and policy.metrics.get("kl") is not None:
        shown.append(
            figure(
                words["_"]("KL to the SFT model"),
                words["number"](policy.metrics["kl"], 2),
                words["ends"](policy.metrics.get("kl_interval")),
                words["_"]("nats an answer"),
            )
        )
        gain = policy.metrics.get("reward")
        if gain:
            text = words["_"]("{first} at the start of PPO", first=words["number"](gain["first"], 2))
            title, last = words["_"]("Reward of the policy"), words["number"](gain["last"], 2)
            shown.append(figure(title, last, words["ends"](gain.get("interval")), text))
    return shown


def accuracy_figure(reward: Version, words: Words) -> dict[str, str]:
    """Held-out accuracy with its interval over prompts."""
    accuracy = reward.metrics.get("accuracy")
    title = words["_"]("Reward model, held out")
    if not accuracy:
        return figure(title, "–", note=words["_"]("no validation prompt is ranked yet"))
    note = words["_"](
        "{pairs} pairs of {prompts} prompts; 50 % is a coin",
        pairs=accuracy["num_pairs"],
        prompts=accuracy["num_prompts"],
    )
    return share_figure(title, accuracy, note, words)


def agreement_figure(reward: Version, words: Words) -> list[dict[str, str]]:
    """How often people agreed in what the reward model learned from; nothing where no two ranked the same."""
    agreement = ((reward.metrics.get("report") or {}).get("people") or {}).get("agreement")
    note = words["_"](
        "in what the reward model learned; InstructGPT’s labelers: {value}",
        value=words["percent"](quality.INSTRUCTGPT["value"]),
    )
    return [share_figure(words["_"]("People agree"), agreement, note, words)] if agreement else []


def wins_figure(policy: Version, words: Words) -> dict[str, str]:
    """How often people prefer the live policy to version 1, blindly."""
    rate = registry.win_rate_of(policy)
    title = words["_"]("People prefer policy v{number} to version 1", number=policy.number)
    if not rate:
        return figure(title, "–", note=words["_"]("nobody has compared the two yet"))
    # Who delivers a version from elsewhere may leave out of how many.
    num = rate.get("num_prompts")
    return share_figure(title, rate, words["n_"]("{n} ranking", "{n} rankings", num) if num else "", words)


def share_figure(title: str, share: Mapping[str, Any], note: str, words: Words) -> dict[str, str]:
    """A share with its interval."""
    value, low, high = (words["percent"](share[name]) for name in ("value", "low", "high"))
    return figure(title, value, f"{low} – {high}", note)


def figure(title: str, value: str, after: str = "", note: str = "") -> dict[str, str]:
    """One number as `_macros/figures.html: figure` draws it."""
    return {"title": title, "value": value, "after": after, "note": note}


def wins_plot(versions: Sequence[Version]) -> list[Plot]:
    """Win rates of people over the KL, once there are two: is the reward still true? `versions` are newest first."""
    wins = watch.wins(list(reversed(versions)))
    plot = line_plot("wins", {"wins": wins}) if len(wins) > 1 else None
    return [plot] if plot else []


async def latest_plots(session: AsyncSession, project: Project) -> list[Any]:
    """Reward and KL of the newest PPO run that reported any."""
    for run in await runs.list_runs(session, project_id=project.id, kind="ppo", limit=3):
        curves = await runs.list_metrics(session, run.id)
        chosen: dict[str, list[tuple[int, float]]] = {
            name: curves[name] for name in ("objective/reward", "objective/kl") if name in curves
        }
        if chosen:
            return metric_plots(chosen)
    return []


# Versions


async def versions_view(session: AsyncSession, project: Project) -> dict[str, Any]:
    """All versions of a project, newest first, with what they came from."""
    versions = await registry.list_versions(session, project.id)
    return {
        "versions": versions,
        "by_id": {version.id: version for version in versions},
        "datasets": {dataset.id: dataset for dataset in await datasets.list_datasets(session, project.id, limit=1000)},
    }
