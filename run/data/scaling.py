"""How data become model inputs and back, and what that does to densities.

    stored                        model input                          in the user's units
    grey levels k = 0..L-1        2k/(L - 1) - 1, dequantized or not   the same, at a grey level: in [-1, 1]
    numbers (x - shift)/scale     as they are stored                   x

Numbers are standardized when they are read, so that the training set has mean 0 and standard deviation 1: the
noise schedules, the networks' preconditioning and the metrics of solvers all expect data of about unit scale.
With y = (x - shift)/scale the change of variables gives

    log p(x) = log p(y) - Σ_d log(scale_d),

and the probability of a grey level is the density of its bin times the bin's volume: -log₂ P = -log₂ p(y) -
D log₂(bin width).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import dequantize, quantize


@dataclass(frozen=True)
class Scaling:
    """The map between stored samples, model inputs and the user's units; either `levels` or the others."""

    levels: int | None = None
    """Number of grey levels of images; None for numbers."""
    shift: tuple[float, ...] = (0.0,)
    """Mean of the training set: one number, or one per column or channel, the first axis of a sample."""
    scale: tuple[float, ...] = (1.0,)
    """Its standard deviation, likewise."""
    dtype: str = "float32"
    """Of numbers in the user's units, "float32" or "float64" as in the source."""

    def __post_init__(self) -> None:
        if self.levels is not None and not (type(self.levels) is int and self.levels > 1):
            raise ValueError(f"levels must be a whole number above 1, got {self.levels!r}")
        if not 0 < len(self.shift) == len(self.scale):
            raise ValueError(f"shift and scale must be as long, got {self.shift} and {self.scale}")
        if not all(math.isfinite(s) for s in self.shift) or not all(0 < s < math.inf for s in self.scale):
            raise ValueError(f"shift must be finite and scale above 0, got {self.shift} and {self.scale}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype!r}")

    @property
    def standardizes(self) -> bool:
        return any(self.shift) or set(self.scale) != {1.0}

    def stored_to_model(self, batch: Tensor, u: Tensor | None = None) -> Tensor:
        """Model inputs.

        Args:
            batch: Stored samples, shape (B, *shape).
            u: Noise in [0, 1) of the same shape that dequantizes grey levels; None for the bare pixel values.
        """
        if self.levels is None:
            return batch
        return 2 * batch.float() / (self.levels - 1) - 1 if u is None else dequantize(batch, self.levels, u)

    def stored_to_user(self, batch: Tensor) -> Tensor:
        """Pixel values in [-1, 1], or numbers in the user's units; shape (B, *shape)."""
        return self._undo(batch) if self.levels is None else self.stored_to_model(batch)

    def model_to_user(self, x: Tensor) -> Tensor:
        """The same for samples of the model, each pixel at the grey level whose bin holds it."""
        if self.levels is None:
            return self._undo(x)
        return self.stored_to_model(quantize(x, self.levels))

    def user_to_stored(self, array: np.ndarray) -> np.ndarray:
        """Standardized numbers, float32 (B, *shape), of an array in the user's units, computed in float64."""
        with np.errstate(over="ignore"):
            if not self.standardizes:
                return array.astype(np.float32)
            shift, scale = (_along_axis_1(values, array.ndim) for values in (self.shift, self.scale))
            return ((array.astype(np.float64) - shift) / scale).astype(np.float32)

    def user_to_model(self, x: Tensor) -> Tensor:
        """Samples of the model, float32, of samples in the user's units, which images already are."""
        return x.float() if self.levels else torch.from_numpy(self.user_to_stored(x.numpy()))

    @property
    def limits(self) -> tuple[float, float] | None:
        """The values that are black and white in a picture; None where the data have no fixed range."""
        return (-1.0, 1.0) if self.levels else None

    @property
    def bin_width(self) -> float:
        """Distance of neighbouring grey levels among model inputs; 1 for numbers, which have a density."""
        return 1.0 if self.levels is None else 2 / (self.levels - 1)

    @property
    def bits_offset(self) -> float:
        """-log₂ p per dimension in the user's units, less that of model inputs."""
        if self.levels is not None:
            return -math.log2(self.bin_width)
        return math.fsum(map(math.log2, self.scale)) / len(self.scale)

    def _undo(self, x: Tensor) -> Tensor:
        if not self.standardizes:
            return x
        shift, scale = (
            torch.from_numpy(_along_axis_1(values, x.ndim)).to(x.device)
            for values in (self.shift, self.scale)
        )
        return (x.double() * scale + shift).to(getattr(torch, self.dtype))


def _along_axis_1(values: Sequence[float], ndim: int) -> np.ndarray:
    """Numbers as an array that broadcasts along axis 1 of a batch of `ndim` dimensions."""
    return np.array(values, np.float64).reshape(1, -1, *(1,) * (ndim - 2))


class Moments:
    """Mean, standard deviation and range of numbers that come in chunks, merged in float64.

    Args:
        axes: Axes of a chunk that are reduced; what is left is a row of columns.

    Reference:
        Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan et al., 1979).
    """

    def __init__(self, axes: tuple[int, ...]) -> None:
        self._axes = axes
        self.count, self.mean, self._squares = 0, np.zeros(1), np.zeros(1)
        self.low, self.high = np.full(1, np.inf), np.full(1, -np.inf)

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self._squares / self.count)

    def add(self, chunk: np.ndarray) -> None:
        chunk = chunk.astype(np.float64)
        mean = chunk.mean(self._axes, keepdims=True)
        squares = np.square(chunk - mean).sum(self._axes).ravel()
        low, high, mean = chunk.min(self._axes).ravel(), chunk.max(self._axes).ravel(), mean.ravel()
        count = chunk.size // mean.size
        total, difference = self.count + count, mean - self.mean
        self._squares = self._squares + squares + difference**2 * (self.count * count / total)
        self.mean = self.mean + difference * (count / total)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.count = total


def measure(
    chunks: Iterable[np.ndarray], shape: tuple[int, ...], standardize: str, dtype: str, source: str
) -> Scaling:
    """The scaling that standardizes a training set.

    Args:
        chunks: The training set in the user's units, arrays (n, *shape).
        shape: Of a sample: (D,) for points, else channels first.
        standardize: "auto" has one number per column of points, and one for everything else; "per_channel"
            has one per column or channel; "none" leaves the data as they are.
        dtype: Of the numbers in the user's units.
        source: What to call the data in a message.

    Raises:
        UserError: If all values of a column, or of all data, are the same.
    """
    each = standardize == "per_channel" or len(shape) == 1
    axes = (0, *range(2, len(shape) + 1)) if each else tuple(range(len(shape) + 1))
    moments = Moments(axes)
    for chunk in chunks:
        moments.add(chunk)
    _refuse_constants(moments, shape, each, dtype, source)
    if standardize == "none":
        return Scaling(dtype=dtype)
    return Scaling(None, tuple(moments.mean.tolist()), tuple(moments.std.tolist()), dtype)


def _refuse_constants(moments: Moments, shape: tuple[int, ...], each: bool, dtype: str, source: str) -> None:
    """A constant has no density: a model of it has an infinite likelihood, and no scale to bring to 1."""
    std, low, high = moments.std, moments.low, moments.high
    rounding = (
        8 * np.finfo(dtype).eps * np.maximum(abs(low), abs(high))
    )  # what sums of equal numbers differ by
    constant = np.flatnonzero((high - low <= rounding) | ~(std > np.finfo(np.float64).tiny))
    if not len(constant):
        return
    if not each:
        raise UserError(f"{source} is constant, all its numbers are {low[0]:g}: there is nothing to learn")
    kind = "column" if len(shape) == 1 else "channel"
    listed = ", ".join(f"{kind} {k} is always {low[k]:g}" for k in constant[:10])
    more = f" and {len(constant) - 10} more" if len(constant) > 10 else ""
    raise UserError(
        f"{source} has constant {kind}s, counted from 0 ({listed}{more}), which have no density: remove them"
    )
