"""A data set in memory or streamed, and its three units.

Images are kept as integer grey levels k in 0..levels-1 of shape (N, C, H, W). The model sees them
dequantized, with fresh uniform noise at every step. Pictures, sample files and distances use the raw pixels
2k/(levels - 1) - 1 in [-1, 1]. Points are kept as they are: float32 (N, D).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.run.data.sources import Samples
from score_diffusion.sde_lib import dequantize, quantize


@dataclass(frozen=True)
class Dataset:
    """A training set and a held-out set of one kind."""

    name: str
    train: Samples
    """Grey levels, uint8 (N, C, H, W), or points, float32 (N, D); a tensor, or a stream if it is large."""
    test: Samples
    """Held-out data of the same kind."""
    levels: int | None
    """Number of grey levels; None for points."""
    labels: Tensor | None = None
    """Classes of the training set, int64 (N,); None where the source has none."""
    test_labels: Tensor | None = None
    """Classes of the held-out set."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""
    digest: str = ""
    """Of the contents and the split; empty where it was not made here."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, (C, H, W) or (D,)."""
        return tuple(self.train.shape[1:])


def to_continuous(batch: Tensor, levels: int | None, u: Tensor) -> Tensor:
    """What the model sees: images dequantized with u in [0, 1), of their shape; points as they are."""
    return dequantize(batch, levels, u) if levels else batch


def bin_width(levels: int | None) -> float:
    """Distance of neighbouring grey levels in what the model sees; 1 for points, which have a density."""
    if not levels:
        return 1.0
    ends = dequantize(torch.tensor([0, 1]), levels, torch.zeros(2, dtype=torch.float64))
    return float(ends[1] - ends[0])


def to_raw(batch: Tensor, levels: int | None) -> Tensor:
    """Raw pixels in [-1, 1] of a batch of grey levels; points as they are."""
    return 2 * batch.float() / (levels - 1) - 1 if levels else batch


def samples_to_raw(x: Tensor, levels: int | None) -> Tensor:
    """Raw pixels of continuous samples, each at the grey level whose bin holds it; points as they are."""
    return to_raw(quantize(x, levels), levels) if levels else x
