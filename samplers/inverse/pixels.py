"""Operators that pick or average elements: inpainting, super-resolution, colorization.

    Mask         y = the known elements of x                          s = 1
    Downsample   y = averages over blocks of f^d elements             s = f^(-d/2)
    ToGrey       y = Σ_c w_c x_c over the channels                    s = ‖w‖

Each row of A touches elements of its own, so that A Aᵀ = s² I: the decomposition has U = I and Vᵀ = A/s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from score_diffusion.samplers.inverse.operators import SVD, Cast, LinearOperator, checked_shape
from score_diffusion.sde_lib import InputError


class OrthogonalRows(LinearOperator):
    """A linear operator with A Aᵀ = s² I.

    Args:
        input_shape: Shape of a sample.
        output_shape: Shape of a measurement.
        s: The one singular value.
    """

    def __init__(self, input_shape: Sequence[int], output_shape: Sequence[int], s: float) -> None:
        super().__init__(input_shape, output_shape)
        self._s = s

    def svd(self) -> SVD:
        """The thin singular value decomposition."""
        s = self._s
        return SVD(
            torch.full((math.prod(self.output_shape),), s, dtype=torch.float64),
            U=lambda c: c.reshape(-1, *self.output_shape),
            Ut=lambda y: y.flatten(1),
            V=lambda c: self._adjoint(c.reshape(-1, *self.output_shape)) / s,
            Vt=lambda x: self._forward(x).flatten(1) / s,
        )


class Mask(OrthogonalRows):
    """Inpainting: the elements where the mask is true, as a vector.

    Args:
        known: Booleans, or numbers of which 0 is false, that broadcast to input_shape: (1, H, W) masks all
            channels alike.
        input_shape: Shape of a sample; None for the mask's own.

    Raises:
        InputError: If the mask does not broadcast to input_shape, or no element is known.
    """

    def __init__(self, known: Tensor, input_shape: Sequence[int] | None = None) -> None:
        shape = checked_shape(known.shape if input_shape is None else input_shape)
        try:
            mask = (known != 0).expand(shape)
        except RuntimeError:
            raise InputError(
                f"the mask must broadcast to the shape of a sample, {shape}, got {tuple(known.shape)}"
            ) from None
        if not mask.any():
            raise InputError("the mask has no known element: nothing is measured")
        self.known = mask
        self._index = mask.flatten().nonzero()[:, 0]
        super().__init__(shape, (len(self._index),), 1.0)

    def _forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self._index.to(x.device)]

    def _adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), math.prod(self.input_shape))
        return x.index_copy(1, self._index.to(y.device), y).reshape(-1, *self.input_shape)


class Downsample(OrthogonalRows):
    """Super-resolution: averages over blocks of `factor` elements along each axis.

    Args:
        input_shape: Shape of a sample.
        factor: The factor f, which divides the lengths of the axes.
        axes: The axes of a sample along which to average, from 0; None for all but the first, the channels,
            or for the only one.

    Raises:
        InputError: If an axis does not exist, or its length is not a multiple of the factor.
    """

    def __init__(self, input_shape: Sequence[int], factor: int, axes: Sequence[int] | None = None) -> None:
        shape = checked_shape(input_shape)
        axes = spatial_axes(shape, axes)
        if not isinstance(factor, int) or factor < 1 or any(shape[a] % factor for a in axes):
            raise InputError(
                f"factor must be a positive integer that divides the lengths {[shape[a] for a in axes]}, "
                f"got {factor}"
            )
        small, blocks = [], []
        for axis, n in enumerate(shape):
            f = factor if axis in axes else 1
            small.append(n // f)
            blocks += [n // f, f]
        super().__init__(shape, small, factor ** (-len(axes) / 2))
        self.factor = factor
        self._blocks = blocks  # (n_1/f, f, n_2/f, f, ...)
        self._within = [2 * axis + 2 for axis in axes]
        self._mean = factor ** -len(axes)

    def _forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self._blocks).mean(self._within).reshape(-1, *self.output_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        for axis in range(len(self.input_shape)):
            y = y.unsqueeze(2 * axis + 2)
        return self._mean * y.expand(-1, *self._blocks).reshape(-1, *self.input_shape)


class ToGrey(OrthogonalRows):
    """Colorization: a weighted sum of the channels, the first axis of a sample.

    Args:
        input_shape: Shape of a sample, (C, ...).
        weights: The weights w, one for each channel; None for the mean. (0.299, 0.587, 0.114) is the luma of
            ITU-R BT.601, the grey of image libraries.

    Raises:
        InputError: If there is not one weight for each channel, or all are zero.
    """

    def __init__(self, input_shape: Sequence[int], weights: Sequence[float] | None = None) -> None:
        shape = checked_shape(input_shape)
        weights = [1 / shape[0]] * shape[0] if weights is None else list(weights)
        if len(weights) != shape[0] or not any(weights):
            raise InputError(
                f"weights must be {shape[0]} numbers, one for each channel, not all zero, got {weights}"
            )
        w = torch.tensor(weights, dtype=torch.float64)
        super().__init__(shape, (1, *shape[1:]), w.norm().item())
        self._weights = Cast(w.reshape(-1, *(1,) * (len(shape) - 1)))

    def _forward(self, x: Tensor) -> Tensor:
        return (self._weights.like(x) * x).sum(1, keepdim=True)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._weights.like(y) * y


def spatial_axes(shape: tuple[int, ...], axes: Sequence[int] | None) -> tuple[int, ...]:
    """The axes of a sample that an operator works along: all but the channels unless given.

    Raises:
        InputError: If they are not distinct axes of the shape.
    """
    if axes is None:
        return tuple(range(min(1, len(shape) - 1), len(shape)))
    axes = tuple(axes)
    if not axes or len(set(axes)) != len(axes) or not all(0 <= a < len(shape) for a in axes):
        raise InputError(
            f"axes must be distinct numbers in 0..{len(shape) - 1} for samples of {shape}, got {axes}"
        )
    return axes
