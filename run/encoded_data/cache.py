"""Samples as the network of another run encodes them, computed once and kept in a file.

    RUN/encoded/DIGEST.npy     the codes of one part of a data set, float32 (N, *code), in the folder of the
                               run whose network made them

The digest is that of the samples, of the network's weights and of the part, so that a file never goes with
other data or another network. A run that cannot be written computes its codes again each time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.console import progress_bar, warn
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.sources import Samples, chunks
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import is_writable

FOLDER = "encoded"
VERSION = 1  # of what a digest stands for
BATCH = 64  # samples that are encoded at a time


@dataclass(frozen=True)
class Encoder:
    """The network of another run, which encodes samples."""

    run: Path
    """The run directory."""
    weights: str
    """Digest of the network's weights."""
    encode: Callable[[Tensor], Tensor]
    """Codes (B, *code) of model inputs (B, *shape), both on the CPU."""
    keep: bool = field(default=True, kw_only=True)
    """Whether codes are kept in files."""


def encoded(encoder: Encoder, samples: Samples, scaling: Scaling, content: str, part: str) -> np.ndarray:
    """The codes of samples, float32 (N, *code), mapped from the cache where it can be written.

    Args:
        encoder: The network that encodes.
        samples: Stored samples (N, *shape).
        scaling: Turns them into model inputs.
        content: Digest of the data set that the samples are of.
        part: Which of its parts they are: "train", "test", "validation".

    Raises:
        UserError: If a code is not finite.
    """
    digest = hashlib.sha256(repr((VERSION, content, encoder.weights, part, len(samples))).encode())
    path = encoder.run / FOLDER / f"{digest.hexdigest()[:32]}.npy"

    def compute() -> np.ndarray:
        return _computed(encoder, samples, scaling, lambda shape: np.empty(shape, np.float32))

    def write() -> bool:
        if _read(path, len(samples)) is None and is_writable(path.parent):
            _write(path, encoder, samples, scaling)
        return path.exists()

    codes = _read(path, len(samples)) if not encoder.keep or processes.from_rank_0(write) else None
    if codes is not None:
        return codes
    if not encoder.keep:
        return compute()
    warn(f"{path.parent} cannot be written: the codes by {encoder.run} are computed again each time")
    return compute()


def _read(path: Path, count: int) -> np.ndarray | None:
    """The codes in a file, mapped; None if there is no intact one."""
    try:
        codes = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return codes if codes.dtype == np.float32 and len(codes) == count else None


def _write(path: Path, encoder: Encoder, samples: Samples, scaling: Scaling) -> None:
    """Writes the codes under a temporary name, then renames the file: readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")

    def create(shape: tuple[int, ...]) -> np.ndarray:
        return np.lib.format.open_memmap(temporary, "w+", np.float32, shape)

    try:
        _computed(encoder, samples, scaling, create)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _computed(
    encoder: Encoder, samples: Samples, scaling: Scaling, create: Callable[[tuple[int, ...]], np.ndarray]
) -> np.ndarray:
    """The codes of samples, in the array that `create(shape)` makes."""
    codes: np.ndarray | None = None
    done = 0
    with progress_bar(len(samples), f"encoding by {encoder.run.name}", "sample", delay=1) as bar:
        for stored in chunks(samples, BATCH):
            with torch.no_grad():
                found = encoder.encode(scaling.stored_to_model(stored)).float().numpy()
            if not np.isfinite(found).all():
                raise UserError(f"the codes by {encoder.run} are not finite for some samples: train it again")
            if codes is None:
                codes = create((len(samples), *found.shape[1:]))
            codes[done : done + len(found)] = found
            done += len(found)
            bar.update(len(found))
    assert codes is not None  # a part of a data set has samples
    if isinstance(codes, np.memmap):
        codes.flush()
    return codes


def check_unchanged(encoder: Encoder, key: str, recorded: str | None) -> None:
    """Refuses another encoder than the one that the data of a run were computed by.

    Args:
        encoder: The encoder that there is now.
        key: The key of the configuration that names its run, such as "data.autoencoder".
        recorded: The digest of the run's record, `DataInfo.encoders`; None for a new run.

    Raises:
        UserError: If the weights are others.
    """
    if recorded is not None and recorded != encoder.weights:
        raise UserError(
            f"the weights in {encoder.run} are not those that the run was trained with: restore them, or "
            f"name the run that holds them with --config.{key}="
        )
