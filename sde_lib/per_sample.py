"""What is computed for each sample of a batch: sums that do not depend on the batch, flags."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 16384  # numbers; torch splits longer sums among threads if the batch has no other


def dot_each(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each pair of samples, float64, shape (B,): bitwise the same in every batch."""
    total = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    for p, q in zip(a.flatten(1).split(PIECE, dim=1), b.flatten(1).split(PIECE, dim=1), strict=True):
        total += (p.double() * q.double()).sum(1)
    return total


def mean_square_each(x: Tensor) -> Tensor:
    """The mean square of each sample, float64, shape (B,): bitwise the same in every batch."""
    return dot_each(x, x) / x[0].numel()


def root_mean_square_each(x: Tensor) -> Tensor:
    """The root-mean-square of each sample, float64, shape (B,)."""
    return mean_square_each(x).sqrt()


def flags_like(flags: Tensor, x: Tensor) -> Tensor:
    """One flag per sample, shape (B,), with the rank of the samples x."""
    return flags.reshape(-1, *(1,) * (x.ndim - 1))
