"""Exponential multistep methods for the probability-flow ODE and the reverse SDE.

With λ = log(α/σ) and x̂_0(x, t) the denoised samples, the reverse SDE at stochasticity η has the exact
solution

    x_s = (σ_s/σ_t) e^{-η²h} x_t + α_s ∫ κ e^{-κ(λ_s - λ)} x̂_0 dλ + σ_s √(1 - e^{-2η²h}) z,    κ = 1 + η²,

from λ_t to λ_s = λ_t + h (η = 0: the ODE). What is linear is solved exactly; x̂_0 is all that a method must
guess between its evaluations. The methods here differ in how, and in what else they solve exactly:

    exponential_adams   the polynomial through the last values, in a variable of choice; a corrector puts the
                        value at the time reached into the polynomial of the step that led there, and costs no
                        evaluation (Zhao et al., 2023, Section 3.2)
    DPM-Solver++        2M, 3M and their SDE variants: finite differences in λ; 2S: the midpoint
    UniPC               finite differences with coefficients that match B(h), and the corrector
    DEIS                the polynomial of ε̂ in t

The values of `exponential_adams` follow from what is taken for linear. With x̃ = x/α, σ̃ = σ/α the ODE is
dx̃/dσ̃ = (x̃ - x̂_0)/σ̃; for Gaussian data of deviation s and mean 0, x̂_0 = s²/(s² + σ̃²) x̃, EDM's skip
connection. With H = √(s² + σ̃²) what x̂_0 has beyond it enters as

    x̃_s/H_s = x̃_t/H_t - ∫ v/H² dσ̃,    v = (x̂_0 - s²/H² x̃) H/σ̃,

and v, EDM's network output but for a factor, is what is interpolated: in s = 0 that is x̂_0 itself, in s = ∞
the noise estimate ε̂ (x̃_s = x̃_t + ∫ ε̂ dσ̃). The default, "eabm", has s = 0.45 and four values, which it
interpolates in τ = √log(1 + σ̃²/(2s²)). Close to the data, where samples have settled in a mode, the denoiser
follows the noise within the mode: s takes that part out of what is guessed. The numbers were chosen on exact
mixtures (docs/samplers.md); between 0.4 and 0.65 they matter little.

References:
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022),
        https://arxiv.org/abs/2211.01095: eqs. 8, 12; Algorithms 1, 2; Appendix A, the SDE.
    UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models (Zhao et al., 2023),
        https://arxiv.org/abs/2302.04867: Algorithms 1-4.
    Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023),
        https://arxiv.org/abs/2204.13902: DEIS, tAB.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        https://arxiv.org/abs/2206.00364: Table 1, c_skip.
    Exponential Integrators (Hochbruck & Ostermann, 2010), Section 2.5: exponential Adams methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.samplers.grids import clock
from score_diffusion.samplers.linear import Path, Stage, combined
from score_diffusion.samplers.predictors import stochasticity_at
from score_diffusion.sde_lib import SDE

QUADRATURE_POINTS = 32


@dataclass(frozen=True)
class Row:
    """One step x_s = keep · x_t + Σ_j weights[j] v_{-j} + std · z, and the same step again with the value
    at s.

    `correction` holds the weights of the value at s and then of those in `weights`; None for no corrector.
    """

    keep: float
    weights: tuple[float, ...]
    std: float = 0.0
    correction: tuple[float, ...] | None = None


def multistep_stages(
    times: Tensor, values: Sequence[tuple[float, float]], rows: Sequence[Row]
) -> list[Stage]:
    """The table of a multistep method; the corrections join the steps that follow them.

    The corrected x_t is the predicted one plus a combination of values that are known by then, so that the
    next step from it is one from the predicted x_t with other weights.
    """
    stages, adjustment = [], ()
    for t, value, row in zip(times[:-1].tolist(), values, rows, strict=True):
        moved = [row.keep * a for a in adjustment]
        stages.append(Stage(t, value, row.keep, combined(row.weights, moved), row.std))
        adjustment = ()
        if row.correction is not None:
            now, *before = row.correction
            adjustment = (now, *combined(before, [-w for w in row.weights]))
    return stages


def denoised_values(path: Path) -> list[tuple[float, float]]:
    """(p, q) of x̂_0 = (x + σ² score)/α at each time of a path."""
    return list(zip((1 / path.alpha).tolist(), (path.sigma.square() / path.alpha).tolist(), strict=True))


def noise_values(path: Path) -> list[tuple[float, float]]:
    """(p, q) of ε̂ = -σ score at each time of a path."""
    return [(0.0, -sigma) for sigma in path.sigma.tolist()]


def noisy_path(sde: SDE, times: Tensor) -> Path:
    """The path at the times of a grid.

    Raises:
        ValueError: If log(α/σ) is infinite at an end.
    """
    path = Path(sde, times)
    if not path.lam.isfinite().all():
        raise ValueError(
            f"log(α/σ) must be finite at all times of the grid, it is {path.lam[0]:.4g} at the first and "
            f"{path.lam[-1]:.4g} at the last: choose a grid that ends above t = 0, then denoise=True"
        )
    return path


VARIABLES: dict[str, Callable[[SDE, Tensor, float], Tensor]] = {
    "clock": lambda sde, lam, s: clock(-lam, math.sqrt(2) * s if 0 < s < math.inf else 1.0),
    "log_snr": lambda sde, lam, s: lam,
    "t": lambda sde, lam, s: sde.time_at_log_snr(2 * lam),
}
"""In which a polynomial is one, as functions of the SDE, λ and s."""


def _interpolation_weights(nodes: Tensor, points: Tensor, kernel: Tensor) -> Tensor:
    """Σ_m kernel_m ℓ_j(points_m) of the Lagrange polynomials ℓ_j through the nodes.

    Args:
        nodes: Shape (n, k).
        points: Shape (n, m).
        kernel: Shape (n, m).

    Returns:
        Shape (n, k).
    """
    k = nodes.shape[1]
    weights = []
    for j in range(k):
        basis = torch.ones_like(points)
        for i in range(k):
            if i != j:
                basis = basis * (points - nodes[:, i : i + 1]) / (nodes[:, j : j + 1] - nodes[:, i : i + 1])
        weights.append((kernel * basis).sum(1))
    return torch.stack(weights, 1)


def exponential_adams_stages(
    sde: SDE,
    times: Tensor,
    order: int = 4,
    corrector: bool = True,
    variable: str = "clock",
    data_std: float = 0.45,
) -> list[Stage]:
    """The exponential Adams-Bashforth method of the probability-flow ODE, with an Adams-Moulton corrector.

    Args:
        sde: The SDE.
        times: Time grid, shape (steps + 1,), with noise at its end.
        order: Number of values that the polynomial goes through, at most; the first steps have fewer. The
            method's order, one more with the corrector.
        corrector: Whether each step is repeated with the value at its end added to the polynomial.
        variable: In which the polynomial is one: "clock" (τ), "log_snr" or "t".
        data_std: s: 0 to interpolate x̂_0, infinity for ε̂, and in between what EDM's skip connection leaves.

    Returns:
        The table.

    Raises:
        ValueError: If the order is below 1, the variable is unknown, data_std is negative, or log(α/σ) is
            infinite on the grid.
    """
    if order < 1 or not data_std >= 0 or variable not in VARIABLES:
        raise ValueError(
            f"exponential_adams needs order >= 1, data_std >= 0 and a variable in {', '.join(VARIABLES)}, "
            f"got {order}, {data_std} and {variable!r}"
        )
    path = noisy_path(sde, times)
    lam, steps = path.lam, len(path.t) - 1
    x, w = _gauss_legendre(QUADRATURE_POINTS)
    span = lam.diff()[:, None]  # (n, 1)
    points = lam[:-1, None] + span * x  # (n, m)
    level = (-points).exp()  # σ̃ there
    if math.isinf(data_std):
        scale, keep, values = path.alpha, path.alpha[1:] / path.alpha[:-1], noise_values(path)
        kernel = -level * span * w
    else:
        H = (data_std**2 + path.level.square()).sqrt()
        scale = path.alpha * H
        keep = scale[1:] / scale[:-1]
        values = list(zip((path.level / scale).tolist(), (path.sigma * H).tolist(), strict=True))
        kernel = level / (data_std**2 + level.square()) * span * w
    kernel = scale[1:, None] * kernel
    u, u_points = VARIABLES[variable](sde, lam, data_std), VARIABLES[variable](sde, points, data_std)

    def weights(i: int, newest: int, count: int) -> tuple[float, ...]:
        nodes = u[newest - count + 1 : newest + 1].flip(0)[None]
        return tuple(_interpolation_weights(nodes, u_points[i : i + 1], kernel[i : i + 1])[0].tolist())

    rows = []
    for i in range(steps):
        count = min(order, i + 1)
        correction = weights(i, i + 1, count + 1) if corrector and i < steps - 1 else None
        rows.append(Row(keep[i].item(), weights(i, i, count), correction=correction))
    return multistep_stages(path.t, values[:-1], rows)


def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], float64: eigenvalues of the Jacobi matrix (Golub & Welsch, 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    beta = k / (4 * k.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return (nodes + 1) / 2, vectors[0].square()


def dpm_solver_stages(
    sde: SDE, times: Tensor, order: int = 2, stochasticity: float | Callable[[Tensor], Tensor] = 0.0
) -> list[Stage]:
    """DPM-Solver++ in its multistep form: 1 (DDIM), 2M (Lu et al., 2022, Algorithm 2) and 3M, for the ODE
    (stochasticity 0) and the SDE (1: SDE-DPM-Solver++; any other, or a function of time, by the same
    formula).

    3M integrates the parabola through the last three values exactly. The implementations in k-diffusion and
    diffusers take half of its quadratic term, which leaves them at order two.

    Args:
        sde: The SDE.
        times: Time grid, shape (steps + 1,), with noise at its end.
        order: 1, 2 or 3; the first steps have less.
        stochasticity: η or η(t), at least 0, constant over a step.

    Returns:
        The table.

    Raises:
        ValueError: If the order is not 1, 2 or 3, the stochasticity is negative, or log(α/σ) is infinite on
            the grid.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"the order of DPM-Solver++ must be 1, 2 or 3, got {order}")
    path = noisy_path(sde, times)
    eta2 = stochasticity_at(stochasticity, path.t[:-1]).square()
    h = path.lam.diff()
    keep = (path.sigma[1:] / path.sigma[:-1] * (-eta2 * h).exp()).tolist()
    std = (path.sigma[1:] * (-torch.expm1(-2 * eta2 * h)).sqrt()).tolist()
    scaled, h, alpha = ((1 + eta2) * h).tolist(), h.tolist(), path.alpha[1:].tolist()
    rows = []
    for i, z in enumerate(scaled):  # z = κh
        first = -alpha[i] * math.expm1(-z)
        k = min(order, i + 1)
        if k == 1:
            weights = (first,)
        elif k == 2:
            slope = first * h[i] / (2 * h[i - 1])
            weights = (first + slope, -slope)
        else:
            r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
            # x̂_0 = v_0 + D_1 τ + D_2 τ² over the step, τ from 0 to 1, of the divided differences a and b
            linear = alpha[i] * (math.expm1(-z) / z + 1)
            square = alpha[i] * (1 - 2 * (math.expm1(-z) + z) / z**2)
            on_a = linear * (1 + r0 / (r0 + r1)) + square / (r0 + r1)
            on_b = -(linear * r0 + square) / (r0 + r1)
            weights = (first + on_a / r0, -on_a / r0 + on_b / r1, -on_b / r1)
        rows.append(Row(keep[i], weights, std[i]))
    return multistep_stages(path.t, denoised_values(path)[:-1], rows)


def unipc_stages(sde: SDE, times: Tensor, order: int = 3, variant: str = "bh2") -> list[Stage]:
    """UniPC-p with data prediction and the corrector UniC-p, of order p + 1 (Zhao et al., 2023, Algorithms
    1-4).

    Args:
        sde: The SDE.
        times: Time grid, shape (steps + 1,), with noise at its end.
        order: p >= 1 of predictor and corrector; the first and last steps have less, as in the paper's code.
        variant: "bh1", B(h) = h, or "bh2", B(h) = e^h - 1.

    Returns:
        The table.

    Raises:
        ValueError: If the order is below 1, the variant is unknown, or log(α/σ) is infinite on the grid.
    """
    if order < 1 or variant not in ("bh1", "bh2"):
        raise ValueError(f"UniPC needs order >= 1 and variant bh1 or bh2, got {order} and {variant!r}")
    path = noisy_path(sde, times)
    lam, steps = path.lam.tolist(), len(path.t) - 1
    keep, alpha = (path.sigma[1:] / path.sigma[:-1]).tolist(), path.alpha[1:].tolist()
    rows = []
    for i in range(steps):
        p = min(order, i + 1, steps - i)
        h = lam[i + 1] - lam[i]
        B = -h if variant == "bh1" else math.expm1(-h)
        first = -alpha[i] * math.expm1(-h)
        ratios = [(lam[i - m] - lam[i]) / h for m in range(1, p)]
        predicted = [0.5] if p == 2 else _unipc_coefficients(ratios, h, B)
        corrected = [0.5] if p == 1 else _unipc_coefficients([*ratios, 1.0], h, B)
        on = [-alpha[i] * B * rho / r for rho, r in zip(predicted, ratios, strict=True)]
        on_c = [-alpha[i] * B * rho / r for rho, r in zip(corrected, [*ratios, 1.0], strict=True)]
        weights = (first - sum(on), *on)
        correction = (on_c[-1], first - sum(on_c), *on_c[:-1]) if i < steps - 1 else None
        rows.append(Row(keep[i], weights, correction=correction))
    return multistep_stages(path.t, denoised_values(path)[:-1], rows)


def _unipc_coefficients(ratios: Sequence[float], h: float, B: float) -> list[float]:
    """a_m of Σ_m a_m r_m^{k-1} = k! φ_{k+1}(-h)(-h)/B for k = 1..len(ratios) (Zhao et al., 2023, eq. 11)."""
    if not ratios:
        return []
    k = torch.arange(len(ratios), dtype=torch.float64)
    matrix = torch.tensor(ratios, dtype=torch.float64) ** k[:, None]  # (k, m)
    phi, factorial, right = math.expm1(-h) / -h - 1, 1, []
    for n in range(1, len(ratios) + 1):
        right.append(phi * factorial / B)
        factorial *= n + 1
        phi = phi / -h - 1 / factorial
    return torch.linalg.solve(matrix, torch.tensor(right, dtype=torch.float64)).tolist()
