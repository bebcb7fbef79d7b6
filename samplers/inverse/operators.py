"""Measurement operators: y = A(x) + σ_y z, z ~ N(0, I).

    Operator             y = A(x), any function; methods that differentiate through A need no more
    LinearOperator       also the adjoint, <A x, y> = <x, Aᵀ y>, and the matrix
    operator.svd()       where there is a fast one, the thin decomposition A = U diag(s) Vᵀ

Shapes are (B, *input_shape) and (B, *output_shape). The measurement of a sample does not depend on the batch
that it stands in, bit for bit. The numbers of an operator are kept in float64 and used in the dtype and on
the device of x.

Reference:
    Denoising Diffusion Restoration Models (Kawar et al., 2022), https://arxiv.org/abs/2201.11793: Appendix D,
        memory-efficient decompositions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from score_diffusion.sde_lib import InputError, SampleNoise, generator_for

Shape = tuple[int, ...]


def batch_shape(shape: Shape) -> str:
    """A shape with the batch in front, as messages show it."""
    return f"(B, {', '.join(map(str, shape))})"


def checked_shape(shape: Sequence[int], what: str = "input_shape") -> Shape:
    """The shape as a tuple.

    Raises:
        InputError: If it is not one or more positive integers.
    """
    shape = tuple(shape)
    if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        raise InputError(
            f"{what} must be one or more positive integers, the shape of one sample, got {shape}"
        )
    return shape


class Operator(ABC):
    """A function A from samples to measurements.

    Args:
        input_shape: Shape of a sample.
        output_shape: Shape of a measurement.
    """

    def __init__(self, input_shape: Sequence[int], output_shape: Sequence[int]) -> None:
        self.input_shape = checked_shape(input_shape)
        self.output_shape = checked_shape(output_shape, "output_shape")

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor:
        """A(x) of x, whose shape is right."""

    def __call__(self, x: Tensor) -> Tensor:
        """The noiseless measurement A(x), shape (B, *output_shape), of x, shape (B, *input_shape).

        Raises:
            InputError: If x has another shape.
        """
        return self._forward(self._checked(x, self.input_shape, "measures samples"))

    def measure(self, x: Tensor, sigma_y: float, seed: int = 0, first: int = 0) -> Tensor:
        """A noisy measurement A(x) + σ_y z; the noise of sample k depends on (seed, first + k) only.

        Raises:
            InputError: If x has another shape, or sigma_y is negative.
        """
        if not sigma_y >= 0:
            raise InputError(f"sigma_y must be >= 0, the standard deviation of the noise, got {sigma_y}")
        y = self(x)
        noise = SampleNoise(seed, first, y.shape, y.device, y.dtype, purpose="measurement")
        return y + sigma_y * noise.normal()

    def _checked(self, x: Tensor, shape: Shape, does: str) -> Tensor:
        if x.shape[1:] != shape or x.ndim == 0:
            raise InputError(
                f"{type(self).__name__} {does} of shape {batch_shape(shape)}, got {tuple(x.shape)}"
            )
        return x

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A⁺ y with A(A⁺ A(x)) = A(x), shape (B, *input_shape), of y, shape (B, *output_shape).

        Raises:
            InputError: If y has another shape, or the operator has no pseudo-inverse.
        """
        raise InputError(f"{type(self).__name__} has no pseudo-inverse: use DPS or the twisted sampler")

    def svd(self) -> SVD:
        """The thin singular value decomposition.

        Raises:
            InputError: If the operator has no fast one.
        """
        raise InputError(f"{type(self).__name__} has no singular value decomposition: use a linear operator")


class LinearOperator(Operator):
    """A linear A."""

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y of y, whose shape is right."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, shape (B, *input_shape), of y, shape (B, *output_shape).

        Raises:
            InputError: If y has another shape.
        """
        return self._adjoint(self._checked(y, self.output_shape, "has measurements"))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A⁺ y, the smallest x that fits y best, shape (B, *input_shape).

        Raises:
            InputError: If y has another shape, or the operator has no fast decomposition.
        """
        return self.svd().pseudo_inverse(self._checked(y, self.output_shape, "has measurements"))

    def matrix(self) -> Tensor:
        """The matrix of A over flattened samples, shape (M, D), float64: for small operators."""
        D = math.prod(self.input_shape)
        columns = self(torch.eye(D, dtype=torch.float64).reshape(D, *self.input_shape))
        return columns.flatten(1).T.contiguous()

    def dense(self) -> MatrixOperator:
        """The same operator by its matrix, which always has a decomposition: for small operators."""
        return MatrixOperator(self.matrix(), self.input_shape, self.output_shape)

    def svd(self) -> SVD:
        """The thin singular value decomposition.

        Raises:
            InputError: If the operator has no fast one.
        """
        raise InputError(
            f"this {type(self).__name__} has no fast singular value decomposition: use operator.dense() "
            "where the matrix fits into memory"
        )


@dataclass(frozen=True)
class SVD:
    """The thin decomposition A = U diag(s) Vᵀ: UᵀU = VᵀV = I, s > 0."""

    s: Tensor
    """Singular values, shape (R,), float64, in any order."""
    U: Callable[[Tensor], Tensor]
    """(B, R) -> (B, *output_shape)."""
    Ut: Callable[[Tensor], Tensor]
    """(B, *output_shape) -> (B, R)."""
    V: Callable[[Tensor], Tensor]
    """(B, R) -> (B, *input_shape)."""
    Vt: Callable[[Tensor], Tensor]
    """(B, *input_shape) -> (B, R)."""

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A⁺ y = V diag(1/s) Uᵀ y, shape (B, *input_shape)."""
        return self.V(self.Ut(y) / self.s.to(y))

    def project(self, x: Tensor) -> Tensor:
        """A⁺ A x = V Vᵀ x, the part of x that A sees, shape (B, *input_shape)."""
        return self.V(self.Vt(x))

    def solve(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """(a A Aᵀ + b I)⁻¹ v; the pseudo-inverse where b = 0.

        Args:
            v: Shape (B, *output_shape).
            a: Positive numbers, shape (B,).
            b: Numbers >= 0, shape (B,).

        Returns:
            The solution, shape (B, *output_shape).
        """
        a, b = a.to(v)[:, None], b.to(v)[:, None]
        c = self.Ut(v)  # (B, R)
        s2 = self.s.to(v).square()
        inside = c / (a * s2 + b)
        # Outside the range of A the matrix is b I: v/b there is U-free, added as (v - U Uᵀ v)/b.
        outside = torch.where(b > 0, 1 / b.clamp_min(torch.finfo(v.dtype).tiny), 0.0)
        wide = outside.reshape(-1, *(1,) * (v.ndim - 1))
        return self.U(inside - outside * c) + wide * v


class Cast:
    """A float64 tensor in the dtype and on the device of others, converted once for each."""

    def __init__(self, value: Tensor) -> None:
        self.value = value.double()
        self._converted: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """The tensor, ready to combine with x."""
        key = (x.device, x.dtype)
        if key not in self._converted:
            self._converted[key] = self.value.to(x)
        return self._converted[key]


def multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix @ x for each row of x: (M, D), (B, D) -> (B, M), the same bits in every batch.

    A product of two matrices would sum in an order that depends on the size of the batch and the place in it.
    """
    if matrix.numel() <= 4096:
        return torch.cat([(rows[:, None] * matrix).sum(-1) for rows in x.split(1024)])
    return torch.stack([matrix @ row.clone() for row in x])  # cloned: aligned alike in memory


def in_double(transform: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """transform(x) computed in double precision, in the precision of x.

    A Fourier transform sums in an order that depends on the size of the batch. In double precision this
    leaves no trace in the float32 result: it has the same bits in every batch.
    """
    wide = transform(x.to(torch.complex128 if x.is_complex() else torch.float64))
    if x.dtype not in (torch.float32, torch.complex64):
        return wide
    return wide.to(torch.complex64 if wide.is_complex() else torch.float32)


class MatrixOperator(LinearOperator):
    """A matrix over the flattened sample.

    Args:
        matrix: Real, shape (M, D).
        input_shape: Shape of a sample, of D numbers; None for (D,).
        output_shape: Shape of a measurement, of M numbers; None for (M,).

    Raises:
        InputError: If the matrix is not real and two-dimensional, or does not fit the shapes.
    """

    def __init__(
        self,
        matrix: Tensor,
        input_shape: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
    ) -> None:
        if matrix.ndim != 2 or matrix.is_complex():
            raise InputError(
                f"matrix must be real of shape (M, D), got {tuple(matrix.shape)} of {matrix.dtype}"
            )
        M, D = matrix.shape
        super().__init__(input_shape or (D,), output_shape or (M,))
        if (math.prod(self.output_shape), math.prod(self.input_shape)) != (M, D):
            raise InputError(
                f"a matrix of shape {(M, D)} maps {D} numbers to {M}, but the shapes are {self.input_shape} "
                f"and {self.output_shape}"
            )
        self._matrix = Cast(matrix)

    def _forward(self, x: Tensor) -> Tensor:
        return multiply(self._matrix.like(x), x.flatten(1)).reshape(-1, *self.output_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        return multiply(self._matrix.like(y).T, y.flatten(1)).reshape(-1, *self.input_shape)

    def matrix(self) -> Tensor:
        """The matrix, shape (M, D), float64."""
        return self._matrix.value

    @cached_property
    def _factors(self) -> tuple[Cast, Tensor, Cast]:
        """U (M, R), s (R,) and V (D, R), without the singular values that are rounding errors."""
        U, s, Vh = torch.linalg.svd(self.matrix(), full_matrices=False)
        kept = s > s.max() * max(self.matrix().shape) * torch.finfo(s.dtype).eps
        return Cast(U[:, kept]), s[kept], Cast(Vh[kept].T)

    def svd(self) -> SVD:
        """The thin singular value decomposition, computed once.

        Raises:
            InputError: If the matrix is zero.
        """
        U, s, V = self._factors
        if len(s) == 0:
            raise InputError("the matrix is zero: it measures nothing")
        out, shape = self.output_shape, self.input_shape
        return SVD(
            s,
            U=lambda c: multiply(U.like(c), c).reshape(-1, *out),
            Ut=lambda y: multiply(U.like(y).T, y.flatten(1)),
            V=lambda c: multiply(V.like(c), c).reshape(-1, *shape),
            Vt=lambda x: multiply(V.like(x).T, x.flatten(1)),
        )


class RandomProjection(MatrixOperator):
    """Random measurements, those of compressed sensing: M numbers, each a combination of all elements.

    The rows of the matrix are orthonormal, drawn uniformly: singular values are 1.

    Args:
        input_shape: Shape of a sample, of D numbers.
        measurements: M, from 1 to D.
        seed: Seed of the matrix.

    Raises:
        InputError: If there are more measurements than numbers, or none.
    """

    def __init__(self, input_shape: Sequence[int], measurements: int, seed: int = 0) -> None:
        D = math.prod(checked_shape(input_shape))
        if not 1 <= measurements <= D:
            raise InputError(f"measurements must lie in 1..{D}, the numbers of a sample, got {measurements}")
        generator = generator_for(seed, "RandomProjection")
        gaussian = torch.randn(D, measurements, generator=generator, dtype=torch.float64)
        Q, R = torch.linalg.qr(gaussian)
        super().__init__((Q * R.diagonal().sign()).T, input_shape)  # the signs make the law uniform


class FunctionOperator(Operator):
    """Any differentiable function of a batch, such as the user's own.

    Args:
        function: From x, shape (B, *input_shape), to measurements of B samples, one independent of another.
        input_shape: Shape of a sample.

    Raises:
        InputError: If the function does not return one tensor with the batch in front.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], input_shape: Sequence[int]) -> None:
        shape = checked_shape(input_shape)
        y = function(torch.zeros(2, *shape))
        if not isinstance(y, Tensor) or y.ndim < 2 or len(y) != 2 or not y.is_floating_point():
            came = f"{tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise InputError(
                "the function must return a real tensor of shape (B, *output_shape), for 2 samples it "
                f"returned {came}"
            )
        super().__init__(shape, y.shape[1:])
        self._function = function

    def _forward(self, x: Tensor) -> Tensor:
        return self._function(x)


class LinearFunctionOperator(FunctionOperator, LinearOperator):
    """A linear function of a batch; its adjoint is found by differentiation.

    Args:
        function: From x, shape (B, *input_shape), to measurements of B samples, one independent of another.
        input_shape: Shape of a sample.

    Raises:
        InputError: If the function does not return one tensor with the batch in front, or is not linear.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], input_shape: Sequence[int]) -> None:
        super().__init__(function, input_shape)
        a, b = torch.randn(
            2, 1, *self.input_shape, dtype=torch.float64, generator=generator_for(0, "LinearFunctionOperator")
        )
        combined, separate = self(3 * a - 2 * b), 3 * self(a) - 2 * self(b)
        if not torch.allclose(combined, separate, rtol=1e-4, atol=1e-4 * separate.abs().max().item()):
            raise InputError(
                "the function is not linear, f(3a - 2b) differs from 3f(a) - 2f(b): use FunctionOperator"
            )

    def _adjoint(self, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.zeros(len(y), *self.input_shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (gradient,) = torch.autograd.grad(self._function(x), x, y, create_graph=y.requires_grad)
        return gradient
