"""Sharded state, one file for each process, by torch.distributed.checkpoint in the format of safetensors.

A shard knows where in its tensor it belongs: any number of processes reads what any other number wrote, each
no more than it holds itself, and one process reads the whole.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError

MISFIT = "does not fit the model of its config.json, which must have been edited: restore it"


def write(folder: Path, tensors: dict[str, Tensor]) -> list[str]:
    """Writes this process's shards of the tensors; called by all at once, with the same names.

    Returns:
        The names of this process's files.

    Raises:
        OSError: If any process cannot write.
    """
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as failed:
        rank, (error, _) = next(iter(failed.failures.items()))
        message = f"rank {rank} cannot write its shard of a checkpoint: {error}"
        raise OSError(getattr(error, "errno", None), message) from failed
    mine = f"shard-{processes.rank() + 1:05d}-*"
    return [path.name for path in folder.glob(mine)]  # none where there are more processes than rows


def read_full(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by name, put together.

    Raises:
        UserError: If a shard is damaged.
    """
    try:
        entries = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that there is one process
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except Exception as error:  # the reader trusts its files: it raises whatever a wrong one leads to
        raise UserError(f"the shards in {folder} are damaged ({error})") from error
    return tensors


def read_into(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Overwrites tensors with those of the same names in a folder, each process its shards; all call it at
    once.

    Raises:
        UserError: If the folder has other names or shapes.
    """
    try:
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    except CheckpointException as failed:
        raise UserError(f"{folder} {MISFIT}") from failed


def copy_into(folder: Path, full: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Overwrites tensors with full ones of the same names, each process its shards.

    Args:
        folder: Where the full tensors come from, for the error.
        full: The full tensors.
        tensors: The tensors to overwrite, sharded or not.

    Raises:
        UserError: If the names or shapes differ.
    """
    if any(getattr(full.get(name), "shape", None) != mine.shape for name, mine in tensors.items()):
        raise UserError(f"{folder} {MISFIT}")
    for name, mine in tensors.items():
        value = full[name].to(mine.device)
        if isinstance(mine, DTensor):
            value = distribute_tensor(value, mine.device_mesh, mine.placements, src_data_rank=None)
        mine.detach().copy_(value)
