"""One game on several processes: PyTorch's DistributedDataParallel, as torchrun starts it.

Every process holds both players and plays its share of each batch; DDP averages the gradients, so
that all of them take the step that one process would take on the whole batch. In one process
nothing here does anything.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from l2lkit.errors import InputError

T = TypeVar("T")


def launched() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def group(device: torch.device) -> Iterator[torch.device]:
    """Inside, the processes that torchrun started play together, over NCCL on CUDA and over gloo
    on the CPU. The device that comes back is this process's: each has a GPU of its own.

    Raises InputError where a machine has more processes than GPUs.
    """
    if launched() == 1:
        yield device
        return
    if device.type == "cuda":
        place, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= there:
            raise InputError(f"There are {there} GPUs here: --nproc-per-node must not be more.")
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield device
    dist.destroy_process_group()  # not after an error: then torchrun ends the others


def size() -> int:
    """How many processes play together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0, which writes and speaks for all."""
    return dist.get_rank() if size() > 1 else 0


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch: every size()-th entry."""
    return batch[rank() :: size()] if size() > 1 else batch


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, for each of them; on the device of their group."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def first(value: T) -> T:
    """What the first process has, for all of them."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def in_turn(work: Callable[[], T]) -> T:
    """What `work` gives. The first process is through with it before the others begin, so that
    they find the files that it fetched or wrote."""
    if rank() > 0:
        dist.barrier()
    done = work()
    if rank() == 0 and size() > 1:
        dist.barrier()
    return done


class _Hooks(nn.Module):
    """DDP averages by hooks on the parameters, whoever computes with them; what it does in its
    own forward pass, and before this empty one, is to ready itself and to hand out the first
    process's batch statistics. So one step may call the players as often as it likes."""

    def __init__(self, player: nn.Module):
        super().__init__()
        self.player = player

    def forward(self) -> None:
        pass


def averaged(player: nn.Module) -> Callable[[], None]:
    """Give all processes the first one's `player`. Call what comes back before each pass whose
    backward fills the player's gradients once: they are the means over the processes."""
    return DistributedDataParallel(_Hooks(player))
