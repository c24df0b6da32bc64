"""Several processes that train one model: who they are, which part of a batch each works on, and what they add up.

Every process holds the same data and walks through the same loop; of each batch, process r of n computes elements
r, r + n, ... A loss is a sum over elements that is divided by a count of the *whole* batch, so that the sum of the
processes' gradients is the gradient that one process would have. Without `torchrun` there is one process, and nothing
here does anything.

Gradients are added up by an explicit all-reduce after the backward passes, not by DistributedDataParallel, for three
reasons: DDP takes means where sums are right; it needs the same number of forward passes in every process, and ragged
rankings don't give that; and it listens at the `forward` of a wrapper, which packed rows don't go through. The price is
that the sum waits for the last backward pass instead of overlapping with it.

A model that is too large for one GPU is spread over all of them (`shard`, torch's FSDP2): each process keeps an n-th of
every weight, gradient and moment, and fetches the rest of a block when it computes it. Then all processes must compute
equally often: who has fewer parts adds spare ones, which count nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.reporting import Level, Reporter

Item = TypeVar("Item")

BUCKET_NUMBERS = 2**24
"""Gradients that are added up in one message."""
PATIENCE = timedelta(hours=1)
"""How long the others wait for one, which may be handing over a checkpoint."""


@dataclass(frozen=True)
class World:
    """The processes of a run."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0


def world() -> World:
    """The processes that were joined, or this one alone."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def joined(device: str = "cpu") -> Iterator[World]:
    """Within the block, the processes that `torchrun` started are one run; each has a GPU of its own on "cuda".

    Without `torchrun`, or where the processes were joined before, the block is as it is. ValueError when there are more
    processes than GPUs on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield world()
        return
    has_gpu = torch.device(device).type == "cuda"
    if has_gpu:
        local_rank, num_devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= num_devices:
            raise ValueError(f"torchrun started more processes than there are GPUs here ({num_devices}).")
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=PATIENCE)
    try:
        yield world()
    finally:
        dist.destroy_process_group()


# --- Parts and sums --------------------------------------------------------------------------------------------------


def part_of(items: Sequence[Item]) -> Sequence[Item]:
    """What this process works on: every n-th item, from its rank on. Nothing where there are fewer items than ranks."""
    here = world()
    return items if here.size == 1 else items[here.rank :: here.size]


def add_up(*values: float) -> list[float]:
    """The sum of each number over the processes."""
    if world().size == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return [float(value) for value in total]


def add_up_tensor(part: Tensor) -> Tensor:
    """The sum of a tensor over the processes, each of which filled in what it computed and left the rest 0."""
    if world().size > 1:
        dist.all_reduce(part)
    return part


def add_up_gradients(parameters: Iterable[Tensor]) -> None:
    """Let every process have the sum of all gradients. Who had nothing to compute adds zeros.

    Those of shards were added up in the backward pass.
    """
    if world().size == 1:
        return
    for bucket in _buckets(parameter for parameter in parameters if not is_shard(parameter)):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [parameter.numel() for parameter in bucket]
        for parameter, total in zip(bucket, flat.split(sizes), strict=True):
            parameter.grad = total.view_as(parameter).clone()


def _buckets(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in their order, those of one type and of about `BUCKET_NUMBERS` numbers together."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        is_other = bool(bucket) and bucket[0].dtype != parameter.dtype
        if bucket and (is_other or sum(p.numel() for p in bucket) + parameter.numel() > BUCKET_NUMBERS):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def clip_gradients(parameters: Sequence[Tensor], max_norm: float) -> float:
    """Scale the gradients down to this norm over all parameters and processes, where it is larger; the norm before."""
    if not any(is_shard(parameter) for parameter in parameters):
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    shards = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    wholes = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norm = math.sqrt(add_up(_sum_of_squares(shards))[0] + _sum_of_squares(wholes))
    # As torch does it.
    scale = max_norm / (norm + 1e-6)
    if scale < 1.0:
        for gradient in (*shards, *wholes):
            gradient.mul_(scale)
    return norm


def _sum_of_squares(tensors: Sequence[Tensor]) -> float:
    return math.fsum(torch.linalg.vector_norm(tensor).item() ** 2 for tensor in tensors)


def put_together(mine_ND: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all items, in the items' order, from the rows that each process has of its `part_of` them.

    Args:
        mine_ND: the rows of this process's items, one item's after another's; [N] or [N, D].
        counts: how many rows each of all the items has.
    """
    here = world()
    if here.size == 1:
        return mine_ND
    owner = [index % here.size for index in range(len(counts))]
    row_owner = torch.tensor([who for who, count in zip(owner, counts, strict=True) for _ in range(count)])
    # Float64 holds every float32 exactly, and adding zeros changes none.
    all_ND = torch.zeros(len(row_owner), *mine_ND.shape[1:], dtype=torch.float64)
    all_ND[row_owner == here.rank] = mine_ND.detach().double().cpu()
    dist.all_reduce(all_ND)
    return all_ND.to(mine_ND)


def from_all(mine: Sequence[Item], num: int) -> list[Item]:
    """What the processes made of their `part_of` `num` items, in the items' order. It travels as JSON."""
    here = world()
    if here.size == 1:
        return list(mine)
    own = torch.frombuffer(bytearray(json.dumps(mine).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.long) for _ in range(here.size)]
    dist.all_gather(lengths, torch.tensor([len(own)]))
    width = max(int(length) for length in lengths)
    texts = [torch.zeros(width, dtype=torch.uint8) for _ in range(here.size)]
    dist.all_gather(texts, nn.functional.pad(own, (0, width - len(own))))
    parts = [json.loads(bytes(text[: int(length)].tolist())) for text, length in zip(texts, lengths, strict=True)]
    return [parts[index % here.size][index // here.size] for index in range(num)]


# --- Shards ----------------------------------------------------------------------------------------------------------


def shard(transformer: nn.Module, device: str) -> None:
    """Spread a transformer's weights over the processes, block by block; they move to the device as they are spread.

    One process keeps all of them, and what was read in parts is left as it is.
    """
    if world().size == 1 or isinstance(transformer, FSDPModule):
        return
    mesh = init_device_mesh(torch.device(device).type, (world().size,))
    for module in (*_blocks(transformer).values(), transformer):
        fully_shard(module, mesh=mesh)
    _add_up_in_parts(transformer)


def reading_in_parts(transformer: PreTrainedModel) -> DistributedConfig:
    """What lets transformers read of every weight no more than this process's part, straight into shards: those of
    blocks as `transformer` has them, which needs no weights (torch's "meta" device)."""
    plan = {re.sub(r"\.\d+(?=\.|$)", ".*", name): "free_full_weight" for name in _blocks(transformer)}
    return DistributedConfig(fsdp_size=world().size, fsdp_plan=plan)


def _blocks(transformer: nn.Module) -> dict[str, nn.Module]:
    """What is fetched, computed and let go at a time."""
    every = transformer.named_modules()
    return {name: module for name, module in every if isinstance(module, GradientCheckpointingLayer)}


def was_read_in_parts(transformer: PreTrainedModel) -> None:
    """From now on the transformer is as one that `shard` spread: transformers itself is to know nothing of it."""
    del transformer.config.distributed_config
    # Else `generate` goes on until the last process has its answer.
    setattr(transformer, "_is_fsdp_managed_module", False)  # noqa: B010 (a private name with no public one)
    _add_up_in_parts(transformer)


def _add_up_in_parts(transformer: nn.Module) -> None:
    """The sum over processes of the gradients is taken as the backward pass goes."""
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            # By itself an outer part stays whole after a forward pass: an optimizer would take that for its weights.
            module.set_reshard_after_forward(True, recurse=False)
            # Sums, not means. Gloo knows plain sums only.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(enable=True)


@contextmanager
def whole(transformer: nn.Module) -> Iterator[None]:
    """Inside, every process holds all weights of a transformer that is spread, so that each may compute as often as it
    likes, without the others. Nothing learns there."""
    parts = [module for module in transformer.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def is_shard(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor."""
    return isinstance(tensor, DTensor)


def in_groups(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """The parameters as Adam takes them: shards and whole weights in groups of their own."""
    every = list(parameters)
    kinds = [[parameter for parameter in every if is_shard(parameter) == kind] for kind in (True, False)]
    return [kind for kind in kinds if kind]


def even_passes(parts: Sequence[Item], spare: Item) -> list[Item]:
    """The parts of this process, and `spare` behind them until no process has more. Every process must ask."""
    most = torch.tensor(len(parts))
    if world().size > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return [*parts, *[spare] * (int(most) - len(parts))]


def with_spares(parts: Sequence[Item], spare: Callable[[], Item], *, is_spread: bool) -> Iterator[tuple[Item, bool]]:
    """The parts of this process, and whether each is spare: where models are spread, all must compute equally often,
    and who has fewer gets spare parts behind them, which count nothing."""
    every = even_passes(parts, spare()) if is_spread else parts
    for number, part in enumerate(every):
        yield part, number >= len(parts)


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in one piece, those of shards in the memory of the first process's CPU and nowhere else.

    Every process must call it with the same tensors in the same order.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            found[name] = tensor
            continue
        # All take part, one tensor at a time, and all but the first let it go.
        whole = tensor.full_tensor()
        if world().is_first:
            found[name] = whole.cpu()
    return found


def spread_like(whole: Tensor, target: Tensor) -> Tensor:
    """This process's part of `whole`, where `target` is a shard; else `whole`. Every process has all of `whole`."""
    if not isinstance(target, DTensor):
        return whole
    here = whole.to(target.device, target.dtype)
    return distribute_tensor(here, target.device_mesh, target.placements, src_data_rank=None)


def put_weights_together(model: nn.Module) -> None:
    """Give the first process all weights in one piece, on its CPU: for saving. Nobody can compute with it any more."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if not is_shard(parameter):
                continue
            # A tied weight stays tied.
            if id(parameter) not in found:
                whole = gather({name: parameter}).get(name, torch.empty(0))
                found[id(parameter)] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
            setattr(module, name, found[id(parameter)])


# --- One voice -------------------------------------------------------------------------------------------------------


class OneVoice:
    """A `Reporter` for all processes: the first one's is heard, and all stop when it is told to."""

    def __init__(self, report: Reporter) -> None:
        self._report = report

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Points of named curves at a step."""
        if world().is_first:
            self._report.metrics(step, values)

    def progress(self, step: int, total: int, message: str) -> None:
        """How far the run is."""
        if world().is_first:
            self._report.progress(step, total, message)

    def log(self, level: Level, text: str) -> None:
        """One line for the run's log."""
        if world().is_first:
            self._report.log(level, text)

    def should_stop(self) -> bool:
        """What the first process heard; every process must ask, at the same places."""
        return add_up(float(world().is_first and self._report.should_stop()))[0] > 0


def one_voice(report: Reporter) -> Reporter:
    """The reporter that the loops of several processes share; `report` itself where there is one process."""
    return report if world().size == 1 or isinstance(report, OneVoice) else OneVoice(report)


def write_once(write: Callable[[], None]) -> None:
    """`write` in the first process; the others wait until it is done."""
    if world().is_first:
        write()
    wait_for_all()


def wait_for_all() -> None:
    """Until every process is here."""
    if world().size > 1:
        dist.barrier()
