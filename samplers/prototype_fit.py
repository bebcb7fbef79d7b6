"""Coefficients that are fitted to prototype laws: what makes `eabm` good at few evaluations of any law.

A method of order k integrates polynomials exactly. With five evaluations for the whole path steps are so long
that the terms it leaves out are as large as those it solves, and it matters how the values that occur do
change with the noise level. Levenberg-Marquardt moves keep and weights of all steps together to where the
errors at the last level, over the paths of all prototype laws, are smallest in the geometric mean over the
laws: an error counts relative to that of its law, so that broad and narrow data matter equally.

Two things stay exact. Samples move with the data: data x_0 + c give samples + c. And the more steps there are
the less is left to gain, so that the order remains that of the coefficients the fit starts from.

In x̃ = x/α and σ̃ = σ/α, in which all SDEs are one, a step is

    x̃_s = keep x̃_t + Σ_j weights_j v_{-j} (+ std z),    v = a x̃ + b x̂_0(x̃, σ̃).

Reference:
    An Algorithm for Least-Squares Estimation of Nonlinear Parameters (Marquardt, 1963).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from score_diffusion.samplers.linear import GridCoefficients, Stage
from score_diffusion.samplers.prototypes import Prototypes, prototypes

FITTED_STEPS = 50  # of more, the order suffices to make the errors small, and fitting takes long
ITERATIONS = 12
DAMPING = 1e-2  # of the first iteration, relative to the mean diagonal element
FLOOR = 1e-2  # of the median error over laws: smaller errors count no more than this


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


def fitted_stages(at: GridCoefficients, stages: Sequence[Stage], anchor: float = 0.0) -> list[Stage]:
    """The stages of a method with one evaluation per step, fitted to the prototype laws.

    Args:
        at: The SDE at the times of the grid, n + 1 of them.
        stages: The n stages to start from.
        anchor: How strongly the fit is held to these stages, 0 for not at all, see `PrototypeFit`.
    """
    return stages_of(at, _fitted_rows(tuple(at.noise_level.tolist()), tuple(rows_of(at, stages)), anchor))


@lru_cache(64)
def _fitted_rows(levels: tuple[float, ...], rows: tuple[Row, ...], anchor: float) -> tuple[Row, ...]:
    return PrototypeFit(default_laws(), torch.tensor(levels, dtype=torch.float64), rows).solve(anchor)


@lru_cache(1)
def default_laws() -> Prototypes:
    return prototypes()


class PrototypeFit:
    """Levenberg-Marquardt for the coefficients of a table.

    The coefficients of step i are c_i = (keep, weights), shape (k_i,). They change within the plane in which
    constants stay exact, in coordinates z that scale each of them by the size of what it multiplies:
    c_i + B_i z_i with B_i (k_i, k_i - 1). An anchor a adds a |z|² to what is minimized, in units of the mean
    curvature at the start: laws that are unlike the prototypes gain nothing from changes of z, and lose the
    order of the coefficients that the fit starts from.
    """

    def __init__(self, laws: Prototypes, levels: Tensor, rows: Sequence[Row]) -> None:
        self.laws, self.levels, self.rows = laws, levels, rows
        ends = laws.flow(levels[[0, -1]])
        self.start, self.exact = ends[0], ends[1]
        self.past = max(len(r.weights) for r in rows)
        self.first, ones = exact_for_constants(rows)
        self.bases = []  # B_i
        for terms, _, o in zip(*self._path(self.first)[1:], ones, strict=True):
            size = terms.square().mean(0).sqrt()  # (k,)
            self.bases.append(plane(o / size) / size[:, None])

    @property
    def size(self) -> int:
        """The number N of coordinates z."""
        return sum(basis.shape[1] for basis in self.bases)

    def coefficients(self, z: Tensor) -> list[Tensor]:
        """The c_i at coordinates z, shape (N,)."""
        parts = z.split([basis.shape[1] for basis in self.bases])
        return [c + basis @ part for c, basis, part in zip(self.first, self.bases, parts, strict=True)]

    def _path(self, coefficients: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """x̃ at the last level, shape (R,); of each step what its coefficients multiply, (R, k), and the
        derivative of its value by x̃, (R,).
        """
        x, values, all_terms, slopes = self.start, list[Tensor](), list[Tensor](), list[Tensor]()
        for row, c, level in zip(self.rows, coefficients, self.levels[:-1], strict=True):
            a, b = row.value
            denoised, slope = self.laws.denoised(x, level)
            values = [a * x + b * denoised, *values[: self.past - 1]]
            all_terms.append(torch.stack([x, *values[: len(c) - 1]], 1))
            slopes.append(a + b * slope)
            x = all_terms[-1] @ c
        return x, all_terms, slopes

    def errors(self, z: Tensor) -> Tensor:
        """x̃ - exact at the last level, shape (R,)."""
        return self._path(self.coefficients(z))[0] - self.exact

    def jacobian(self, z: Tensor) -> Tensor:
        """The derivative of the errors by z, shape (R, N).

        A path is one number at each level, so that one pass backwards gives the derivatives of its end by the
        numbers before: ∂x̃_end/∂x̃ at each level and ∂x̃_end/∂v of each value.
        """
        coefficients = self.coefficients(z)
        x, all_terms, slopes = self._path(coefficients)
        by_x, by_value = torch.ones_like(x), [torch.zeros_like(x) for _ in slopes]
        columns: list[Tensor] = []
        for i in range(len(slopes) - 1, -1, -1):
            columns.append(by_x[:, None] * (all_terms[i] @ self.bases[i]))
            for j, weight in enumerate(coefficients[i][1:]):
                by_value[i - j] += weight * by_x
            by_x = coefficients[i][0] * by_x + slopes[i] * by_value[i]
        return torch.cat(columns[::-1], 1)

    def per_law(self, errors: Tensor) -> Tensor:
        """The mean squared error of each law, shape (laws,)."""
        return errors.square().reshape(self.laws.laws, -1).mean(1)

    def weight(self, errors: Tensor, floor: Tensor) -> Tensor:
        """The weight of each path, shape (R,): one over the error of its law."""
        return (1 / (self.per_law(errors) + floor)).sqrt().repeat_interleave(self.laws.paths_per_law)

    def curvature(self) -> Tensor:
        """The Hessian (N, N) at the start of the mean log squared error by z, in the Gauss-Newton
        approximation.
        """
        z = torch.zeros(self.size, dtype=torch.float64)
        errors = self.errors(z)
        J = self.jacobian(z) * self.weight(errors, FLOOR * self.per_law(errors).median())[:, None]
        return 2 / len(J) * J.mT @ J

    def solve(self, anchor: float = 0.0) -> tuple[Row, ...]:
        """The fitted rows."""
        z = torch.zeros(self.size, dtype=torch.float64)
        errors, damping, eye = self.errors(z), DAMPING, torch.eye(self.size, dtype=torch.float64)
        floor = FLOOR * self.per_law(errors).median()
        hold = anchor * self.curvature().diagonal().mean() / 2

        def loss(errors: Tensor, z: Tensor) -> float:
            return ((self.per_law(errors) + FLOOR * floor).log().mean() + hold * z @ z).item()

        least = loss(errors, z)
        for _ in range(ITERATIONS):
            weight = self.weight(errors, floor)
            J = self.jacobian(z) * weight[:, None] / math.sqrt(len(errors))
            gram, slope = J.mT @ J, J.mT @ (-errors * weight) / math.sqrt(len(errors)) - hold * z
            unit = gram.diagonal().mean()
            for _ in range(4):
                trial = z + torch.linalg.solve(gram + (damping * unit + hold) * eye, slope)
                found = self.errors(trial)
                if (value := loss(found, trial)) < least:  # also False for NaN
                    z, errors, least, damping = trial, found, value, damping / 3
                    break
                damping *= 5
        return tuple(
            Row(row.value, c[0].item(), tuple(c[1:].tolist()))
            for row, c in zip(self.rows, self.coefficients(z), strict=True)
        )


def exact_for_constants(rows: Sequence[Row]) -> tuple[list[Tensor], list[Tensor]]:
    """(keep, weights) of each step, moved to the nearest that keep constants, and what they multiply where
    x̃ = x̂_0 = 1; each of shape (k_i,).
    """
    constants, moved, ones = [row.value[0] + row.value[1] for row in rows], [], []
    for i, row in enumerate(rows):
        c = torch.tensor([row.keep, *row.weights], dtype=torch.float64)
        o = torch.tensor([1.0, *(constants[i - j] for j in range(len(c) - 1))], dtype=torch.float64)
        moved.append(c + (1 - o @ c) / (o @ o) * o)
        ones.append(o)
    return moved, ones


def plane(normal: Tensor) -> Tensor:
    """An orthonormal basis (k, k - 1) of the plane across a vector (k,)."""
    k = len(normal)
    matrix = torch.cat([normal[:, None], torch.eye(k, dtype=torch.float64)], 1)
    return torch.linalg.qr(matrix)[0][:, 1:k]
