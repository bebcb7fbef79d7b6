"""Coefficients that are fitted to prototype laws: what makes `eabm` good at few evaluations of any law.

A method of order k integrates polynomials exactly. With five evaluations for the whole path steps are so long
that the terms it leaves out are as large as those it solves, and it matters how the values that occur do
change with the noise level. Levenberg-Marquardt moves keep and weights of all steps together to where the
errors at the last level, over the paths of all prototype laws, are smallest in the geometric mean over the
laws: an error counts relative to that of its law, so that broad and narrow data matter equally.

Two things stay exact. Samples move with the data: data x_0 + c give samples + c. And the more steps there are
the less is left to gain, so that the order remains that of the coefficients the fit starts from.

Steps and notation are those of `table_fit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from score_diffusion.samplers.linear import GridCoefficients, Stage
from score_diffusion.samplers.prototypes import Prototypes, prototypes
from score_diffusion.samplers.table_fit import (
    Coordinates,
    Row,
    exact_for_constants,
    levenberg_marquardt,
    rows_of,
    stages_of,
)

FITTED_STEPS = 50  # of more, the order suffices to make the errors small, and fitting takes long
ITERATIONS = 12
FLOOR = 1e-2  # of the median error over laws: smaller errors count no more than this


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
    """Levenberg-Marquardt for the coefficients of a table, in coordinates z that keep constants exact.

    An anchor holds z near 0: laws that are unlike the prototypes gain nothing from changes of z, and lose the
    order of the coefficients that the fit starts from.
    """

    def __init__(self, laws: Prototypes, levels: Tensor, rows: Sequence[Row]) -> None:
        self.laws, self.levels, self.rows = laws, levels, rows
        ends = laws.flow(levels[[0, -1]])
        self.start, self.exact = ends[0], ends[1]
        self.past = max(len(r.weights) for r in rows)
        first, ones = exact_for_constants(rows)
        sizes = [terms.square().mean(0).sqrt() for terms in self._path(first)[1]]
        self.coordinates = Coordinates.within_constants(first, ones, sizes)

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
        return self._path(self.coordinates.coefficients(z))[0] - self.exact

    def jacobian(self, z: Tensor) -> Tensor:
        """The derivative of the errors by z, shape (R, N).

        A path is one number at each level, so that one pass backwards gives the derivatives of its end by the
        numbers before: ∂x̃_end/∂x̃ at each level and ∂x̃_end/∂v of each value.
        """
        coefficients, bases = self.coordinates.coefficients(z), self.coordinates.bases
        x, all_terms, slopes = self._path(coefficients)
        by_x, by_value = torch.ones_like(x), [torch.zeros_like(x) for _ in slopes]
        columns: list[Tensor] = []
        for i in range(len(slopes) - 1, -1, -1):
            columns.append(by_x[:, None] * (all_terms[i] @ bases[i]))
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

    def floor(self) -> Tensor:
        """Errors of laws, squared, below which they count little."""
        return FLOOR * self.per_law(self.errors(self.coordinates.zero())).median()

    def curvature(self) -> Tensor:
        """The Hessian (N, N) at the start of the mean log squared error by z, in the Gauss-Newton
        approximation.
        """
        z = self.coordinates.zero()
        J = self.jacobian(z) * self.weight(self.errors(z), self.floor())[:, None]
        return 2 / len(J) * J.mT @ J

    def solve(self, anchor: float = 0.0) -> tuple[Row, ...]:
        """The fitted rows."""
        floor = self.floor()
        z = levenberg_marquardt(
            self.coordinates.zero(),
            self.errors,
            self.jacobian,
            lambda errors: self.weight(errors, floor),
            lambda errors: (self.per_law(errors) + FLOOR * floor).log().mean(),
            ITERATIONS,
            anchor,
        )
        fitted = self.coordinates.coefficients(z)
        return tuple(row.with_coefficients(c) for row, c in zip(self.rows, fitted, strict=True))
