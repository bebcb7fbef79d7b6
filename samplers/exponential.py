"""Exponential multistep methods for the probability-flow ODE and the reverse SDE.

With λ = log(α/σ) and x̂_0(x, t) the denoised samples, the reverse SDE at stochasticity η has the exact
solution

    x_s = (σ_s/σ_t) e^{-η²h} x_t + α_s ∫ κ e^{-κ(λ_s - λ)} x̂_0 dλ + σ_s √(1 - e^{-2η²h}) z,    κ = 1 + η²,

from λ_t to λ_s = λ_t + h (η = 0: the ODE). The linear part is solved exactly; only x̂_0 must be approximated
between evaluations. The methods differ in how they approximate it, and in what else they solve exactly:

    eabm            the polynomial through the last values, in a variable of choice. A corrector adds the
                    value at the time reached to the polynomial of the step that led there, at no further
                    evaluation (Zhao et al., 2023, Section 3.2). Few steps: fitted to prototype laws
    eab_sde         the same for the SDE, without corrector. Few steps: fitted to Gaussian data
    DPM-Solver++    2M, 3M and their SDE variants: finite differences in λ; 2S: the midpoint
    UniPC           finite differences with coefficients that match B(h), and the corrector
    DEIS            the polynomial of ε̂ in t

The values of `eabm` follow from what is treated as linear. With x̃ = x/α, σ̃ = σ/α the ODE is
dx̃/dσ̃ = (x̃ - x̂_0)/σ̃; for Gaussian data of deviation s and mean 0, x̂_0 = s²/(s² + σ̃²) x̃, EDM's skip
connection. With H = √(s² + σ̃²) the rest of x̂_0 enters as

    x̃_s/H_s = x̃_t/H_t - ∫ v/H² dσ̃,    v = (x̂_0 - s²/H² x̃) H/σ̃.

v, EDM's network output up to a factor, is what the polynomial interpolates: for s = 0 it is x̂_0 itself, for
s = ∞ the noise estimate ε̂ (x̃_s = x̃_t + ∫ ε̂ dσ̃). The polynomial's variable is τ = √log(1 + σ̃²/(2s²)). By
default s = 0.7, and up to 50 steps, in which the order of a polynomial says little about its error, all
coefficients are then fitted to prototype laws (`prototype_fit.py`). Up to 15 steps the fit starts without the
corrector, which needs small steps: at eight steps it multiplies the errors on narrow modes far apart by up to
a hundred. With more the fit starts from the method itself and is held near it: left free, it makes mixtures'
errors a little smaller and those of trained networks, which are not so smooth, two to three times as large.

References:
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022),
        https://arxiv.org/abs/2211.01095: eqs. 8, 12; Algorithms 1, 2; Appendix A, the SDE.
    UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models (Zhao et al., 2023),
        https://arxiv.org/abs/2302.04867: Algorithms 1-4.
    Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023),
        https://arxiv.org/abs/2204.13902: DEIS, tAB.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        https://arxiv.org/abs/2206.00364: Table 1, c_skip.
    SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models (Xue et al., 2023),
        https://arxiv.org/abs/2309.05019: eq. 14, the stochastic Adams-Bashforth method.
    Exponential Integrators (Hochbruck & Ostermann, 2010), Section 2.5: exponential Adams methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from score_diffusion.samplers.adams_table import VARIABLES, AdamsTable
from score_diffusion.samplers.gaussian_fit import stages_fitted_to_gaussians
from score_diffusion.samplers.grids import FEW_STEPS, Grid
from score_diffusion.samplers.linear import (
    GridCoefficients,
    LinearSampler,
    Stage,
    add_weights,
    denoised_values,
    finite_log_coefficients,
)
from score_diffusion.samplers.options import Names
from score_diffusion.samplers.predictors import REVERSE_SDE, Stochasticity, stochasticity_at
from score_diffusion.samplers.prototype_fit import FITTED_STEPS, fitted_stages
from score_diffusion.sde_lib import SDE, InputError, check_name

UNIPC_VARIANTS = ("bh1", "bh2")
ANCHOR = 3e-4  # of the fit to prototype laws in more than FEW_STEPS, see `PrototypeFit`


@dataclass(frozen=True)
class MultistepStep:
    """A step x_s = keep · x_t + Σ_j weights[j] v_{-j} + std · z, and its correction with the value at s.

    `correction` holds the weight of the value at s and then those that replace `weights`; None for no
    corrector.
    """

    keep: float
    weights: tuple[float, ...]
    std: float = 0.0
    correction: tuple[float, ...] | None = None


def multistep_stages(
    times: Tensor, values: Sequence[tuple[float, float]], rows: Sequence[MultistepStep]
) -> list[Stage]:
    """The table of a multistep method, in which each correction is part of the step that follows it.

    The corrected x_t is the predicted one plus a combination of values that are known by then, so that the
    next step from it is a step from the predicted x_t with other weights.
    """
    stages: list[Stage] = []
    adjustment: tuple[float, ...] = ()
    for t, value, row in zip(times[:-1].tolist(), values, rows, strict=True):
        moved = [row.keep * a for a in adjustment]
        stages.append(Stage(t, value, row.keep, add_weights(row.weights, moved), row.std))
        adjustment = ()
        if row.correction is not None:
            now, *before = row.correction
            adjustment = (now, *add_weights(before, [-w for w in row.weights]))
    return stages


def exponential_adams_stages(
    sde: SDE,
    times: Tensor,
    order: int,
    corrector: bool,
    variable: str,
    data_std: float,
    stochasticity: Stochasticity = 0.0,
) -> list[Stage]:
    """The table of the exponential Adams-Bashforth-Moulton method; arguments as for `eabm` and `eab_sde`."""
    if order < 1:
        raise InputError(f"an exponential Adams method needs order >= 1, got {order}")
    table = AdamsTable(sde, times, variable, data_std)
    scale, steps, eta = table.scale, len(times) - 1, stochasticity_at(stochasticity, table.at.t).tolist()

    def weights(i: int, newest: int, count: int) -> tuple[float, ...]:
        nodes = range(newest, newest - count, -1)
        return tuple((scale[i + 1] * table.weights(i, i + 1, nodes, eta[i])).tolist())

    rows = []
    for i in range(steps):
        count = min(order, i + 1)
        correction = weights(i, i + 1, count + 1) if corrector and i < steps - 1 else None
        keep, std = table.linear_part(i, i + 1, eta[i])
        rows.append(MultistepStep(keep, weights(i, i, count), std, correction))
    return multistep_stages(table.at.t, table.values[:-1], rows)


def dpm_solver_stages(sde: SDE, times: Tensor, order: int, stochasticity: Stochasticity = 0.0) -> list[Stage]:
    """The table of DPM-Solver++ in its multistep form: first order (DDIM), 2M (Lu et al., 2022, Algorithm 2)
    and 3M, for the ODE (stochasticity 0) and the SDE (1: SDE-DPM-Solver++; other values, or a function of
    time, constant over a step, by the same formula).

    3M integrates the parabola through the last three values exactly. The implementations in k-diffusion and
    diffusers take half of its quadratic term, which leaves them at order two.
    """
    at = finite_log_coefficients(sde, times)
    eta2 = stochasticity_at(stochasticity, at.t[:-1]).square()
    steps = at.lam.diff()
    keep = (at.sigma[1:] / at.sigma[:-1] * (-eta2 * steps).exp()).tolist()
    std = (at.sigma[1:] * (-torch.expm1(-2 * eta2 * steps)).sqrt()).tolist()
    scaled, h, alpha = ((1 + eta2) * steps).tolist(), steps.tolist(), at.alpha[1:].tolist()
    rows = []
    for i, z in enumerate(scaled):  # z = κh
        first = -alpha[i] * math.expm1(-z)
        k = min(order, i + 1)
        if k == 1:
            weights: tuple[float, ...] = (first,)
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
        rows.append(MultistepStep(keep[i], weights, std[i]))
    return multistep_stages(at.t, denoised_values(at)[:-1], rows)


def unipc_stages(sde: SDE, times: Tensor, order: int, variant: str) -> list[Stage]:
    """The table of UniPC with data prediction; arguments as for `unipc`."""
    check_name("variant", variant, UNIPC_VARIANTS)
    if order < 1:
        raise InputError(f"the order of UniPC must be at least 1, got {order}")
    at = finite_log_coefficients(sde, times)
    lam, steps = at.lam.tolist(), len(at.t) - 1
    keep, alpha = (at.sigma[1:] / at.sigma[:-1]).tolist(), at.alpha[1:].tolist()
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
        rows.append(MultistepStep(keep[i], weights, correction=correction))
    return multistep_stages(at.t, denoised_values(at)[:-1], rows)


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


def eabm(
    sde: SDE,
    times: Tensor | Grid = Grid("spread", 49),
    *,
    denoise: bool = False,
    order: int = 4,
    corrector: bool = True,
    variable: Annotated[str, Names(*VARIABLES)] = "clock",
    data_std: float = 0.7,
    prototypes: bool = True,
) -> LinearSampler:
    """The exponential Adams-Bashforth method for the probability-flow ODE, with an Adams-Moulton corrector.

    Args:
        sde, times, denoise: As for every `Sampler`; the grid must end with noise.
        order: Number of values that the polynomial interpolates, fewer in the first steps. It is the order of
            the method, one more with the corrector.
        corrector: Whether to repeat each step with the value at its end, at no further evaluation.
        variable: Variable in which the polynomial interpolates.
        data_std: Standard deviation s of the data that is solved exactly, 0 to interpolate x̂_0, inf for ε̂.
        prototypes: Whether to fit the coefficients of up to 50 steps to prototype laws. Up to 15 steps the
            fit starts from a method without corrector, whose polynomial takes two values more than `order`
            (one without `corrector`).

    Raises:
        InputError: If the order is below 1, the variable is unknown, data_std is negative, or log(α/σ) is
            infinite on the grid.
    """

    def table(sde: SDE, times: Tensor) -> list[Stage]:
        plain = exponential_adams_stages(sde, times, order, corrector, variable, data_std)
        if not prototypes or len(plain) > FITTED_STEPS:
            return plain
        at = GridCoefficients(sde, times)
        if len(plain) > FEW_STEPS:
            return fitted_stages(at, plain, ANCHOR)
        start = exponential_adams_stages(sde, times, order + corrector + 1, False, variable, data_std)
        return fitted_stages(at, start)

    return LinearSampler(sde, times, table, denoise=denoise)


def eab_sde(
    sde: SDE,
    times: Tensor | Grid = Grid("early", 49),
    *,
    denoise: bool = False,
    order: int = 4,
    variable: Annotated[str, Names(*VARIABLES)] = "clock",
    data_std: float = 0.7,
    stochasticity: Stochasticity = REVERSE_SDE,
    gaussians: bool = True,
) -> LinearSampler:
    """The exponential Adams-Bashforth method for the reverse SDE: SA-Solver's predictor (Xue et al., 2023)
    with another linear part, of weak order 2 because the past values hold other noise.

    Args:
        sde, times, denoise: As for every `Sampler`; the grid must end with noise.
        order: Number of values that the polynomial interpolates, fewer in the first steps.
        variable: Variable in which the polynomial interpolates.
        data_std: Standard deviation s of the data that is solved exactly, 0 for x̂_0, inf for ε̂ (many steps).
        stochasticity: Stochasticity η >= 0, 1 for the reverse SDE, 0 for the probability-flow ODE.
        gaussians: Whether to fit the coefficients of up to 50 steps to Gaussian data of every width.

    Raises:
        InputError: If the order is below 1, the variable is unknown, data_std or the stochasticity is
            negative, or log(α/σ) is infinite on the grid.
    """

    def table(sde: SDE, times: Tensor) -> list[Stage]:
        plain = exponential_adams_stages(sde, times, order, False, variable, data_std, stochasticity)
        if not gaussians or len(plain) > FITTED_STEPS:
            return plain
        at = GridCoefficients(sde, times)
        return stages_fitted_to_gaussians(at, plain, stochasticity_at(stochasticity, at.t[:-1]))

    return LinearSampler(sde, times, table, denoise=denoise)


def deis(
    sde: SDE, times: Tensor | Grid = Grid("quadratic", 49), *, denoise: bool = False, order: int = 4
) -> LinearSampler:
    """DEIS in its form tAB (Zhang & Chen, 2023): the polynomial of ε̂ in t.

    Args:
        sde, times, denoise: As for every `Sampler`; the grid must end with noise.
        order: Number of values that the polynomial interpolates, 4 for the paper's tAB3.

    Raises:
        InputError: If the order is below 1, or log(α/σ) is infinite on the grid.
    """
    table = partial(exponential_adams_stages, order=order, corrector=False, variable="t", data_std=math.inf)
    return LinearSampler(sde, times, table, denoise=denoise)


def dpmpp_2m(sde: SDE, times: Tensor | Grid = Grid("clock", 49), *, denoise: bool = False) -> LinearSampler:
    """DPM-Solver++(2M) (Lu et al., 2022, Algorithm 2); arguments as for every `Sampler`.

    The grid must end with noise, here and in the other forms of DPM-Solver++.
    """
    return LinearSampler(sde, times, partial(dpm_solver_stages, order=2), denoise=denoise)


def dpmpp_3m(sde: SDE, times: Tensor | Grid = Grid("clock", 49), *, denoise: bool = False) -> LinearSampler:
    """DPM-Solver++(3M), of third order, see `dpm_solver_stages`; arguments as for every `Sampler`."""
    return LinearSampler(sde, times, partial(dpm_solver_stages, order=3), denoise=denoise)


def dpmpp_sde(
    sde: SDE,
    times: Tensor | Grid = Grid("clock", 49),
    *,
    denoise: bool = False,
    stochasticity: Stochasticity = REVERSE_SDE,
) -> LinearSampler:
    """SDE-DPM-Solver++ of first order (Lu et al., 2022, Appendix A).

    Args:
        sde, times, denoise: As for every `Sampler`.
        stochasticity: Stochasticity η >= 0, 1 for the reverse SDE, 0 for the probability-flow ODE.
    """
    table = partial(dpm_solver_stages, order=1, stochasticity=stochasticity)
    return LinearSampler(sde, times, table, denoise=denoise)


def dpmpp_2m_sde(
    sde: SDE,
    times: Tensor | Grid = Grid("clock", 49),
    *,
    denoise: bool = False,
    stochasticity: Stochasticity = REVERSE_SDE,
) -> LinearSampler:
    """SDE-DPM-Solver++(2M) (Lu et al., 2022, Appendix A).

    Args:
        sde, times, denoise: As for every `Sampler`.
        stochasticity: Stochasticity η >= 0, 1 for the reverse SDE, 0 for the probability-flow ODE.
    """
    table = partial(dpm_solver_stages, order=2, stochasticity=stochasticity)
    return LinearSampler(sde, times, table, denoise=denoise)


def dpmpp_3m_sde(
    sde: SDE,
    times: Tensor | Grid = Grid("clock", 49),
    *,
    denoise: bool = False,
    stochasticity: Stochasticity = REVERSE_SDE,
) -> LinearSampler:
    """SDE-DPM-Solver++(3M), of weak order 2: the noise in the past values hides the third order.

    Args:
        sde, times, denoise: As for every `Sampler`.
        stochasticity: Stochasticity η >= 0, 1 for the reverse SDE, 0 for the probability-flow ODE.
    """
    table = partial(dpm_solver_stages, order=3, stochasticity=stochasticity)
    return LinearSampler(sde, times, table, denoise=denoise)


def unipc(
    sde: SDE,
    times: Tensor | Grid = Grid("log_snr", 49),
    *,
    denoise: bool = False,
    order: int = 3,
    variant: Annotated[str, Names(*UNIPC_VARIANTS)] = "bh2",
) -> LinearSampler:
    """UniPC-p with data prediction and the corrector UniC-p, of order p + 1 (Zhao et al., 2023, Algorithms
    1-4).

    Args:
        sde, times, denoise: As for every `Sampler`; the grid must end with noise.
        order: Order p >= 1 of predictor and corrector, lower in the first and the last steps.
        variant: The function B(h), h for bh1 and e^h - 1 for bh2.

    Raises:
        InputError: If the order is below 1, the variant is unknown, or log(α/σ) is infinite on the grid.
    """
    return LinearSampler(sde, times, partial(unipc_stages, order=order, variant=variant), denoise=denoise)
