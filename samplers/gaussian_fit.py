"""Coefficients of methods for the reverse SDE, fitted to Gaussian data of every width: what lets `eab_sde`
reach the law of the data in few evaluations.

After a long step of the SDE with the usual coefficients the variance is wrong, and how wrong depends on the
width of the data, which a sampler does not know. For Gaussian data x̂_0 is linear in x̃, so that the covariance
of x̃ and the last values is known at each level, without Monte Carlo. The noise of each step is that of the
reverse SDE for data at one point,

    std = σ̃_s √(1 - (σ̃_s/σ̃_t)^{2η²})

(Lu et al., 2022, DPM-Solver++, Appendix A). Levenberg-Marquardt moves keep and weights of all steps together
to where the standard deviations of x̃ at all levels, above all at the last, are closest to the exact ones, in
the geometric mean over widths from 0.01 to 8. Data x_0 + c still give samples + c.

Steps and notation are those of `prototype_fit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.func import jacfwd

from score_diffusion.samplers.linear import GridCoefficients, Stage
from score_diffusion.samplers.prototype_fit import Row, exact_for_constants, plane, rows_of, stages_of

WIDTHS = torch.logspace(-2, 0.9, 24, dtype=torch.float64)
ON_THE_WAY = 0.1  # weight of a level before the last
ITERATIONS = 20
DAMPING = 1e-2  # of the first iteration, relative to the mean diagonal element
FLOOR = 1e-2  # of the median squared error over widths: smaller errors count no more than this


def stages_fitted_to_gaussians(at: GridCoefficients, stages: Sequence[Stage], eta: Tensor) -> list[Stage]:
    """The stages of a method with one evaluation per step, fitted to Gaussian data.

    Args:
        at: The SDE at the times of the grid, n + 1 of them.
        stages: The n stages to start from.
        eta: Stochasticity of each step, shape (n,).
    """
    level = at.noise_level
    std = level[1:] * (1 - (level[1:] / level[:-1]).pow(2 * eta.square())).sqrt()
    rows = [replace(row, std=s) for row, s in zip(rows_of(at, stages), std.tolist(), strict=True)]
    return stages_of(at, _fitted_rows(tuple(level.tolist()), tuple(rows)))


@lru_cache(64)
def _fitted_rows(levels: tuple[float, ...], rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return GaussianFit(torch.tensor(levels, dtype=torch.float64), rows).solve()


class GaussianFit:
    """Levenberg-Marquardt for the coefficients of a table, in coordinates z as in `PrototypeFit`."""

    def __init__(self, levels: Tensor, rows: Sequence[Row]) -> None:
        self.levels, self.rows = levels, rows
        self.past = max(len(row.weights) for row in rows)
        self.exact = (WIDTHS.square() + levels.square()[:, None]).sqrt()  # (n + 1, W)
        # Values v = gain x̃ of each level and width
        shrink = WIDTHS.square() / self.exact.square()
        self.gains = [row.value[0] + row.value[1] * shrink[i] for i, row in enumerate(rows)]
        self.start, ones = exact_for_constants(rows)
        self.bases = []
        for i, one in enumerate(ones):
            terms = [self.exact[i], *(self.gains[i - j] * self.exact[i - j] for j in range(len(one) - 1))]
            size = torch.stack(terms).square().mean(1).sqrt()  # (k_i,)
            self.bases.append(plane(one / size) / size[:, None])

    def coefficients(self, z: Tensor) -> list[Tensor]:
        """(keep, weights) of each step."""
        parts = z.split([basis.shape[1] for basis in self.bases])
        return [c + b @ part for c, b, part in zip(self.start, self.bases, parts, strict=True)]

    def errors(self, z: Tensor) -> Tensor:
        """The logarithm of the standard deviation of x̃ over the exact one, at each level after the first,
        shape (n, W).
        """
        p, errors = self.past, list[Tensor]()
        unit = torch.eye(p, dtype=torch.float64)
        older = unit[1:-1].expand(len(WIDTHS), -1, -1)  # v_{-j} becomes v_{-j-1}
        # Covariance of (x̃, v_{-1}, v_{-2}, ...), shape (W, p, p); values that do not exist yet are 0
        cov = self.exact[0].square()[:, None, None] * torch.outer(unit[0], unit[0])
        for i, (row, c) in enumerate(zip(self.rows, self.coefficients(z), strict=True)):
            c, gain = torch.nn.functional.pad(c, (0, 1 + p - len(c))), self.gains[i]
            next_x = torch.cat([(c[0] + c[1] * gain)[:, None], c[2:].expand(len(WIDTHS), -1)], 1)
            newest = gain[:, None] * unit[0]
            step = torch.cat([torch.stack([next_x, newest], 1), older], 1)[:, :p]  # (W, p, p)
            cov = step @ cov @ step.mT + row.std**2 * torch.outer(unit[0], unit[0])
            errors.append((cov[:, 0, 0] / self.exact[i + 1].square()).log() / 2)
        return torch.stack(errors)

    def solve(self) -> tuple[Row, ...]:
        """The fitted rows."""
        z = torch.zeros(sum(basis.shape[1] for basis in self.bases), dtype=torch.float64)
        share = torch.full((len(self.rows), 1), ON_THE_WAY, dtype=torch.float64)
        share[-1] = 1.0
        errors, damping = self.errors(z), DAMPING
        floor = FLOOR * errors.square().median(1, keepdim=True).values

        def loss(errors: Tensor) -> float:
            return (share * (errors.square() + FLOOR * floor).log()).mean().item()

        least = loss(errors)
        for _ in range(ITERATIONS):
            weight = (share / (errors.square() + floor)).sqrt()
            J = (jacfwd(self.errors)(z) * weight[..., None]).flatten(0, 1)  # (n W, N)
            gram, slope = J.mT @ J, J.mT @ (-errors * weight).flatten()
            unit = gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
            for _ in range(5):
                trial = z + torch.linalg.solve(gram + damping * unit, slope)
                found = self.errors(trial)
                if (value := loss(found)) < least:  # also False for NaN
                    z, errors, least, damping = trial, found, value, damping / 3
                    break
                damping *= 5
            else:
                break
        return tuple(
            replace(row, keep=c[0].item(), weights=tuple(c[1:].tolist()))
            for row, c in zip(self.rows, self.coefficients(z), strict=True)
        )
