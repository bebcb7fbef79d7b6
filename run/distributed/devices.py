"""The device that a process computes on."""

from __future__ import annotations

import torch

from score_diffusion.run.distributed.processes import local_rank, world_size
from score_diffusion.run.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """The device of this process: of several on a machine with GPUs, each has its own.

    Args:
        name: "auto" for CUDA where there is one, "cuda" or "cpu".

    Raises:
        UserError: If "cuda" is asked for and there is none, or there are fewer GPUs than processes.
    """
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise UserError("--device cuda was asked for and there is no CUDA device: use --device cpu")
        return torch.device("cpu")
    if world_size() == 1:
        return torch.device("cuda")
    if local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"each process needs a GPU of its own, and there are {torch.cuda.device_count()}: "
            "start as many with --nproc-per-node, or use --device cpu"
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())
