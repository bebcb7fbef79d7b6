"""Runge-Kutta methods for the probability-flow ODE: plain, with EDM's churn, and with restarts.

The ODE has two forms. In t it is dx/dt = f x - ½ g² score. Where the signal has scale 1, x̃ = x/α with noise
of standard deviation σ̃ = σ/α, the ODE of every SDE is EDM's, dx̃/dσ̃ = (x̃ - x̂_0)/σ̃ = ε̂ = -σ score; the
methods of the papers below are defined there and serve every SDE. DPM-Solver++(2S) is the midpoint method of
an exponential integrator.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        https://arxiv.org/abs/2206.00364: Algorithms 1, 2.
    Restart Sampling for Improving Generative Processes (Xu et al., 2023), https://arxiv.org/abs/2306.14878:
        Algorithm 1.
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022),
        https://arxiv.org/abs/2211.01095: Algorithm 1.
    Solving Ordinary Differential Equations I (Hairer, Nørsett & Wanner, 1993), Section II.1: the tableaus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from score_diffusion.samplers.grids import Grid, karras_times
from score_diffusion.samplers.linear import (
    GridCoefficients,
    LinearSampler,
    Stage,
    denoised_values,
    finite_log_coefficients,
    noise_values,
    stages_of_step,
)
from score_diffusion.samplers.options import Names
from score_diffusion.sde_lib import SDE, InputError, check_name
from score_diffusion.sde_lib.ode_solver import PAIRS, Tableau

# fmt: off
TABLEAUS = {
    "euler":    Tableau((0.0,),     (),        (1.0,),     order=1),
    "midpoint": Tableau((0.0, 0.5), ((0.5,),), (0.0, 1.0), order=2),
    "heun":     PAIRS["adaptive_heun"].tableau,
    "rk4":      Tableau((0.0, 0.5, 0.5, 1.0),
                        ((0.5,),
                         (0.0, 0.5),
                         (0.0, 0.0, 1.0)),
                        (1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4),
}
# fmt: on


def runge_kutta_stages(sde: SDE, times: Tensor, tableau: Tableau) -> list[Stage]:
    """The table of a method in the variable t."""
    stages = []
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        at = GridCoefficients(sde, [t + c * (s - t) for c in tableau.c])
        values = list(zip(at.f.tolist(), (-at.g2 / 2).tolist(), strict=True))
        rows = [(1.0, [(s - t) * a for a in row]) for row in (*tableau.a, tableau.b)]
        stages += stages_of_step(at.t.tolist(), values, rows)
    return stages


def _step_in_sigma(sde: SDE, t: float, s: float, tableau: Tableau, ends_step: bool = True) -> list[Stage]:
    """The stages of a step from t to s in the variable σ̃; the states are α x̃."""
    ends = GridCoefficients(sde, [t, s])
    span = ends.noise_level.diff()
    sigmas = ends.noise_level[0] + torch.tensor(tableau.c, dtype=torch.float64) * span
    inner = sde.time_at_log_noise_level(sigmas.log()).tolist()
    at = GridCoefficients(sde, [{0.0: t, 1.0: s}.get(c, u) for c, u in zip(tableau.c, inner, strict=True)])
    alphas = [*at.alpha[1:].tolist(), ends.alpha[1].item()]
    rows = [
        (alpha / ends.alpha[0].item(), [alpha * span.item() * a for a in row])
        for alpha, row in zip(alphas, (*tableau.a, tableau.b), strict=True)
    ]
    return stages_of_step(at.t.tolist(), noise_values(at), rows, ends_step)


def _time_at_sigma(sde: SDE, sigma: float) -> float:
    """The time at which σ/α has a value."""
    return sde.time_at_log_noise_level(torch.tensor(math.log(sigma), dtype=torch.float64)).item()


def _forward(sde: SDE, t: float, later: float, scale: float = 1.0) -> Stage:
    """From t forward to a later time by the exact transition, its noise times `scale`; no evaluation."""
    times = torch.tensor([t, later], dtype=torch.float64)
    alpha_ts, var_ts = sde.transition(times[:1], times[1:])
    return Stage(None, (0.0, 0.0), alpha_ts.item(), (), scale * var_ts.sqrt().item(), ends_step=False)


def edm_stages(
    sde: SDE,
    times: Tensor,
    method: str,
    S_churn: float,
    S_tmin: float,
    S_tmax: float,
    S_noise: float,
) -> list[Stage]:
    """The table of EDM's sampler, Algorithm 1 without churn and Algorithm 2 with it; see `edm_churn`."""
    check_name("method", method, TABLEAUS)
    if S_churn < 0:
        raise InputError(f"S_churn must be at least 0, got {S_churn}")
    at = finite_log_coefficients(sde, times)
    highest = GridCoefficients(sde, [sde.T]).noise_level.item()
    gamma = min(S_churn / len(at.t), math.sqrt(2) - 1)  # the paper's N counts the step to σ̃ = 0
    stages = []
    for i, (t, s) in enumerate(zip(at.t[:-1].tolist(), at.t[1:].tolist(), strict=True)):
        sigma = at.noise_level[i].item()
        if gamma and S_tmin <= sigma <= S_tmax and (1 + gamma) * sigma <= highest:
            raised = _time_at_sigma(sde, (1 + gamma) * sigma)
            stages.append(_forward(sde, t, raised, S_noise))
            t = raised
        stages += _step_in_sigma(sde, t, s, TABLEAUS[method])
    return stages


Interval = tuple[float, float, int, int]
"""An interval of restarts: (σ̃_min, σ̃_max, K, steps)."""


def restart_stages(sde: SDE, times: Tensor, intervals: Sequence[Interval]) -> list[Stage]:
    """The table of restart sampling, see `restart`."""
    at = finite_log_coefficients(sde, times)
    heun, sigmas = TABLEAUS["heun"], at.noise_level
    after: dict[int, list[tuple[float, int, int]]] = {}
    for low, high, repeats, steps in intervals:
        if not (sigmas[-1] <= low < high <= sigmas[0]) or min(repeats, steps) < 1:
            raise InputError(
                f"a restart needs {sigmas[-1]:.4g} <= σ_min < σ_max <= {sigmas[0]:.4g}, the range of σ/α on "
                f"the grid, and K and steps of at least 1, got {(low, high, repeats, steps)}"
            )
        nearest = int((sigmas[1:].log() - math.log(low)).abs().argmin()) + 1
        after.setdefault(nearest, []).append((high, repeats, steps))
    stages = []
    for i, (t, s) in enumerate(zip(at.t[:-1].tolist(), at.t[1:].tolist(), strict=True), start=1):
        of_step = _step_in_sigma(sde, t, s, heun, ends_step=i not in after)
        for high, repeats, steps in after.get(i, ()):
            back = karras_times(sde, high, sigmas[i].item(), steps).tolist()
            back[-1] = s
            for _ in range(repeats):
                of_step.append(_forward(sde, s, back[0]))
                for a, b in zip(back[:-1], back[1:], strict=True):
                    of_step += _step_in_sigma(sde, a, b, heun, ends_step=False)
        if i in after:
            of_step[-1] = replace(of_step[-1], ends_step=True)
        stages += of_step
    return stages


def dpm_solver_2s_stages(sde: SDE, times: Tensor) -> list[Stage]:
    """The table of DPM-Solver++(2S), see `dpmpp_2s`."""
    lam = finite_log_coefficients(sde, times).lam
    middle = sde.time_at_log_noise_level(-(lam[:-1] + lam[1:]) / 2)
    stages = []
    for t, m, s in zip(times[:-1].tolist(), middle.tolist(), times[1:].tolist(), strict=True):
        at = GridCoefficients(sde, [t, m, s])
        (keep_m, keep_s), h = (at.sigma[1:] / at.sigma[0]).tolist(), at.lam - at.lam[0]
        to_m, to_s = (-at.alpha[1:] * torch.expm1(-h[1:])).tolist()
        rows = [(keep_m, [to_m]), (keep_s, [0.0, to_s])]
        stages += stages_of_step([t, m], denoised_values(at)[:2], rows)
    return stages


def euler(sde: SDE, times: Tensor | Grid = Grid("clock", 49), *, denoise: bool = False) -> LinearSampler:
    """Euler's method in t; arguments as for every `Sampler`."""
    return _in_t(sde, times, "euler", denoise)


def midpoint(sde: SDE, times: Tensor | Grid = Grid("clock", 24), *, denoise: bool = False) -> LinearSampler:
    """The midpoint method in t; arguments as for every `Sampler`."""
    return _in_t(sde, times, "midpoint", denoise)


def heun(sde: SDE, times: Tensor | Grid = Grid("clock", 24), *, denoise: bool = False) -> LinearSampler:
    """Heun's method in t; arguments as for every `Sampler`."""
    return _in_t(sde, times, "heun", denoise)


def rk4(sde: SDE, times: Tensor | Grid = Grid("clock", 12), *, denoise: bool = False) -> LinearSampler:
    """The classical Runge-Kutta method in t; arguments as for every `Sampler`."""
    return _in_t(sde, times, "rk4", denoise)


def _in_t(sde: SDE, times: Tensor | Grid, method: str, denoise: bool) -> LinearSampler:
    table = partial(runge_kutta_stages, tableau=TABLEAUS[method])
    return LinearSampler(sde, times, table, denoise=denoise)


def dpmpp_2s(sde: SDE, times: Tensor | Grid = Grid("clock", 24), *, denoise: bool = False) -> LinearSampler:
    """DPM-Solver++(2S) (Lu et al., 2022, Algorithm 1) with its second evaluation halfway in λ (r_1 = ½);
    arguments as for every `Sampler`. The grid must end with noise.
    """
    return LinearSampler(sde, times, dpm_solver_2s_stages, denoise=denoise)


def edm(
    sde: SDE,
    times: Tensor | Grid = Grid("karras", 24),
    *,
    denoise: bool = False,
    method: Annotated[str, Names(*TABLEAUS)] = "heun",
) -> LinearSampler:
    """EDM's deterministic sampler (Karras et al., 2022, Algorithm 1): Heun steps in σ̃.

    The final denoising is the last step of the paper, an Euler step to σ̃ = 0.

    Args:
        sde, times, denoise: As for every `Sampler`; the grid must end with noise.
        method: Runge-Kutta method of a step, Heun's in the paper.

    Raises:
        InputError: If the method is unknown, or log(α/σ) is infinite on the grid.
    """
    table = partial(edm_stages, method=method, S_churn=0.0, S_tmin=0.0, S_tmax=math.inf, S_noise=1.0)
    return LinearSampler(sde, times, table, denoise=denoise)


def edm_churn(
    sde: SDE,
    times: Tensor | Grid = Grid("karras", 24),
    *,
    denoise: bool = False,
    S_churn: float = 40.0,
    S_tmin: float = 0.05,
    S_tmax: float = 50.0,
    S_noise: float = 1.003,
) -> LinearSampler:
    """EDM's stochastic sampler (Karras et al., 2022, Algorithm 2): before each Heun step noise is added that
    raises σ̃ to (1 + γ) σ̃ with γ = min(S_churn/N, √2 - 1), except beyond the σ̃ of the SDE's end time.

    The final denoising is the last step of the paper, an Euler step to σ̃ = 0.

    Args:
        sde, times, denoise: As for every `Sampler`; the grid must end with noise.
        S_churn: Amount of noise that is added over all steps, 30 to 80 in the paper, 0 for the ODE.
        S_tmin: Lowest σ̃ at which noise is added.
        S_tmax: Highest σ̃ at which noise is added.
        S_noise: Factor of the added noise, slightly above 1 against the loss of detail.

    Raises:
        InputError: If S_churn is negative, or log(α/σ) is infinite on the grid.
    """
    table = partial(edm_stages, method="heun", S_churn=S_churn, S_tmin=S_tmin, S_tmax=S_tmax, S_noise=S_noise)
    return LinearSampler(sde, times, table, denoise=denoise)


def restart(
    sde: SDE,
    times: Tensor | Grid = Grid("karras", 12),
    *,
    denoise: bool = False,
    intervals: Sequence[Interval] = ((0.06, 0.3, 3, 4),),
) -> LinearSampler:
    """Restart sampling (Xu et al., 2023, Algorithm 1): Heun steps in σ̃ and, where they pass the lower end of
    an interval, K times forward to its upper end by the SDE and back by Heun steps.

    Args:
        sde, times, denoise: As for every `Sampler`; the grid must end with noise.
        intervals: Intervals (σ̃_min, σ̃_max, K, steps), with the Heun steps of each way back on Karras' grid.
            An interval starts at the time of the grid next to its lower end.

    Raises:
        InputError: If an interval is empty, not within the noise levels of the grid, or has no repetition or
            step, or log(α/σ) is infinite on the grid.
    """
    return LinearSampler(sde, times, partial(restart_stages, intervals=intervals), denoise=denoise)
