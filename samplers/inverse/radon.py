"""The Radon transform (CT): integrals over the strips that the cells of a detector see.

At angle θ a square pixel of side 1 casts a shadow on the detector that is the convolution of two boxes, whose
widths a >= b are |cos θ| and |sin θ|. A cell of width 1 measures the shadow's integral over itself: with
G(v) the integral of the shadow up to v, and u the distance of the cell's centre from the pixel's,

    A[cell, pixel] = G(u + 1/2) - G(u - 1/2),
    G(v) = [(v + (a+b)/2)_+² - (v + (a-b)/2)_+² - (v - (a-b)/2)_+² + (v - (a+b)/2)_+²]/(2ab).

The entries of each pixel sum to 1 at every angle where the detector covers its shadow.

Reference:
    Principles of Computerized Tomographic Imaging (Kak & Slaney, 1988), Chapter 7: strip integrals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from score_diffusion.samplers.inverse.operators import MatrixOperator
from score_diffusion.sde_lib import InputError


class Radon(MatrixOperator):
    """Parallel-beam CT of square images, by its exact matrix: for images up to about 64x64.

    Args:
        size: Side N of the images, samples of shape (1, N, N).
        angles: Number of angles, evenly over [0, π), or the angles in radians.
        cells: Cells of the detector, of a pixel's width; None for as many as cover the diagonal.

    A measurement has shape (1, angles, cells). At angle 0 the rays run along the columns.

    Raises:
        InputError: If size, angles or cells are not positive.
    """

    def __init__(self, size: int, angles: int | Sequence[float], cells: int | None = None) -> None:
        if isinstance(angles, int):
            angles = [math.pi * k / angles for k in range(angles)]
        cells = math.ceil(math.sqrt(2) * size) if cells is None else cells
        if size < 1 or len(angles) < 1 or cells < 1:
            raise InputError(
                f"size, angles and cells must be positive, got {size}, {len(angles)} angles and {cells}"
            )
        self.angles = tuple(float(a) for a in angles)
        rows = [_projection(size, angle, cells) for angle in self.angles]
        super().__init__(torch.cat(rows), (1, size, size), (1, len(self.angles), cells))


def _projection(size: int, angle: float, cells: int) -> Tensor:
    """The rows of the matrix at one angle, shape (cells, size²)."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(-place, place, indexing="ij")  # the first row is the top
    centre = (x * math.cos(angle) + y * math.sin(angle)).flatten()  # (size²,)
    cell = torch.arange(cells, dtype=torch.float64) - (cells - 1) / 2
    u = cell[:, None] - centre  # (cells, size²)
    wide, narrow = sorted((abs(math.cos(angle)), abs(math.sin(angle))), reverse=True)
    return _shadow(u + 0.5, wide, narrow) - _shadow(u - 0.5, wide, narrow)


def _shadow(v: Tensor, a: float, b: float) -> Tensor:
    """G(v), the integral of the pixel's shadow up to v, for a >= b."""
    half = (a + b) / 2
    v = v.clamp(-half, half)  # G is 0 below and 1 above: without large squares no digits cancel
    if b < 1e-6:  # rays along an axis: one box
        return ((v + a / 2) / a).clamp(0, 1)
    corners = (v + half, v + (a - b) / 2, v - (a - b) / 2)
    first, second, third = (c.clamp_min(0).square() for c in corners)
    return (first - second - third) / (2 * a * b)
