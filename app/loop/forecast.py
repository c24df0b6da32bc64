"""What Train would do now, and for how long: for people to read before they press it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from app.loop import training
from app.projects import tallies
from app.projects.models import Project
from app.runs import service as runs
from app.runs.models import RunKind

# What one token costs in training, in units of drawing one in a `sample` run: measured with SmolLM2-135M on two quiet
# cores, 48 rankings of four and 64 episodes, 96 tokens each: 63 s and 452 s at 58 tokens a second.
REWARD_COST = 0.2
PPO_COST = 4.3
DEFAULT_EPISODES = 64


@dataclass(frozen=True)
class TrainingPlan:
    """What *Train* would do now, for people to read before they press it. Where the project caps how much one person
    may be, some of the rankings are left out: the plan is for all of them.
    """

    num_rankings: int
    num_new_rankings: int
    num_episodes: int | None
    seconds: float | None


async def plan_training(session: AsyncSession, project: Project) -> TrainingPlan:
    """What *Train* would do now, and for how long: measured on this project's earlier runs, else on its sampling."""
    num_rankings = (await tallies.read(session, project.id)).whole().num_learnable
    num_new = await training.num_new_rankings(session, project.id)
    reward = await runs.last_finished(session, project_id=project.id, kind=RunKind.REWARD)
    ppo = await runs.last_finished(session, project_id=project.id, kind=RunKind.PPO)
    if reward is not None and ppo is not None and reward.result and ppo.result:
        per_ranking = reward.result["seconds"] / max(1, reward.result["num_rankings"])
        return TrainingPlan(
            num_rankings, num_new, ppo.result["num_episodes"], per_ranking * num_rankings + ppo.result["seconds"]
        )
    sample = await runs.last_finished(session, project_id=project.id, kind=RunKind.SAMPLE)
    speed = (sample.result or {}).get("tokens_per_second") if sample else None
    return TrainingPlan(num_rankings, num_new, None, forecast_seconds(project, num_rankings, speed) if speed else None)


def forecast_seconds(project: Project, num_rankings: int, tokens_per_second: float) -> float:
    """A first guess from the sampling speed: tokens that must be drawn or scored, in units of drawing one token."""
    num_tokens = int(project.sampling["max_new_tokens"])
    reward = REWARD_COST * num_rankings * project.k * num_tokens
    ppo = PPO_COST * int(project.training.get("ppo", {}).get("num_episodes", DEFAULT_EPISODES)) * num_tokens
    return (reward + ppo) / tokens_per_second
