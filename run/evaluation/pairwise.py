"""Distances between all pairs of two sets, a chunk at a time, so that no n x m matrix is held."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike

from score_diffusion.run.errors import UserError

CHUNK = 512  # samples at a time


def flat(samples: ArrayLike) -> np.ndarray:
    """Samples (n, ...) as vectors (n, D)."""
    samples = np.asarray(samples)
    return samples.reshape(len(samples), -1)


def flat_pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Two sets as vectors (n, D) and (m, D).

    Raises:
        UserError: If their samples are not of one size.
    """
    a, b = flat(a), flat(b)
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"both sets must have samples of one size, got {a.shape[1]} and {b.shape[1]} numbers per sample"
        )
    return a, b


def chunks(x: np.ndarray, centre: np.ndarray | float = 0.0) -> Iterator[tuple[slice, np.ndarray]]:
    """Where each chunk of x (n, D) stands, and the chunk in float64 minus the centre (D,)."""
    for start in range(0, len(x), CHUNK):
        rows = slice(start, min(start + CHUNK, len(x)))
        yield rows, x[rows].astype(np.float64) - centre


def distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Where each chunk of a (n, D) stands, and its Euclidean distances to b (m, D), shape (rows, m)."""
    others = torch.from_numpy(b.astype(np.float64))
    for rows, some in chunks(a):
        yield rows, torch.cdist(torch.from_numpy(some), others).numpy()
