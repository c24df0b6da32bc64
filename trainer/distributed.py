"""Several processes that train one model: who they are, which part of a batch each works on, and what they add up.

Every process holds the same data and walks through the same loop; of each batch, process r of n computes elements
r, r + n, ... A loss is a sum over elements that is divided by a count of the *whole* batch, so that the sum of the
processes' gradients is the gradient that one process would have. Without `torchrun` there is one process, and nothing
here does anything.

Gradients are added up by an explicit all-reduce after the backward passes, not by DistributedDataParallel, for three
reasons: DDP takes means where sums are right; it needs the same number of forward passes in every process, and ragged
rankings don't give that; and it listens at the `forward` of a wrapper, which packed rows don't go through. The price is
that the sum waits for the last backward pass instead of overlapping with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

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


def add_up_gradients(parameters: Iterable[Tensor]) -> None:
    """Let every process have the sum of all gradients. Who had nothing to compute adds zeros."""
    if world().size == 1:
        return
    for bucket in _buckets(parameters):
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
    return report if world().size == 1 else OneVoice(report)


def write_once(write: Callable[[], None]) -> None:
    """`write` in the first process; the others wait until it is done."""
    if world().is_first:
        write()
    if world().size > 1:
        dist.barrier()
