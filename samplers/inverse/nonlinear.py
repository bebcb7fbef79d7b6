"""Non-linear measurements, for the methods that only differentiate through A.

    JPEG-like    y = q round(C x/q), C the cosine transform of 8x8 blocks, q the quantization table
    phase        y = |F x|, the magnitudes of the Fourier transform of the zero-padded image

Rounding has the derivative 0 wherever it has one; here it is differentiated as if it were the identity
(straight-through).

References:
    Estimating or Propagating Gradients Through Stochastic Neurons (Bengio et al., 2013),
        https://arxiv.org/abs/1308.3432: straight-through.
    Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023),
        https://openreview.net/forum?id=9_gsMA8MRKQ: JPEG's decoder as a pseudo-inverse.
    Phase Retrieval with Application to Optical Imaging (Shechtman et al., 2015),
        https://arxiv.org/abs/1402.7350: oversampled magnitudes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from score_diffusion.samplers.inverse.blur import dct, inverse_dct
from score_diffusion.samplers.inverse.operators import Cast, Operator, checked_shape, in_double
from score_diffusion.sde_lib import InputError

# fmt: off
LUMINANCE = torch.tensor([  # JPEG standard (ITU-T T.81), Table K.1, for grey levels 0..255
    [16, 11, 10, 16,  24,  40,  51,  61],
    [12, 12, 14, 19,  26,  58,  60,  55],
    [14, 13, 16, 24,  40,  57,  69,  56],
    [14, 17, 22, 29,  51,  87,  80,  62],
    [18, 22, 37, 56,  68, 109, 103,  77],
    [24, 35, 55, 64,  81, 104, 113,  92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103,  99],
], dtype=torch.float64)
# fmt: on


class JPEGQuantization(Operator):
    """JPEG's loss: each 8x8 block of each channel, cosine-transformed and quantized with the luminance table.

    Args:
        input_shape: (C, H, W) of images in [-1, 1], H and W multiples of 8.
        quality: JPEG's quality, 1..100.

    Raises:
        InputError: If the shape is not one of such images, or the quality lies outside 1..100.
    """

    def __init__(self, input_shape: Sequence[int], quality: int = 10) -> None:
        shape = checked_shape(input_shape)
        if len(shape) != 3 or shape[1] % 8 or shape[2] % 8:
            raise InputError(f"input_shape must be (C, H, W) with H and W multiples of 8, got {shape}")
        if not 1 <= quality <= 100:
            raise InputError(f"quality must lie in 1..100, got {quality}")
        super().__init__(shape, shape)
        scale = 5000 / quality if quality < 50 else 200 - 2 * quality  # of libjpeg
        table = ((LUMINANCE * scale + 50) / 100).floor().clamp(1, 255)
        self._steps = Cast(table / 127.5)  # the images' 255 grey levels are 2 wide

    def _blocks(self, x: Tensor) -> Tensor:
        C, H, W = self.input_shape
        return x.reshape(-1, C, H // 8, 8, W // 8, 8).transpose(3, 4)  # (B, C, H/8, W/8, 8, 8)

    def _forward(self, x: Tensor) -> Tensor:
        coefficients = dct(dct(self._blocks(x), 4), 5)
        steps = self._steps.like(x)
        rounded = (coefficients / steps).round() * steps
        return self._flat(coefficients + (rounded - coefficients).detach())

    def _flat(self, blocks: Tensor) -> Tensor:
        return blocks.transpose(3, 4).reshape(-1, *self.input_shape)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """The decoded images, shape (B, C, H, W): A(A⁺ y) = y for every y = A(x).

        Raises:
            InputError: If y has another shape.
        """
        blocks = self._blocks(self._checked(y, self.output_shape, "has measurements"))
        return self._flat(inverse_dct(inverse_dct(blocks, 4), 5))


class PhaseRetrieval(Operator):
    """Magnitudes of the Fourier transform of each channel, zero-padded to `oversampling` times its lengths.

    Args:
        input_shape: (C, *spatial).
        oversampling: Integer factor, 2 for a solution that is unique up to shifts, mirroring and sign.

    Raises:
        InputError: If the shape has no spatial axis, or the factor is not a positive integer.
    """

    def __init__(self, input_shape: Sequence[int], oversampling: int = 2) -> None:
        shape = checked_shape(input_shape)
        if len(shape) < 2 or not isinstance(oversampling, int) or oversampling < 1:
            raise InputError(
                "phase retrieval needs samples of shape (C, *spatial) and a positive integer oversampling, "
                f"got {shape} and {oversampling}"
            )
        self._padded = tuple(oversampling * n for n in shape[1:])
        super().__init__(shape, (shape[0], *self._padded))

    def _forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        return in_double(lambda x: torch.fft.fftn(x, s=self._padded, dim=axes, norm="ortho").abs(), x)
