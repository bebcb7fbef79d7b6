"""One model trained by several processes.

    ddp     every process has the whole model; gradients are averaged over the processes while the backward
            pass goes on (Li et al., 2020)
    fsdp    weights, gradients, optimizer state and averages are cut in W pieces, one for each process; a
            block's weights are gathered when it computes (Zhao et al., 2023)

Process r computes the losses of the r-th part of a batch, and the mean of their gradients is that of the
whole batch, up to rounding.

References:
    PyTorch Distributed: Experiences on Accelerating Data Parallel Training (Li et al., 2020),
        https://arxiv.org/abs/2006.15704.
    PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (Zhao et al., 2023),
        https://arxiv.org/abs/2304.11277.
"""

from __future__ import annotations

import warnings

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

PARALLEL = ("ddp", "fsdp")


def replicate(net: nn.Module, group: ProcessGroup) -> DistributedDataParallel:
    """A network of the same weights, whose backward pass averages the gradients over the processes (DDP)."""
    device = next(net.parameters()).device
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers is renamed in torch 2.13
        return DistributedDataParallel(
            net,
            device_ids=[device] if device.type == "cuda" else None,
            process_group=group,
            broadcast_buffers=False,  # constants
            gradient_as_bucket_view=True,  # no second copy of the gradients
        )


def shard(net: nn.Module, group: ProcessGroup) -> None:
    """Cuts a network's weights in pieces, in place (FSDP2): each block of its lists by itself, then the rest.

    A block's weights are gathered for its forward and its backward pass, so that a process holds its piece of
    all weights and the whole of one block's.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard  # slow to import, and few need it

    mesh = DeviceMesh.from_group(group, next(net.parameters()).device.type)
    lists = [module for module in net.modules() if isinstance(module, nn.ModuleList)]
    for block in (block for blocks in reversed(lists) for block in blocks):  # the inner ones first
        if not isinstance(block, nn.ModuleList):
            fully_shard(block, mesh=mesh)
    # after every forward pass back to pieces: without a backward pass nothing else would bring them back
    fully_shard(net, mesh=mesh, reshard_after_forward=True)


def in_pieces(x: Tensor) -> bool:
    """Whether a tensor is a DTensor, whose module is slow to import."""
    return hasattr(x, "full_tensor")


def full(x: Tensor) -> Tensor:
    """The whole of a tensor that may be in pieces."""
    return x.full_tensor() if in_pieces(x) else x
