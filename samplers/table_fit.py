"""What fits of a table's coefficients share: its rows in x̃ and σ̃, coordinates in which they change, and
Levenberg-Marquardt in these.

In x̃ = x/α and σ̃ = σ/α, in which all SDEs are one, a step is

    x̃_s = keep x̃_t + Σ_j weights_j v_{-j} (+ std z),    v = a x̃ + b x̂_0(x̃, σ̃).

Reference:
    An Algorithm for Least-Squares Estimation of Nonlinear Parameters (Marquardt, 1963).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from score_diffusion.samplers.linear import GridCoefficients, Stage

DAMPING = 1e-2  # of the first iteration, relative to the mean diagonal element


@dataclass(frozen=True)
class Row:
    """A step in x̃ and σ̃."""

    value: tuple[float, float]
    """(a, b) of v = a x̃ + b x̂_0."""
    keep: float
    weights: tuple[float, ...]
    """The newest value first."""
    std: float = 0.0
    """Of the noise, in methods for the SDE."""

    def coefficients(self) -> Tensor:
        """(keep, weights), float64, shape (k,)."""
        return torch.tensor([self.keep, *self.weights], dtype=torch.float64)

    def with_coefficients(self, c: Tensor) -> Row:
        """The same value and noise with other (keep, weights), shape (k,)."""
        return replace(self, keep=c[0].item(), weights=tuple(c[1:].tolist()))


def rows_of(at: GridCoefficients, stages: Sequence[Stage]) -> list[Row]:
    """The stages of a method with one evaluation per step, in x̃ and σ̃."""
    alpha, sigma = at.alpha.tolist(), at.sigma.tolist()
    rows = []
    for i, stage in enumerate(stages):
        p, q = stage.value
        value = alpha[i] * (p - q / sigma[i] ** 2), q * alpha[i] / sigma[i] ** 2
        weights = tuple(w / alpha[i + 1] for w in stage.weights)
        rows.append(Row(value, stage.keep * alpha[i] / alpha[i + 1], weights, stage.std / alpha[i + 1]))
    return rows


def stages_of(at: GridCoefficients, rows: Sequence[Row]) -> list[Stage]:
    """The inverse of `rows_of`."""
    alpha, sigma, t = at.alpha.tolist(), at.sigma.tolist(), at.t.tolist()
    stages = []
    for i, row in enumerate(rows):
        a, b = row.value
        value = (a + b) / alpha[i], b * sigma[i] ** 2 / alpha[i]
        weights = tuple(w * alpha[i + 1] for w in row.weights)
        keep, std = row.keep * alpha[i + 1] / alpha[i], row.std * alpha[i + 1]
        stages.append(Stage(t[i], value, keep, weights, std))
    return stages


@dataclass(frozen=True)
class Coordinates:
    """The coefficients of all steps, c_i of shape (k_i,), as functions of one vector z: c_i + B_i z_i."""

    first: Sequence[Tensor]
    """The c_i at z = 0."""
    bases: Sequence[Tensor]
    """The B_i, each of shape (k_i, N_i)."""

    @classmethod
    def within_constants(
        cls, first: Sequence[Tensor], ones: Sequence[Tensor], sizes: Sequence[Tensor]
    ) -> Coordinates:
        """Coordinates of the plane in which constants stay exact, N_i = k_i - 1.

        Args:
            first: Coefficients that are exact for constants.
            ones: What they multiply where x̃ = x̂_0 = 1.
            sizes: The sizes of what they multiply, by which a coordinate is scaled.
        """
        return cls(first, [plane(o / size) / size[:, None] for o, size in zip(ones, sizes, strict=True)])

    def zero(self) -> Tensor:
        """z of the first coefficients, shape (N,)."""
        return torch.zeros(sum(basis.shape[1] for basis in self.bases), dtype=torch.float64)

    def coefficients(self, z: Tensor) -> list[Tensor]:
        """The c_i at z, shape (N,)."""
        parts = z.split([basis.shape[1] for basis in self.bases])
        return [c + basis @ part for c, basis, part in zip(self.first, self.bases, parts, strict=True)]


def levenberg_marquardt(
    start: Tensor,
    errors_at: Callable[[Tensor], Tensor],
    jacobian_at: Callable[[Tensor], Tensor],
    weight_of: Callable[[Tensor], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    iterations: int,
    anchor: float = 0.0,
) -> Tensor:
    """The z, shape (N,), at which a loss of errors is small.

    Args:
        start: The first z.
        errors_at: The errors at z, of any shape.
        jacobian_at: Their derivative by z, of one dimension more.
        weight_of: Weights of errors; squared and times the errors they are the derivative of the loss by
            these, up to a factor.
        loss_of: The loss, a mean over the errors.
        iterations: Iterations at most.
        anchor: a of a term a |z - start|² in the loss, in units of the mean curvature at the start.
    """
    z, errors, damping, hold = start, errors_at(start), DAMPING, 0.0
    least = loss_of(errors).item()
    for i in range(iterations):
        weight = weight_of(errors)
        J = (jacobian_at(z) * weight[..., None]).flatten(0, -2)
        gram, slope = J.mT @ J, J.mT @ (-errors * weight).flatten()
        unit = gram.diagonal().mean().item()
        hold = anchor * unit if i == 0 else hold
        slope = slope - hold * (z - start)
        for _ in range(5):
            damped = gram + (damping * unit + hold) * torch.eye(len(gram), dtype=torch.float64)
            trial = z + torch.linalg.solve(damped, slope)
            found, moved = errors_at(trial), trial - start
            value = (loss_of(found) + hold * (moved @ moved) / errors.numel()).item()
            if value < least:  # also False for NaN
                z, errors, least, damping = trial, found, value, damping / 3
                break
            damping *= 5
        else:
            break
    return z


def exact_for_constants(rows: Sequence[Row]) -> tuple[list[Tensor], list[Tensor]]:
    """(keep, weights) of each step, moved to the nearest that keep constants, and what they multiply where
    x̃ = x̂_0 = 1; each of shape (k_i,).
    """
    constants, moved, ones = [row.value[0] + row.value[1] for row in rows], [], []
    for i, row in enumerate(rows):
        c = row.coefficients()
        o = torch.tensor([1.0, *(constants[i - j] for j in range(len(c) - 1))], dtype=torch.float64)
        moved.append(c + (1 - o @ c) / (o @ o) * o)
        ones.append(o)
    return moved, ones


def plane(normal: Tensor) -> Tensor:
    """An orthonormal basis (k, k - 1) of the plane across a vector (k,)."""
    k = len(normal)
    matrix = torch.cat([normal[:, None], torch.eye(k, dtype=torch.float64)], 1)
    return torch.linalg.qr(matrix)[0][:, 1:k]
