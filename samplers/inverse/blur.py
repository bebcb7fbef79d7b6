"""Blur: convolution with a kernel, at the borders circular or reflecting.

    y_i = Σ_j k_j x_{i + c - j},    c the kernel's centre, (n - 1)//2 along each axis

    circular     x repeats itself. A = F* diag(k̂) F with the unitary Fourier transform F. Its real
                 decomposition has the Hartley transform H = Re F - Im F for V, which is real, symmetric,
                 orthogonal and diagonalizes |A| = F* diag|k̂| F; U = F* diag(k̂/|k̂|) F V.
    reflecting   x is mirrored with its border element repeated (d c b a | a b c d | d c b a). The cosine
                 transform (DCT-II) diagonalizes A for kernels that equal their own mirror images; others have
                 no fast decomposition.

References:
    The discrete Hartley transform (Bracewell, 1983).
    The Discrete Cosine Transform (Strang, 1999), https://doi.org/10.1137/S0036144598336745: the DCT-II and
        its boundary condition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from score_diffusion.samplers.inverse.operators import SVD, Cast, LinearOperator, checked_shape, in_double
from score_diffusion.samplers.inverse.pixels import spatial_axes
from score_diffusion.sde_lib import InputError

BOUNDARIES = ("circular", "reflect")


def gaussian_kernel(size: int, std: float, dimensions: int = 2) -> Tensor:
    """A Gaussian kernel with `size` taps along each axis and sum 1, shape (size,) * dimensions, float64."""
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = (-0.5 * (offsets / std).square()).exp()
    kernel = line
    for _ in range(dimensions - 1):
        kernel = kernel[..., None] * line
    return kernel / kernel.sum()


def uniform_kernel(size: int, dimensions: int = 2) -> Tensor:
    """Equal weights that sum to 1, shape (size,) * dimensions, float64."""
    return torch.full((size,) * dimensions, float(size) ** -dimensions, dtype=torch.float64)


class Blur(LinearOperator):
    """Convolution of each channel with a kernel.

    Args:
        input_shape: Shape of a sample.
        kernel: One axis for each axis that it blurs, none longer than the sample's.
        boundary: "circular" or "reflect".
        axes: The axes of a sample to blur, from 0; None for all but the first, the channels, or for the only
            one.

    Raises:
        InputError: If the kernel does not fit the axes, or the boundary is unknown.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        kernel: Tensor,
        boundary: str = "reflect",
        axes: Sequence[int] | None = None,
    ) -> None:
        shape = checked_shape(input_shape)
        super().__init__(shape, shape)
        axes = spatial_axes(shape, axes)
        if boundary not in BOUNDARIES:
            raise InputError(f"boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
        lengths = [shape[a] for a in axes]
        if kernel.ndim != len(axes) or any(k > n for k, n in zip(kernel.shape, lengths, strict=True)):
            raise InputError(
                f"kernel must have {len(axes)} axes, none longer than the sample's {lengths}, got shape "
                f"{tuple(kernel.shape)}"
            )
        self.boundary = boundary
        self._axes = tuple(a + 1 for a in axes)  # of a batch
        self._lengths = lengths
        self._kernel = kernel.double()
        # The circular convolution runs over the mirrored sample where the border reflects.
        self._period = [2 * n if boundary == "reflect" else n for n in lengths]
        spectrum = torch.fft.fftn(_centred(self._kernel, self._period))
        self._spectrum = self._over_axes(spectrum)

    def _over_axes(self, values: Tensor) -> Tensor:
        """Values over the blurred axes, shaped to multiply a batch."""
        shape = [1] * (len(self.input_shape) + 1)
        for axis, n in zip(self._axes, values.shape, strict=True):
            shape[axis] = n
        return values.reshape(shape)

    def _filtered(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """The real circular convolution with a kernel of the given spectrum, along the blurred axes."""

        def convolve(x: Tensor) -> Tensor:
            transformed = torch.fft.fftn(x, dim=self._axes) * spectrum.to(x.device)
            return torch.fft.ifftn(transformed, dim=self._axes).real

        return in_double(convolve, x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.boundary == "circular":
            return self._filtered(x, self._spectrum)
        for axis in self._axes:
            x = torch.cat([x, x.flip(axis)], axis)
        x = self._filtered(x, self._spectrum)
        for axis, n in zip(self._axes, self._lengths, strict=True):
            x = x.narrow(axis, 0, n)
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
        if self.boundary == "circular":
            return self._filtered(y, self._spectrum.conj())
        for axis in self._axes:
            y = torch.cat([y, torch.zeros_like(y)], axis)
        y = self._filtered(y, self._spectrum.conj())
        for axis, n in zip(self._axes, self._lengths, strict=True):
            y = y.narrow(axis, 0, n) + y.narrow(axis, n, n).flip(axis)
        return y

    def svd(self) -> SVD:
        """The thin singular value decomposition.

        Raises:
            InputError: If the border reflects and the kernel differs from its mirror image along an axis.
        """
        return self._circular_svd() if self.boundary == "circular" else self._reflecting_svd()

    def _circular_svd(self) -> SVD:
        s = self._spectrum.abs().expand(1, *self.input_shape).flatten()
        phase = torch.where(self._spectrum.abs() > 0, self._spectrum / self._spectrum.abs(), 1.0)
        shape = self.input_shape

        def hartley(x: Tensor) -> Tensor:
            z = in_double(partial(torch.fft.fftn, dim=self._axes, norm="ortho"), x)
            return z.real - z.imag

        kept = _not_rounding(s)
        return SVD(
            s[kept],
            U=lambda c: self._filtered(hartley(_spread(c, kept, shape)), phase),
            Ut=lambda y: hartley(self._filtered(y, phase.conj())).flatten(1)[:, kept.to(y.device)],
            V=lambda c: hartley(_spread(c, kept, shape)),
            Vt=lambda x: hartley(x).flatten(1)[:, kept.to(x.device)],
        )

    def _reflecting_svd(self) -> SVD:
        for axis in range(self._kernel.ndim):
            if not torch.allclose(self._kernel, self._kernel.flip(axis)) or self._kernel.shape[axis] % 2 == 0:
                raise InputError(
                    "a blur with reflecting borders has a fast decomposition only for odd kernels that equal "
                    "their mirror images: use boundary='circular', or operator.dense() where the matrix fits "
                    "into memory"
                )
        # The eigenvalues are the spectrum over the mirrored sample, at the frequencies of the cosines.
        values = self._spectrum.real
        for axis, n in zip(self._axes, self._lengths, strict=True):
            values = values.narrow(axis, 0, n)
        signed = values.expand(1, *self.input_shape).flatten()
        kept = _not_rounding(signed.abs())
        sign, shape = Cast(signed[kept].sign()), self.input_shape

        def Vt(x: Tensor) -> Tensor:
            for axis in self._axes:
                x = dct(x, axis)
            return x.flatten(1)[:, kept.to(x.device)]

        def V(c: Tensor) -> Tensor:
            x = _spread(c, kept, shape)
            for axis in self._axes:
                x = inverse_dct(x, axis)
            return x

        return SVD(
            signed[kept].abs(), U=lambda c: V(sign.like(c) * c), Ut=lambda y: sign.like(y) * Vt(y), V=V, Vt=Vt
        )


def _centred(kernel: Tensor, lengths: Sequence[int]) -> Tensor:
    """The kernel with zeros up to the lengths, its centre at index 0."""
    padded = kernel.new_zeros(tuple(lengths))
    padded[tuple(slice(n) for n in kernel.shape)] = kernel
    return padded.roll([-((n - 1) // 2) for n in kernel.shape], tuple(range(kernel.ndim)))


def _not_rounding(s: Tensor) -> Tensor:
    """Indices of the singular values that are not rounding errors."""
    return (s > s.max() * len(s) * torch.finfo(s.dtype).eps).nonzero()[:, 0]


def _spread(c: Tensor, kept: Tensor, shape: Sequence[int]) -> Tensor:
    """Coefficients (B, R) at their places among those of all (B, *shape), zeros elsewhere."""
    full = c.new_zeros(len(c), math.prod(shape))
    return full.index_copy(1, kept.to(c.device), c).reshape(-1, *shape)


def _dct_twist(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """exp(-iπk/2n) for k = 0..n-1 and the weights that make the DCT-II orthonormal, shaped for the axis."""
    n = x.shape[axis]
    k = torch.arange(n, dtype=torch.float64, device=x.device)
    weight = torch.full_like(k, math.sqrt(2 / n))
    weight[0] = math.sqrt(1 / n)
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    return torch.polar(torch.ones_like(k), -math.pi * k / (2 * n)).reshape(shape), weight.reshape(shape)


def dct(x: Tensor, axis: int) -> Tensor:
    """The orthonormal DCT-II along an axis of a batch: C_k = w_k Σ_j x_j cos(πk(2j + 1)/2n)."""
    twist, weight = _dct_twist(x, axis)

    def transform(x: Tensor) -> Tensor:
        z = torch.fft.fft(torch.cat([x, x.flip(axis)], axis), dim=axis).narrow(axis, 0, x.shape[axis])
        return weight * (twist * z).real / 2

    return in_double(transform, x)


def inverse_dct(c: Tensor, axis: int) -> Tensor:
    """The inverse, which is the transpose: x_j = Σ_k w_k C_k cos(πk(2j + 1)/2n)."""
    twist, weight = _dct_twist(c, axis)
    n = c.shape[axis]

    def transform(c: Tensor) -> Tensor:
        z = torch.fft.ifft(weight * c * twist.conj(), n=2 * n, dim=axis)
        return 2 * n * z.real.narrow(axis, 0, n)

    return in_double(transform, c)
