"""What the trainers share. The loops of SFT, DPO and the reward model: batches, optimizer, learning rate, precision,
finite steps. PPO too: where models are loaded, what names a run, checkpoints, the version's folder.

Knows no loss and no data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.checkpoints import code_version, load_checkpoint, save_checkpoint
from trainer.config import BestOfNConfig, FitConfig, LoraConfig, PPOConfig, StarConfig
from trainer.distributed import (
    add_up_gradients,
    clip_gradients,
    in_groups,
    put_weights_together,
    shard,
    world,
    write_once,
)
from trainer.folders import new_folder, sha256_file, write_manifest
from trainer.models import Policy, load_policy
from trainer.reporting import Reporter
from trainer.reward_model import RewardModel
from trainer.weights import ModelSource, context_length

CARRIED = "carried"
DEFAULT_MAX_LENGTH = 2048
"""InstructGPT's: tokens of a prompt and its answer."""


def make_policy(source: ModelSource, config: FitConfig, device: str) -> Policy:
    """The model to train, without a reference beside it; `config` has been through `for_model`."""
    assert config.lora is None or isinstance(config.lora, LoraConfig)
    spread = as_spread(source, config)
    place = loading_place(spread, config, device)
    policy = load_policy(spread, lora=config.lora, seed=config.seed, device=place, has_reference=False)
    if config.gradient_checkpointing:
        compute_again(policy.model)
    if is_spread(config):
        require_plain_saving(source, has_adapter=policy.has_adapter)
        shard(policy.model, device)
    return policy.to(device)


def is_spread(config: FitConfig | PPOConfig) -> bool:
    """Whether the weights are spread over several processes."""
    return config.sharding == "full" and world().size > 1


def as_spread(source: ModelSource, config: FitConfig) -> ModelSource:
    """The source, whose weights each process reads its part of, where they are spread and all of them learn."""
    return replace(source, in_parts=is_spread(config) and config.lora is None)


def loading_place(source: ModelSource, config: FitConfig | PPOConfig, device: str) -> str:
    """Where weights are loaded to. What is read whole and spread then goes to the GPUs block by block: the whole may be
    too large for one. So is what has an adapter, which is merged into whole weights.
    """
    is_in_parts = source.in_parts and not source.adapter
    return "cpu" if is_spread(config) and not is_in_parts else device


def compute_again(model: Any) -> None:
    """Let a transformer keep only what goes into each block, and compute the block again in the backward pass."""
    # The same under its newer and its older name.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    # Blocks are only computed again in training mode; dropout is 0 in either.
    model.train()


def require_plain_saving(source: ModelSource, *, has_adapter: bool) -> None:
    """ValueError where saving would merge an adapter into weights that are spread over processes."""
    if has_adapter and source.weights != source.base:
        raise ValueError(
            'sharding: "full" can\'t train an adapter on a version that has weights of its own: train full weights '
            "(lora: null), or start from the base model."
        )


def learning_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn, in their order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def length_limit(transformers_config: Any, config: FitConfig) -> int:
    """How many tokens a prompt and its answer may have together: as many as set, and at most the model's context."""
    return min(context_length(transformers_config), config.max_length or DEFAULT_MAX_LENGTH)


def make_optimizer(
    model: nn.Module, config: FitConfig, *, fast: Sequence[nn.Parameter] = (), speed: float = 1.0
) -> torch.optim.Adam:
    """Adam, whose rate each step sets; the parameters that are `fast` learn at a multiple of it."""
    others = {id(parameter) for parameter in fast}
    groups: list[dict[str, Any]] = [
        {"params": group, "speed": 1.0}
        for group in in_groups(p for p in learning_parameters(model) if id(p) not in others)
    ]
    groups += [{"params": [parameter], "speed": speed} for parameter in fast]
    return torch.optim.Adam(groups, lr=0.0, betas=(0.9, config.adam_beta2), eps=config.adam_eps)


def autocast(config: FitConfig, device: str) -> AbstractContextManager[Any]:
    """Products of matrices in bfloat16 where the config says so; weights, losses and the optimizer stay in fp32."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16")


def learning_rate_at(step: int, num_steps: int, config: FitConfig) -> float:
    """Linear from 0 over the warm-up, then along a cosine to `final_learning_rate_ratio` of the rate."""
    assert config.learning_rate is not None
    num_warmup = math.ceil(config.warmup_ratio * num_steps)
    if step < num_warmup:
        return config.learning_rate * (step + 1) / num_warmup
    done = (step - num_warmup) / max(1, num_steps - num_warmup)
    low = config.final_learning_rate_ratio
    return config.learning_rate * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Batch:
    """What one step learns from."""

    indices: list[int]
    epoch: int
    place: int
    """Its number in the epoch."""
    per_epoch: int
    """Batches of this epoch."""

    @property
    def ends_epoch(self) -> bool:
        """Whether everything has been read once more after it."""
        return self.place == self.per_epoch - 1

    def append(self, value: float, values: Sequence[float]) -> list[float]:
        """The values of its epoch so far, and this one; an epoch's first batch begins anew."""
        return [*(values if self.place else []), value]


def plan_batches(sizes: Sequence[int], batch_size: int, *, epochs: int, seed: int) -> list[Batch]:
    """All batches of a run: each epoch reads everything once, in an order of its own, always the same for a seed.

    `sizes` are what each element counts (1, or a task's rankings). A batch ends with the element that brings it to
    `batch_size`, so that it may hold a few more; an epoch's last batch holds what is left.
    """
    batches: list[Batch] = []
    for epoch in range(epochs):
        parts: list[list[int]] = []
        room = 0
        for index in torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed + epoch)).tolist():
            if room <= 0:
                parts.append([])
                room = batch_size
            parts[-1].append(index)
            room -= sizes[index]
        batches += [Batch(part, epoch, place, len(parts)) for place, part in enumerate(parts)]
    return batches


def apply_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: float, *, step: int, num_steps: int, config: FitConfig
) -> tuple[float, float]:
    """Add up the processes' gradients, clip the sum, and apply the step; (norm before clipping, learning rate). A group
    of parameters may learn at a `speed` of its own, a multiple of the rate.

    ValueError, and no step, when something is not finite.
    """
    add_up_gradients(learning_parameters(model))
    norm = clip_gradients(learning_parameters(model), config.max_grad_norm)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        name = "the loss" if not math.isfinite(loss) else "the gradient"
        raise ValueError(
            f"Training failed at step {step + 1}: {name} is NaN or infinite. That step was not applied, and the last "
            "checkpoint is good. A lower learning_rate often helps."
        )
    rate = learning_rate_at(step, num_steps, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("speed", 1.0)
    optimizer.step()
    return norm, rate


def say_step(
    report: Reporter, metrics: Mapping[str, float], loss: float, *, step: int, num_steps: int, batch: Batch, epochs: int
) -> None:
    """What a step led to, after so many of them."""
    report.metrics(step, metrics)
    report.progress(step, num_steps, f"epoch {batch.epoch + 1} of {epochs}, loss {loss:.3f}")


def mean(values: Sequence[float]) -> float:
    """Of an epoch's losses."""
    return math.fsum(values) / len(values)


# --- Checkpoints and versions ----------------------------------------------------------------------------------------

Optimizers = Mapping[str, torch.optim.Optimizer]


@dataclass(frozen=True)
class Keeper:
    """Where a run's checkpoints go and come from."""

    folder: Path | None
    """None: nothing is kept."""
    identity: Mapping[str, Any]
    on_checkpoint: Callable[[Path], None] | None
    resume_from: Path | None
    carried: Mapping[str, Any] | None = None
    """JSON that every checkpoint holds besides: what was made before the loop began."""

    def resume(self, models: Mapping[str, nn.Module], optimizers: Optimizers) -> dict[str, Any] | None:
        """Go back to the checkpoint, if there is one; its progress. Raises CheckpointError."""
        if self.resume_from is None:
            return None
        progress = load_checkpoint(self.resume_from, models=models, optimizers=optimizers, identity=self.identity)
        return {name: value for name, value in progress.items() if name != CARRIED}

    @staticmethod
    def is_due(step: int, num_steps: int, config: FitConfig) -> bool:
        """Whether a checkpoint is to be saved after so many steps; never after the last one."""
        return step % config.checkpoint_every == 0 and step < num_steps

    def save(self, models: Mapping[str, nn.Module], optimizers: Optimizers, progress: Mapping[str, Any]) -> None:
        """Replace the checkpoint by one of now, which the first process hands over."""
        if self.folder is None:
            return
        carried = {CARRIED: dict(self.carried)} if self.carried else {}
        save_checkpoint(
            self.folder,
            models=models,
            optimizers=optimizers,
            progress={**progress, **carried},
            identity=self.identity,
        )
        if self.on_checkpoint and world().is_first:
            self.on_checkpoint(self.folder)


def checkpoint_folder(out: Path) -> Path:
    """Beside the version's folder."""
    return out.with_name(f"{out.name}.checkpoint")


def identity_of(
    kind: str,
    config: FitConfig | PPOConfig | BestOfNConfig | StarConfig,
    model: ModelSource,
    sources: Mapping[str, ModelSource],
    **data: Any,
) -> dict[str, Any]:
    """What must be the same for a run to go on, and what the version's manifest says of its making.

    `model` is what learns, `sources` the versions that the run started from, `data` what names all that it reads.
    """
    about = {"kind": kind, "config": config.as_json(), **data}
    return about | {"model": model.name, "parents": parents(**sources)}


def parents(**sources: ModelSource) -> dict[str, str | None]:
    """What a manifest says of the versions that a run started from."""
    return {name: source.version.name if source.version else None for name, source in sources.items()}


def save_version(model: Policy | RewardModel, out: Path, about: Mapping[str, Any]) -> None:
    """The version's folder, its manifest last. A model that was spread over processes is of no use afterwards."""
    if isinstance(model, Policy):
        model.frozen = None  # it is not saved, and need not be put together
    put_weights_together(model)

    def write() -> None:
        with new_folder(out) as building:
            model.save(building)
            files = {path.name: sha256_file(path) for path in sorted(building.iterdir())}
            write_manifest(building, {**about, "code_version": code_version(), "files": files})

    write_once(write)


def copies_of(parameters: Iterable[torch.Tensor]) -> nn.ParameterList:
    """Weights to be kept; a module of parameters, because those are what a checkpoint keeps."""
    return nn.ParameterList(parameter.detach().clone() for parameter in parameters)


def assign(targets: Iterable[torch.Tensor], values: Iterable[torch.Tensor]) -> None:
    """Let each of the weights take the other's value."""
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
