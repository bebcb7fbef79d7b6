"""Several processes at one job, as torchrun starts them; one process takes the same path through the code.

    torchrun --nproc-per-node 4 run/main.py --mode sample

Rank r of W processes ("ranks") works on a share of its own, and rank 0 collects, prints and writes. Without
torchrun there is rank 0 of 1: its share is everything, and no process group exists.

    who waits for whom                     group                          for how long
    the gradients and losses of a step     `step_group`: gloo, or nccl    as training.patience says
    everything else                        the default one: gloo          PATIENCE

Ranks take a training step at the same time, so that one that keeps the others waiting hangs; but rank 0 may
be busy with a checkpoint, and a share of samples may take long. A rank that dies is noticed by torchrun,
which ends the others, and by its neighbours, whose connections break.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from score_diffusion.run.errors import UserError

PATIENCE = timedelta(hours=12)  # of one rank with another that has work of its own
T = TypeVar("T")


def rank() -> int:
    """The number of this process, 0 for the one that prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def joined_processes() -> Iterator[None]:
    """Joins the other processes that torchrun started, if any, for the block. Only rank 0 prints in it.

    Raises:
        UserError: If another process is lost.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        store, number, size = next(rendezvous("env://"))
        # After a restart by torchrun the store may hold the addresses of the life before.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group("gloo", timeout=PATIENCE, store=store, rank=number, world_size=size)
        with open(os.devnull, "w") as nowhere:
            with contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(nowhere):
                yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            f"rank {rank()} lost another process of the job ({_reason(error)}): it died, see what it said, "
            "or took longer than training.patience; the run directory is intact, the same command goes on"
        ) from error
    dist.destroy_process_group()


def _reason(error: RuntimeError) -> str:
    """The first sentence of a communication error, without the source file it comes from."""
    return str(error).rpartition("] ")[2].split(". ")[0].strip()


def share(n: int) -> range:
    """The indices below n that this rank works on: consecutive ones, as many as every other's or one more."""
    ranks, each, rest = world_size(), *divmod(n, world_size())
    starts = [r * each + min(r, rest) for r in range(ranks + 1)]
    return range(starts[rank()], starts[rank() + 1])


def gather(items: list[T]) -> list[T] | None:
    """The items of all ranks in the order of the ranks, on rank 0; None on the others."""
    if world_size() == 1:
        return items
    parts = [None] * world_size() if is_first() else None
    dist.gather_object(items, parts)
    return None if parts is None else [item for part in parts for item in part]


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns or raises on rank 0, on every rank; it is called there alone."""
    if world_size() == 1:
        return make()
    message = [None, None]  # result, error
    if is_first():
        try:
            message[0] = make()
        except Exception as error:  # the others wait for the outcome, whatever it is
            message[1] = error
    dist.broadcast_object_list(message)
    if message[1] is not None:
        raise message[1]
    return message[0]


def wait() -> None:
    """Returns when every rank has come here."""
    if world_size() > 1:
        dist.barrier()


class Agreement:
    """The largest of the numbers that the ranks give, one call late where there are several ranks: the answer
    comes while they work.
    """

    def __init__(self) -> None:
        self._value, self._work = torch.zeros((), dtype=torch.int64), None

    def __call__(self, value: int) -> int:
        """The largest value of the call before, 0 at first; of this one where there is one process."""
        if world_size() == 1:
            return value
        if self._work is not None:
            self._work.wait()
        agreed = int(self._value)
        self._value = torch.tensor(value)
        self._work = dist.all_reduce(self._value, dist.ReduceOp.MAX, async_op=True)
        return agreed


def step_group(device: torch.device, patience: float) -> dist.ProcessGroup | None:
    """The group for the collectives of training steps on a device; None for one process.

    Args:
        device: Where the tensors are.
        patience: Seconds after which a rank that keeps the others waiting counts as lost.
    """
    if world_size() == 1:
        return None
    backend = "nccl" if device.type == "cuda" else "gloo"
    return dist.new_group(backend=backend, timeout=timedelta(seconds=patience))


def average_(tensors: list[Tensor], group: dist.ProcessGroup | None) -> None:
    """Replaces tensors by their means over the ranks."""
    if group is not None:
        for x in tensors:
            dist.all_reduce(x, group=group)
            x.div_(group.size())


def concatenate(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The tensors x (n, ...) of all ranks, of one shape, in the order of the ranks; on every rank, without
    gradients.
    """
    if group is None:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x.detach().contiguous(), group=group)
    return torch.cat(parts)
