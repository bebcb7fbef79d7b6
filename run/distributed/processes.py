"""Several processes that work on one command, started by torchrun; one process runs the same code.

    torchrun --nproc-per-node 4 run/main.py --mode sample

Rank r of W processes ("ranks") works on its own share, and rank 0 collects, prints and writes. Without
torchrun there is only rank 0: its share is everything, and there is no process group.

    what ranks wait for                    group                              at most
    the gradients and losses of a step     `step_group`: gloo, or nccl        training.patience
    everything else                        the default group: gloo            TIMEOUT

All ranks take a training step at the same time, so that a rank that keeps the others waiting must be stuck;
but rank 0 may be busy with a checkpoint, and a share of samples may take long. When a rank dies, torchrun
notices and ends the others, and their connections to it break.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from score_diffusion.run.errors import UserError

TIMEOUT = timedelta(hours=12)  # of one rank that waits for another outside of training steps
T = TypeVar("T")


def rank() -> int:
    """The number of this process, 0 for the one that prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank_0() -> bool:
    """Whether this is rank 0, the one that prints and writes."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process among those on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def joined_processes() -> Iterator[None]:
    """Joins the other processes that torchrun started, if any, for the block, in which only rank 0 prints.

    Raises:
        UserError: If another process is lost.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        store, number, size = next(rendezvous("env://"))
        # After a restart by torchrun the store may hold the addresses of the processes before it.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group("gloo", timeout=TIMEOUT, store=store, rank=number, world_size=size)
        with open(os.devnull, "w") as nowhere:
            with contextlib.nullcontext() if is_rank_0() else contextlib.redirect_stdout(nowhere):
                yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            f"rank {rank()} lost another process of the job ({_reason(error)}): it died, see its messages, "
            "or took longer than training.patience; the run directory is intact, the same command resumes it"
        ) from error
    dist.destroy_process_group()


def _reason(error: RuntimeError) -> str:
    """The first sentence of a communication error, without the source file it comes from."""
    return str(error).rpartition("] ")[2].split(". ")[0].strip()


def own_share(n: int) -> range:
    """The indices below n that this rank works on: consecutive, equally many on each rank or one more."""
    ranks, each, rest = world_size(), *divmod(n, world_size())
    starts = [r * each + min(r, rest) for r in range(ranks + 1)]
    return range(starts[rank()], starts[rank() + 1])


def gather(items: list[T]) -> list[T] | None:
    """The items of all ranks in the order of the ranks, on rank 0; None on the others."""
    if world_size() == 1:
        return items
    parts: list[list[T]] | None = [[] for _ in range(world_size())] if is_rank_0() else None
    dist.gather_object(items, parts)
    return None if parts is None else [item for part in parts for item in part]


def from_rank_0(make: Callable[[], T]) -> T:
    """Calls `make` on rank 0 only; what it returns or raises there, every rank returns or raises."""
    if world_size() == 1:
        return make()
    message: list[Any] = [None, None]  # result, error
    if is_rank_0():
        try:
            message[0] = make()
        except Exception as error:  # the others wait for the outcome, whatever it is
            message[1] = error
    dist.broadcast_object_list(message)
    if message[1] is not None:
        raise message[1]
    return message[0]


def barrier() -> None:
    """Returns when every rank has called it."""
    if world_size() > 1:
        dist.barrier()


class DelayedMaximum:
    """The largest of the numbers that the ranks give, one call late where there are several ranks: the answer
    arrives while they work.
    """

    def __init__(self) -> None:
        self._value = torch.zeros((), dtype=torch.int64)
        self._work: dist.Work | None = None

    def __call__(self, value: int) -> int:
        """The largest number of the previous call, 0 at first; of this call where there is one process."""
        if world_size() == 1:
            return value
        if self._work is not None:
            self._work.wait()
        largest = int(self._value)
        self._value = torch.tensor(value)
        self._work = dist.all_reduce(self._value, dist.ReduceOp.MAX, async_op=True)
        return largest


def step_group(device: torch.device, patience: float) -> dist.ProcessGroup | None:
    """The group for what ranks exchange in training steps; None for one process.

    Args:
        device: Where the tensors are.
        patience: Seconds after which a rank that keeps the others waiting is given up as lost.
    """
    if world_size() == 1:
        return None
    backend = "nccl" if device.type == "cuda" else "gloo"
    return dist.new_group(backend=backend, timeout=timedelta(seconds=patience))


def average_over_ranks_(tensors: list[Tensor], group: dist.ProcessGroup | None) -> None:
    """Replaces tensors by their means over the ranks."""
    if group is not None:
        for x in tensors:
            dist.all_reduce(x, group=group)
            x.div_(group.size())


def concatenate_over_ranks(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The tensors x (n, ...) of all ranks, of equal shapes, concatenated in the order of the ranks: on every
    rank, without gradients.
    """
    if group is None:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x.detach().contiguous(), group=group)
    return torch.cat(parts)
