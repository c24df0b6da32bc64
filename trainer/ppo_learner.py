"""What PPO changes, and so what a checkpoint keeps: two models, their optimizers, averages, where the run stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module, ParameterList

from trainer.config import PPOConfig
from trainer.distributed import in_groups
from trainer.fitting import Keeper, assign, copies_of, learning_parameters
from trainer.models import Policy
from trainer.ppo_guard import Judgement
from trainer.reporting import RunResult
from trainer.reward_model import ValueModel


@dataclass(frozen=True)
class Interval:
    """In which a mean lies with 95 % certainty."""

    low: float
    high: float

    @classmethod
    def of(cls, value_N: Tensor) -> Interval | None:
        """The normal interval of the mean of independent values; of one value there is none."""
        if len(value_N) < 2:
            return None
        mean, half = value_N.mean().item(), 1.96 * value_N.std().item() / math.sqrt(len(value_N))
        return cls(mean - half, mean + half)


@dataclass
class Progress:
    """Where a run stands; plain numbers, so that a checkpoint keeps it as JSON."""

    beta: float
    num_iterations: int = 0
    num_episodes: int = 0
    first_reward: float | None = None
    last_reward: float | None = None
    last_kl: float | None = None
    """Nats an answer in the last rollout."""
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    """Of the last rollout's `reward` and `kl`."""
    guard: Judgement | None = None
    """What the guard remembers; None where there is no guard, or before its first word."""
    stopped_by: Literal["kl", "guard"] | None = None
    is_sampler_exact: bool | None = None
    """Whether the sampler's log-probabilities were those of training in the first rollout; None before it."""

    seconds: float = 0.0

    def observe(self, metrics: Mapping[str, float], intervals: dict[str, Interval | None]) -> None:
        """What a rollout showed."""
        self.intervals = intervals
        self.last_reward, self.last_kl = metrics["objective/reward"], metrics["objective/kl"]
        self.first_reward = self.last_reward if self.first_reward is None else self.first_reward

    def advance(self, num_episodes: int, seconds: float) -> None:
        """A rollout was learned from."""
        self.num_iterations += 1
        self.num_episodes += num_episodes
        self.seconds += seconds

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Progress:
        """What `asdict` wrote."""
        guard = fields.get("guard")
        intervals = {name: Interval(**ends) if ends else None for name, ends in fields.get("intervals", {}).items()}
        judgement = Judgement.from_json(guard) if guard else None
        return cls(**{**fields, "guard": judgement, "intervals": intervals})

    def result(self, refused: list[dict[str, str]], *, is_average: bool) -> PPOResult:
        """What the run reports at its end, after at least one rollout."""
        assert self.first_reward is not None
        assert self.last_reward is not None
        assert self.last_kl is not None
        return PPOResult(
            self.num_episodes,
            self.first_reward,
            self.last_reward,
            self.last_kl,
            self.seconds,
            refused,
            is_average=is_average,
            guard=self.guard,
            stopped_by=self.stopped_by,
            intervals=self.intervals,
        )


@dataclass
class Learner:
    """All that an update changes, and so all that a checkpoint keeps."""

    policy: Policy
    value_model: ValueModel
    policy_optimizer: torch.optim.Adam
    value_optimizer: torch.optim.Adam
    progress: Progress
    average: ParameterList | None = None
    """The policy's learning weights, averaged over the steps; None where the config does not ask for it."""
    best: ParameterList | None = None
    """What the version would be if the guard's best look that stands fast were the last; None without a guard."""
    newest: ParameterList | None = None
    """The same of its newest look, of which the next one tells how good it was."""

    @classmethod
    def create(cls, policy: Policy, value_model: ValueModel, config: PPOConfig, *, is_guarded: bool = False) -> Learner:
        """Fresh optimizers and beta; `config` has been through `for_model`."""
        policy_rate, value_rate = config.learning_rate, config.value_learning_rate
        assert policy_rate is not None
        assert value_rate is not None
        return cls(
            policy,
            value_model,
            _make_optimizer(policy, policy_rate, config),
            _make_optimizer(value_model, value_rate, config),
            Progress(beta=config.beta),
            average=copies_of(learning_parameters(policy)) if config.ema_decay is not None else None,
            best=copies_of(learning_parameters(policy)) if is_guarded else None,
            newest=copies_of(learning_parameters(policy)) if is_guarded else None,
        )

    @property
    def models(self) -> dict[str, Module]:
        """All whose weights a checkpoint keeps."""
        models = {"policy": self.policy, "value": self.value_model, "average": self.average}
        models |= {"best": self.best, "newest": self.newest}
        return {name: model for name, model in models.items() if model is not None}

    def follow(self, decay: float) -> None:
        """Move the average towards the policy, after a step."""
        assert self.average is not None
        with torch.no_grad():
            for averaged, parameter in zip(self.average, learning_parameters(self.policy), strict=True):
                averaged.lerp_(parameter, 1.0 - decay)

    def remember(self, *, is_best: bool) -> None:
        """The guard has looked; whether its look before was the best."""
        assert self.best is not None
        assert self.newest is not None
        if is_best:
            assign(self.best, self.newest)
        assign(self.newest, self.average or learning_parameters(self.policy))

    def settle(self) -> None:
        """The run is over: the policy takes the weights that are kept."""
        guard = self.progress.guard
        guarded = self.newest if guard is not None and guard.is_newest_best else self.best
        kept = guarded or self.average
        if kept is not None:
            assign(learning_parameters(self.policy), kept)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Both, whose state a checkpoint keeps."""
        return {"policy": self.policy_optimizer, "value": self.value_optimizer}

    def save(self, keep: Keeper) -> None:
        """A checkpoint of now. Learning rates follow from the iteration: no schedule is kept."""
        keep.save(self.models, self.optimizers, asdict(self.progress))

    def resume(self, keep: Keeper) -> None:
        """Go back to the checkpoint, if there is one. CheckpointError when it is damaged or another run's."""
        progress = keep.resume(self.models, self.optimizers)
        if progress is not None:
            self.progress = Progress.from_json(progress)


def _make_optimizer(model: Module, rate: float, config: PPOConfig) -> torch.optim.Adam:
    groups = [{"params": group} for group in in_groups(learning_parameters(model))]
    return torch.optim.Adam(groups, lr=rate, eps=config.adam_eps, fused=True)


@dataclass(frozen=True)
class PPOResult(RunResult):
    """What a `ppo` run reports (docs/protocol.md). Rewards are the first and the last rollout's means."""

    num_episodes: int
    first_reward: float
    last_reward: float
    kl: float
    """To the SFT model, in nats an answer, in the last rollout."""
    seconds: float
    refused: list[dict[str, str]]
    is_average: bool = False
    """Whether the version holds averaged weights."""
    guard: Judgement | None = None
    stopped_by: Literal["kl", "guard"] | None = None
    intervals: Mapping[str, Interval | None] = field(default_factory=dict)
    """Of the last rollout's `reward` and `kl`."""

    def as_json(self) -> dict[str, Any]:
        """The result of docs/protocol.md."""
        return {
            "num_episodes": self.num_episodes,
            "reward": {"first": self.first_reward, "last": self.last_reward, "interval": self._interval("reward")},
            "kl": self.kl,
            "kl_interval": self._interval("kl"),
            "seconds": self.seconds,
            "refused": self.refused,
            "is_average": self.is_average,
            "guard": self.guard.figures if self.guard else None,
            "stopped_by": self.stopped_by,
        }

    def _interval(self, name: str) -> dict[str, float] | None:
        found = self.intervals.get(name)
        return asdict(found) if found else None
