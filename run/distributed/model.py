"""One model trained by several processes.

    ddp     every rank has the full model; gradients are averaged over the ranks during the backward pass
            (Li et al., 2020)
    fsdp    weights, gradients, optimizer state and averages are sharded over the W ranks; the weights of a
            block are gathered when it computes (Zhao et al., 2023)

Rank r computes the losses of the r-th share of a batch, and the mean of the ranks' gradients is that of the
whole batch, up to rounding.

References:
    PyTorch Distributed: Experiences on Accelerating Data Parallel Training (Li et al., 2020),
        https://arxiv.org/abs/2006.15704.
    PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (Zhao et al., 2023),
        https://arxiv.org/abs/2304.11277.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

PARALLEL = ("ddp", "fsdp")


def replicate(net: nn.Module, group: ProcessGroup) -> DistributedDataParallel:
    """A network of the same weights, whose backward pass averages the gradients over the ranks (DDP)."""
    device = next(net.parameters()).device
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers is renamed in torch 2.13
        return DistributedDataParallel(
            net,
            device_ids=[device] if device.type == "cuda" else None,
            process_group=group,
            broadcast_buffers=False,  # they are constants
            gradient_as_bucket_view=True,  # no second copy of the gradients
        )


def shard(net: nn.Module, group: ProcessGroup) -> None:
    """Shards a network's weights in place (FSDP2): each block of its module lists by itself, then the rest.

    The weights of a block are gathered for its forward and its backward pass, so that a rank holds its shard
    of all weights and the full weights of one block.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard  # slow to import, and rarely needed

    mesh = DeviceMesh.from_group(group, next(net.parameters()).device.type)
    lists = [module for module in net.modules() if isinstance(module, nn.ModuleList)]
    for block in (block for blocks in reversed(lists) for block in blocks):  # the inner ones first
        if not isinstance(block, nn.ModuleList):
            fully_shard(block, mesh=mesh)
    # Resharded after every forward pass: without a backward pass nothing else would reshard them.
    fully_shard(net, mesh=mesh, reshard_after_forward=True)


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a DTensor, whose module is slow to import."""
    return hasattr(x, "full_tensor")


def full_tensor(x: Tensor) -> Tensor:
    """The full tensor of one that may be sharded."""
    return cast(Any, x).full_tensor() if is_sharded(x) else x


def set_full(x: Tensor, where: Tensor, values: Tensor) -> None:
    """Sets a tensor that may be sharded to values where a mask says so; these two are full and the same on
    every rank.
    """
    full = torch.where(where, values.to(x.dtype), full_tensor(x))
    if is_sharded(x):
        from torch.distributed.tensor import distribute_tensor  # slow to import, and rarely needed

        sharded = cast(Any, x)
        full = distribute_tensor(full, sharded.device_mesh, sharded.placements)
    x.copy_(full)


def own_shard(x: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, which shares its memory; any other tensor itself."""
    return cast(Any, x).to_local() if is_sharded(x) else x
