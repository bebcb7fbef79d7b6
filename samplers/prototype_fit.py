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


def fitted_stages(at: GridCoefficients, stages: Sequence[Stage]) -> list[Stage]:
    """The stages of a method with one evaluation per step, fitted to the prototype laws.

    Args:
        at: The SDE at the times of the grid, n + 1 of them.
        stages: The n stages to start from.
    """
    return stages_of(at, _fitted_rows(tuple(at.noise_level.tolist()), tuple(rows_of(at, stages))))


@lru_cache(64)
def _fitted_rows(levels: tuple[float, ...], rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return PrototypeFit(default_laws(), torch.tensor(levels, dtype=torch.float64), rows).solve()


@lru_cache(1)
def default_laws() -> Prototypes:
    return prototypes()


class PrototypeFit:
    """Levenberg-Marquardt for the coefficients of a table.

    The coefficients of step i are c_i = (keep, weights), shape (k_i,). They change within the plane in which
    constants stay exact, in coordinates z that scale each of them by the size of what it multiplies:
    c_i + B_i z_i with B_i (k_i, k_i - 1).
    """

    def __init__(self, laws: Prototypes, levels: Tensor, rows: Sequence[Row]) -> None:
        self.laws, self.levels, self.rows = laws, levels, rows
        ends = laws.flow(levels[[0, -1]])
        self.start, self.exact = ends[0], ends[1]
        self.past = max(len(r.weights) for r in rows)
        self.coefficients, self.ones = exact_for_constants(rows)

    def errors(self, coefficients: Sequence[Tensor]) -> Tensor:
        """x̃ - exact at the last level, shape (R,)."""
        x, values = self.start, list[Tensor]()
        for row, c, level in zip(self.rows, coefficients, self.levels[:-1], strict=True):
            a, b = row.value
            values = [a * x + b * self.laws.denoised(x, level)[0], *values[: self.past - 1]]
            x = torch.stack([x, *values[: len(c) - 1]], 1) @ c
        return x - self.exact

    def jacobian(self, coefficients: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The derivative of the errors by z, shape (R, N), and the B_i.

        A path is one number at each level, so that one pass backwards gives the derivatives of its end by the
        numbers before: ∂x̃_end/∂x̃ at each level and ∂x̃_end/∂v of each value.
        """
        x, values = self.start, list[Tensor]()
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        for row, c, ones, level in zip(self.rows, coefficients, self.ones, self.levels[:-1], strict=True):
            a, b = row.value
            denoised, slope = self.laws.denoised(x, level)
            values = [a * x + b * denoised, *values[: self.past - 1]]
            terms = torch.stack([x, *values[: len(c) - 1]], 1)  # (R, k)
            size = terms.square().mean(0).sqrt()  # (k,)
            steps.append((terms, a + b * slope, plane(ones / size) / size[:, None]))
            x = terms @ c
        by_x, by_value = torch.ones_like(x), [torch.zeros_like(x) for _ in steps]
        columns: list[Tensor] = []
        for i in range(len(steps) - 1, -1, -1):
            terms, slope, basis = steps[i]
            columns.append(by_x[:, None] * (terms @ basis))
            for j, weight in enumerate(coefficients[i][1:]):
                by_value[i - j] += weight * by_x
            by_x = coefficients[i][0] * by_x + slope * by_value[i]
        return torch.cat(columns[::-1], 1), [basis for _, _, basis in steps]

    def per_law(self, errors: Tensor) -> Tensor:
        """The mean squared error of each law, shape (laws,)."""
        return errors.square().reshape(self.laws.laws, -1).mean(1)

    def weight(self, errors: Tensor, floor: Tensor) -> Tensor:
        """The weight of each path, shape (R,): one over the error of its law."""
        return (1 / (self.per_law(errors) + floor)).sqrt().repeat_interleave(self.laws.paths_per_law)

    def curvature(self) -> tuple[Tensor, list[Tensor]]:
        """The Hessian (N, N) of the mean log squared error by z, in the Gauss-Newton approximation, and the
        B_i.
        """
        errors = self.errors(self.coefficients)
        J, bases = self.jacobian(self.coefficients)
        J = J * self.weight(errors, FLOOR * self.per_law(errors).median())[:, None]
        return 2 / len(J) * J.mT @ J, bases

    def solve(self) -> tuple[Row, ...]:
        """The fitted rows."""
        best, errors, damping = self.coefficients, self.errors(self.coefficients), DAMPING
        floor = FLOOR * self.per_law(errors).median()

        def loss(errors: Tensor) -> float:
            return (self.per_law(errors) + FLOOR * floor).log().mean().item()

        least = loss(errors)
        for _ in range(ITERATIONS):
            weight = self.weight(errors, floor)
            J, bases = self.jacobian(best)
            J = J * weight[:, None]
            gram, slope = J.mT @ J, J.mT @ (-errors * weight)
            unit = gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
            for _ in range(4):
                z = torch.linalg.solve(gram + damping * unit, slope).split([b.shape[1] for b in bases])
                trial = [c + b @ part for c, b, part in zip(best, bases, z, strict=True)]
                found = self.errors(trial)
                if (value := loss(found)) < least:  # also False for NaN
                    best, errors, least, damping = trial, found, value, damping / 3
                    break
                damping *= 5
        return tuple(
            Row(row.value, c[0].item(), tuple(c[1:].tolist())) for row, c in zip(self.rows, best, strict=True)
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
