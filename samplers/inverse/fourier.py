"""Undersampled Fourier measurements (MRI): some frequencies of each channel.

    y = (Re F x, Im F x) at the sampled frequencies, F the unitary Fourier transform over the spatial axes

The spectrum of a real x is symmetric, (F x)_{-ω} = conj (F x)_ω: the frequencies ω and -ω measure the same
two numbers. Over the real Fourier basis, c_ω = √2 Re and s_ω = √2 Im of one frequency of each pair and
c_ω = Re where ω = -ω, the measurement is diagonal. Its singular values are √(n/2) for a pair of which n = 1
or 2 are sampled, and 1 where ω = -ω.

Complex images are two channels, real and imaginary part; for them F is unitary and all singular values are 1.

References:
    Compressed Sensing MRI (Lustig et al., 2008), https://doi.org/10.1109/MSP.2007.914728.
    Solving Inverse Problems in Medical Imaging with Score-Based Generative Models (Song et al., 2022),
        https://arxiv.org/abs/2111.08005: A = P(Λ) T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from score_diffusion.samplers.inverse.operators import SVD, Cast, LinearOperator, checked_shape, in_double
from score_diffusion.sde_lib import InputError, generator_for


class Fourier(LinearOperator):
    """Undersampled Fourier measurements.

    Args:
        sampled: The sampled frequencies, booleans of shape `spatial`, the frequency 0 first as in
            `torch.fft.fftn`.
        channels: Channels of a sample: (channels, *spatial).
        complex_input: Whether channels 2c and 2c + 1 are the real and imaginary part of a complex image.

    A measurement has shape (channels, 2, M), or (channels/2, 2, M) for complex images: the real and imaginary
    parts at the M sampled frequencies, in the order of `sampled.nonzero()`.

    Raises:
        InputError: If no frequency is sampled, or the channels of complex images are not in pairs.
    """

    def __init__(self, sampled: Tensor, channels: int = 1, complex_input: bool = False) -> None:
        spatial = checked_shape(sampled.shape, "the shape of sampled")
        if not sampled.any():
            raise InputError("no frequency is sampled: nothing is measured")
        if channels < 1 or (complex_input and channels % 2):
            raise InputError(
                f"channels must be positive, and even for complex images (real, imaginary), got {channels}"
            )
        self.sampled = sampled != 0
        self.complex_input = complex_input
        self._index = self.sampled.flatten().nonzero()[:, 0]  # (M,)
        self._spatial = spatial
        images = channels // 2 if complex_input else channels
        super().__init__((channels, *spatial), (images, 2, len(self._index)))

    def _images(self, x: Tensor) -> Tensor:
        """(B, channels, *spatial) as (B, images, *spatial), complex where images are."""
        if not self.complex_input:
            return x
        pairs = x.reshape(len(x), -1, 2, *self._spatial)
        return torch.complex(pairs[:, :, 0], pairs[:, :, 1])

    def _transform(self, x: Tensor) -> Tensor:
        """The whole spectrum, (B, images, numbers)."""
        axes = tuple(range(-len(self._spatial), 0))
        return in_double(partial(torch.fft.fftn, dim=axes, norm="ortho"), self._images(x)).flatten(2)

    def _back(self, spectrum: Tensor) -> Tensor:
        """The inverse of `_transform`; for real images, its real part."""
        axes = tuple(range(-len(self._spatial), 0))
        images = in_double(
            partial(torch.fft.ifftn, dim=axes, norm="ortho"), spectrum.unflatten(2, self._spatial)
        )
        if not self.complex_input:
            return images.real
        return torch.stack([images.real, images.imag], 2).flatten(1, 2)

    def _forward(self, x: Tensor) -> Tensor:
        at = self._transform(x)[..., self._index.to(x.device)]
        return torch.stack([at.real, at.imag], 2)

    def _adjoint(self, y: Tensor) -> Tensor:
        at = torch.complex(y[:, :, 0].contiguous(), y[:, :, 1].contiguous())  # (B, images, M)
        return self._back(self._spread(at, self._index))

    def _spread(self, values: Tensor, index: Tensor) -> Tensor:
        """Values at some frequencies, zeros at the others: (B, images, n) -> (B, images, numbers)."""
        full = values.new_zeros(*values.shape[:2], math.prod(self._spatial))
        return full.index_copy(2, index.to(values.device), values)

    def svd(self) -> SVD:
        """The thin singular value decomposition."""
        if self.complex_input:
            images, _, M = self.output_shape
            return SVD(
                torch.ones(2 * images * M, dtype=torch.float64),
                U=lambda c: c.reshape(-1, *self.output_shape),
                Ut=lambda y: y.flatten(1),
                V=lambda c: self._adjoint(c.reshape(-1, *self.output_shape)),
                Vt=lambda x: self._forward(x).flatten(1),
            )
        return _RealSVD(self).svd()


class _RealSVD:
    """The decomposition for real images. Coefficients are cosines, then sines: (B, images, C + S)."""

    def __init__(self, operator: Fourier) -> None:
        self._operator = operator
        index, spatial = operator._index, operator._spatial
        coordinates = torch.stack(torch.unravel_index(index, spatial))  # (axes, M)
        lengths = torch.tensor(spatial)[:, None]
        mirrored = _flat_index((-coordinates) % lengths, spatial)
        # Of each pair of frequencies the smaller index stands for both.
        pair, place = torch.minimum(index, mirrored).unique(return_inverse=True)  # (C,), (M,)
        alone = torch.zeros(len(pair), dtype=torch.bool).index_put((place,), index == mirrored)
        members = place.bincount().double()  # (C,), 1 or 2
        self._pair, self._place = pair, place
        self._sines = (~alone).nonzero()[:, 0]  # indices into pair
        self._turned = torch.where(index == pair[place], 1.0, -1.0)  # the sign of Im where -ω is measured
        self._basis = Cast((2.0 - alone.double()).sqrt())  # of Re and Im in c_ω and s_ω
        s = torch.where(alone, 1.0, (members / 2).sqrt())
        # Of U: c_ω is spread over its members with norm 1.
        self._spread = Cast(1 / members.sqrt())
        self._s = torch.cat([s, s[self._sines]])

    def svd(self) -> SVD:
        images = self._operator.output_shape[0]
        return SVD(self._s.repeat(images), self._U, self._Ut, self._V, self._Vt)

    def _split(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (B, R) as cosines (B, images, C) and sines over all pairs, 0 where there is none."""
        c = c.reshape(len(c), self._operator.output_shape[0], -1)
        cosines, sines = c[..., : len(self._pair)], c[..., len(self._pair) :]
        return cosines, torch.zeros_like(cosines).index_copy(2, self._sines.to(c.device), sines)

    def _join(self, cosines: Tensor, sines: Tensor) -> Tensor:
        return torch.cat([cosines, sines[..., self._sines.to(sines.device)]], 2).flatten(1)

    def _Vt(self, x: Tensor) -> Tensor:
        at = self._operator._transform(x)[..., self._pair.to(x.device)] * self._basis.like(x)
        return self._join(at.real, at.imag)

    def _V(self, c: Tensor) -> Tensor:
        cosines, sines = self._split(c)
        # Re <F v> over ω only: the real part of the inverse transform gives each pair its half.
        at = torch.complex(cosines, sines) * self._basis.like(c)
        return self._operator._back(self._operator._spread(at, self._pair))

    def _Ut(self, y: Tensor) -> Tensor:
        place = self._place.to(y.device)
        weight = self._spread.like(y)[place]
        cosines = y.new_zeros(*y.shape[:2], len(self._pair))
        sines = cosines.index_add(2, place, y[:, :, 1] * weight * self._turned.to(y))
        return self._join(cosines.index_add(2, place, y[:, :, 0] * weight), sines)

    def _U(self, c: Tensor) -> Tensor:
        cosines, sines = (part * self._spread.like(c) for part in self._split(c))
        place = self._place.to(c.device)
        return torch.stack([cosines[..., place], sines[..., place] * self._turned.to(c)], 2)


def _flat_index(coordinates: Tensor, shape: Sequence[int]) -> Tensor:
    flat = torch.zeros_like(coordinates[0])
    for axis, n in enumerate(shape):
        flat = flat * n + coordinates[axis]
    return flat


def column_sampling(height: int, width: int, acceleration: float, centre: int = 4, seed: int = 0) -> Tensor:
    """A Cartesian sampling pattern: whole columns of the spectrum, the lowest ones and random others.

    Args:
        height: Rows H.
        width: Columns W.
        acceleration: W over the number of sampled columns, at least 1.
        centre: Columns of the lowest frequencies that are always sampled.
        seed: Seed of the others.

    Returns:
        The pattern for `Fourier`, booleans of shape (H, W), the frequency 0 first.

    Raises:
        InputError: If the acceleration is below 1, or leaves fewer columns than the centre has.
    """
    if not acceleration >= 1:
        raise InputError(f"acceleration must be at least 1, got {acceleration}")
    columns = round(width / acceleration)
    if not 1 <= max(1, centre) <= columns:
        raise InputError(
            f"{columns} of {width} columns are sampled, fewer than the {max(1, centre)} of the centre: lower "
            "the acceleration or the centre"
        )
    # Sorted by frequency 0, 1, -1, 2, -2, ...
    order = torch.fft.fftfreq(width, 1 / width).abs().argsort(stable=True)
    generator = generator_for(seed, "column_sampling")
    others = centre + torch.randperm(width - centre, generator=generator)[: columns - centre]
    pattern = torch.zeros(height, width, dtype=torch.bool)
    pattern[:, order[torch.cat([torch.arange(centre), others])]] = True
    return pattern
