"""The weights of exponential Adams methods for the probability-flow ODE, in either direction of time.

With x̃ = x/α, σ̃ = σ/α and H = √(s² + σ̃²) the ODE is (see `exponential.py`)

    x̃_b/H_b = x̃_a/H_a - ∫_{σ̃_a}^{σ̃_b} v/H² dσ̃,    v = (x̂_0 - s²/H² x̃) H/σ̃.

v is interpolated by a polynomial through its values at some times of the grid, in a variable of choice. The
integral of the polynomial is a weighted sum of these values.

The reverse SDE at stochasticity η, dx̃ = κ (x̃ - x̂_0)/σ̃ dσ̃ + η √(2σ̃) dw with κ = 1 + η², is solved likewise:

    x̃_b = (H_b/H_a)^κ x̃_a - H_b ∫ κ (H_b/H)^{η²} v/H² dσ̃ + H_b √(1 - (H_b/H_a)^{2η²}) z,

which is exact for Gaussian data of deviation s, whose v is 0. For s = ∞ H is constant in the first two terms
and the last is η √(σ̃_a² - σ̃_b²) z.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from score_diffusion.samplers.grids import clock
from score_diffusion.samplers.linear import GridCoefficients, finite_log_coefficients, noise_values
from score_diffusion.sde_lib import SDE, InputError, check_name

QUADRATURE_POINTS = 32
STEP_POINTS = 12  # of an adaptive step, which is short

VARIABLES: dict[str, Callable[[SDE, Tensor, float], Tensor]] = {
    "clock": lambda sde, lam, s: clock(-lam, math.sqrt(2) * s if 0 < s < math.inf else 1.0),
    "log_snr": lambda sde, lam, s: lam,
    "t": lambda sde, lam, s: sde.time_at_log_noise_level(-lam),
}
"""The variables in which eabm may interpolate by a polynomial, as functions of the SDE, λ and s."""


class AdamsTable:
    """The coefficients of exponential Adams methods on a grid.

    Args:
        sde: The SDE.
        times: Times, shape (steps + 1,), increasing or decreasing.
        variable: Variable in which v is interpolated, one of `VARIABLES`.
        data_std: Standard deviation s of the data that is solved exactly, 0 to interpolate x̂_0, inf for the
            noise estimate.

    Raises:
        InputError: If the variable is unknown, data_std is negative, or log(α/σ) is infinite on the grid.
    """

    def __init__(self, sde: SDE, times: Tensor, variable: str, data_std: float) -> None:
        check_name("variable", variable, VARIABLES)
        if not data_std >= 0:
            raise InputError(f"an exponential Adams method needs data_std >= 0, got {data_std}")
        self.at = finite_log_coefficients(sde, times)
        self._sde, self._variable, self._s = sde, variable, data_std
        self._nodes = self._interpolated_in(self.at.lam)
        self._x, self._w = _gauss_legendre(QUADRATURE_POINTS)
        if math.isinf(data_std):
            self.scale, self.values = self.at.alpha, noise_values(self.at)
            return
        self.scale, p, q = linear_coefficients(self.at, data_std)
        """x/scale is what the weights are added to, shape (steps + 1,); α H, or α for s = ∞."""
        self.values = list(zip(p.tolist(), q.tolist(), strict=True))
        """(p, q) of v = p x + q score at each time."""

    def weights(self, a: int, b: int, nodes: Sequence[int], eta: float = 0.0) -> Tensor:
        """Weights of the values at the nodes in the change of x/scale from time a to time b.

        Args:
            a: Index of the time where the step starts.
            b: Index of the time where it ends.
            nodes: Indices of the times whose values are interpolated.
            eta: Stochasticity η of the step.

        Returns:
            Weights, shape (len(nodes),), float64.
        """
        lam = self.at.lam
        span = lam[b] - lam[a]
        points = lam[a] + span * self._x
        level = (-points).exp()  # σ̃ there
        if math.isinf(self._s):
            kernel = -level
        else:
            H2 = self._s**2 + level.square()
            kernel = level / H2
            if eta:
                kernel = kernel * ((self._s**2 + self.at.noise_level[b].square()) / H2) ** (eta**2 / 2)
        kernel = (1 + eta**2) * kernel * (span * self._w)
        return _interpolation_weights(self._nodes[list(nodes)], self._interpolated_in(points), kernel)

    def linear_part(self, a: int, b: int, eta: float = 0.0) -> tuple[float, float]:
        """What x is multiplied by from time a to time b, and the standard deviation of the noise."""
        alpha, level = self.at.alpha, self.at.noise_level
        keep = self.scale[b] / self.scale[a]
        if math.isinf(self._s):
            return keep.item(), (alpha[b] * eta * (level[a].square() - level[b].square()).sqrt()).item()
        ratio = (self._s**2 + level[b].square()) / (self._s**2 + level[a].square())  # (H_b/H_a)²
        log_ratio = eta**2 * ratio.log()
        std = self.scale[b] * (-torch.expm1(log_ratio)).sqrt()
        return (keep * (log_ratio / 2).exp()).item(), std.item()

    def _interpolated_in(self, lam: Tensor) -> Tensor:
        return VARIABLES[self._variable](self._sde, lam, self._s)


def _interpolation_weights(nodes: Tensor, points: Tensor, kernel: Tensor) -> Tensor:
    """Σ_m kernel_m ℓ_j(points_m) of the Lagrange polynomials ℓ_j through the nodes.

    Args:
        nodes: Shape (k,).
        points: Shape (m,).
        kernel: Shape (m,).

    Returns:
        Shape (k,).
    """
    own = torch.eye(len(nodes), dtype=torch.bool)
    distances = (nodes[:, None] - nodes).masked_fill(own, 1.0)  # (j, i)
    factors = ((points - nodes[:, None]) / distances[:, :, None]).masked_fill(
        own[:, :, None], 1.0
    )  # (j, i, m)
    return factors.prod(1) @ kernel


def linear_coefficients(at: GridCoefficients, data_std: float) -> tuple[Tensor, Tensor, Tensor]:
    """The scale α H of y = x/scale, and p and q of v = p x + q score, each of the shape of the times."""
    H = (data_std**2 + at.noise_level.square()).sqrt()
    scale = at.alpha * H
    return scale, at.noise_level / scale, at.sigma * H


def step_weights(start: Tensor, end: Tensor, nodes: Tensor, data_std: float) -> Tensor:
    """The weights of `AdamsTable` in the variable `clock`, for a step of each sample through any number of
    its newest values.

    Args:
        start: λ where the steps start, shape (B,), float64.
        end: λ where they end, shape (B,).
        nodes: λ of the values, the newest first, shape (B, k).
        data_std: Standard deviation s of the data that is solved exactly, finite and above 0.

    Returns:
        Shape (B, k, k): in [b, n - 1, :n] the weights of the newest n values; what follows them is of no use.
    """
    x, w = _gauss_legendre(STEP_POINTS)
    span = (end - start)[:, None]
    points = start[:, None] + span * x
    level = (-points).exp()
    kernel = level / (data_std**2 + level.square()) * (span * w)
    at_nodes, at_points = (clock(-lam, math.sqrt(2) * data_std) for lam in (nodes, points))
    distances = at_nodes[:, :, None] - at_nodes[:, None, :]  # (B, j, i)
    factors = (at_points[:, None, None, :] - at_nodes[:, None, :, None]) / distances[..., None]
    own = torch.eye(nodes.shape[1], dtype=torch.bool)[..., None]
    polynomials = factors.masked_fill(own, 1.0).cumprod(2)  # (B, j, i, m): ℓ_j through the newest i + 1 nodes
    return torch.einsum("bjim,bm->bij", polynomials, kernel)


@functools.cache
def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], float64: eigenvalues of the Jacobi matrix (Golub & Welsch, 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    beta = k / (4 * k.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return (nodes + 1) / 2, vectors[0].square()
