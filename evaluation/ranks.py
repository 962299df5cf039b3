"""The processes of one training run: one by itself, or those torchrun starts, each with a share of every batch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from samdeblur.models import DeviceError, pick_device

Item = TypeVar("Item")

# Groups are kept to the end of the process. Where DistributedDataParallel lets go of one last, it waits for a thread of
# gloo while holding the lock of the interpreter, and that thread may be waiting for the lock (seen in torch 2.11).
_groups: list[Any] = []


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over all processes in each backward pass."""
        if self.world == 1:
            return network
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of depthwise convolutions
        return DistributedDataParallel(network)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.world == 1:
            return value
        value = value / self.world
        dist.all_reduce(value)
        return value

    def largest(self, number: int) -> int:
        """The largest of a number over all processes."""
        if self.world == 1:
            return number
        value = torch.tensor(number)  # on the CPU: a GPU is not waited for
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            dist.barrier()

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Those of the items that are this process's."""
        return list(items[self.rank :: self.world])

    def gather(self, mine: list[Item]) -> list[Item]:
        """What `share` parted, in its order again, in every process."""
        if self.world == 1:
            return mine
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, mine)
        return [parts[i % self.world][i // self.world] for i in range(sum(map(len, parts)))]


def without_averaging(network: nn.Module) -> AbstractContextManager[Any]:
    """For all backward passes of a step but the last: gradients are averaged over processes once."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def world_size() -> int:
    """How many processes torchrun says there are; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Number of this process among those on its machine, as torchrun or SLURM's srun says it."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    raise DeviceError(
        "several processes without LOCAL_RANK, the number of each on its machine: set it, or start them with torchrun"
    )


def local_world() -> int:
    """How many processes of the run are on this machine; 1 where nobody says."""
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        if os.environ.get(name, "").isdecimal():
            return max(1, int(os.environ[name]))
    return 1


def _own_gpu(visible: int) -> int:
    """The GPU of this process; the only one it sees, where each process is shown its own."""
    if visible == 1:
        return 0
    rank = local_rank()
    if rank >= visible:
        raise DeviceError(f"process {rank} of this machine has no GPU: {visible} are visible; start as many processes")
    return rank


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes of a run. `device` as for `pick_device`; each process takes the GPU of its local rank.

    Raises DeviceError.
    """
    picked = pick_device(device)
    if world_size() == 1:
        yield Ranks(picked)
        return
    if picked.type == "cuda":
        picked = torch.device("cuda", _own_gpu(torch.cuda.device_count()))
        torch.cuda.set_device(picked)
    dist.init_process_group("cpu:gloo,cuda:nccl" if picked.type == "cuda" else "gloo")
    _groups.append(dist.group.WORLD)
    try:
        yield Ranks(picked, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
