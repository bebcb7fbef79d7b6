"""Runge-Kutta methods of the probability-flow ODE, alone, with EDM's churn, and with restarts.

Two clocks. In t itself the ODE is dx/dt = f x - ½ g² score. Where the signal has scale 1, x̃ = x/α at the
noise level σ̃ = σ/α, every SDE's is EDM's dx̃/dσ̃ = (x̃ - x̂_0)/σ̃ = ε̂ = -σ score, and the methods of the
papers below, defined there, serve every SDE. DPM-Solver++(2S) is the midpoint method of an exponential
integrator.

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
from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.samplers.exponential import denoised_values, noisy_path
from score_diffusion.samplers.grids import karras_times
from score_diffusion.samplers.linear import Path, Stage, stages_of_step
from score_diffusion.sde_lib import SDE


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: stage i is evaluated at t + c_i h, after x + h Σ_j a_ij v_j.

    Raises:
        ValueError: If a row of a does not sum to its c, or b to 1.
    """

    a: tuple[tuple[float, ...], ...]
    """Rows of the second and later stages."""
    b: tuple[float, ...]
    order: int

    def __post_init__(self) -> None:
        if not math.isclose(sum(self.b), 1) or len(self.b) != len(self.a) + 1:
            raise ValueError(f"the weights b of a tableau must sum to 1, one for each stage, got {self.b}")

    @property
    def c(self) -> tuple[float, ...]:
        """The stages' positions within a step, the sums of the rows of a."""
        return (0.0, *(sum(row) for row in self.a))


TABLEAUS = {
    "euler": Tableau((), (1.0,), order=1),
    "midpoint": Tableau(((0.5,),), (0.0, 1.0), order=2),
    "heun": Tableau(((1.0,),), (0.5, 0.5), order=2),
    "rk4": Tableau(((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4),
}


def runge_kutta_stages(sde: SDE, times: Tensor, method: str) -> list[Stage]:
    """The table of a method in `TABLEAUS`, in the clock t.

    Raises:
        ValueError: If the method is unknown.
    """
    tableau = _tableau(method)
    stages = []
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        path = Path(sde, [t + c * (s - t) for c in tableau.c])
        values = list(zip(path.f.tolist(), (-path.g2 / 2).tolist(), strict=True))
        rows = [(1.0, [(s - t) * a for a in row]) for row in (*tableau.a, tableau.b)]
        stages += stages_of_step(path.t.tolist(), values, rows)
    return stages


def _tableau(method: str) -> Tableau:
    if method not in TABLEAUS:
        raise ValueError(f"method must be one of {', '.join(TABLEAUS)}, got {method!r}")
    return TABLEAUS[method]


def _level_step(sde: SDE, t: float, s: float, tableau: Tableau, ends_step: bool = True) -> list[Stage]:
    """A step from t to s in the clock σ̃; the states are α x̃."""
    ends = Path(sde, [t, s])
    levels = ends.level[0] + torch.tensor(tableau.c, dtype=torch.float64) * ends.level.diff()
    inner = sde.time_at_log_snr(-2 * levels.log()).tolist()
    path = Path(sde, [{0.0: t, 1.0: s}.get(c, u) for c, u in zip(tableau.c, inner, strict=True)])
    span = ends.level.diff().item()
    alphas = [*path.alpha[1:].tolist(), ends.alpha[1].item()]
    rows = [
        (alpha / ends.alpha[0].item(), [alpha * span * a for a in row])
        for alpha, row in zip(alphas, (*tableau.a, tableau.b), strict=True)
    ]
    values = [(0.0, -sigma) for sigma in path.sigma.tolist()]
    return stages_of_step(path.t.tolist(), values, rows, ends_step)


def _time_at_level(sde: SDE, level: float) -> float:
    return sde.time_at_log_snr(torch.tensor(-2 * math.log(level), dtype=torch.float64)).item()


def _jump(sde: SDE, t: float, later: float, scale: float = 1.0) -> Stage:
    """Forward from t to a later time by the exact transition, its noise times `scale`; no evaluation."""
    times = torch.tensor([t, later], dtype=torch.float64)
    alpha_ts, var_ts = sde.transition(times[:1], times[1:])
    return Stage(None, (0.0, 0.0), alpha_ts.item(), (), scale * var_ts.sqrt().item(), ends_step=False)


def edm_stages(
    sde: SDE,
    times: Tensor,
    S_churn: float = 0.0,
    S_tmin: float = 0.05,
    S_tmax: float = 50.0,
    S_noise: float = 1.003,
    method: str = "heun",
) -> list[Stage]:
    """EDM's sampler (Karras et al., 2022, Algorithm 2; without churn Algorithm 1): before each step noise is
    added that takes σ̃ to (1 + γ) σ̃, γ = min(S_churn/N, √2 - 1); then comes a Heun step in σ̃.

    Ending with `denoise=True` is the paper's last step, an Euler step to σ̃ = 0.

    Args:
        sde: The SDE; σ̃ is not raised beyond that of its end time.
        times: Time grid, shape (steps + 1,); the paper's is `karras_grid`.
        S_churn: Amount of noise over all steps; 0 for the ODE. The paper uses 30 to 80.
        S_tmin: Lowest σ̃ at which noise is added.
        S_tmax: Highest σ̃ at which noise is added.
        S_noise: Standard deviation of the noise, slightly above 1 against the loss of detail.
        method: A name in `TABLEAUS`, the paper's is Heun's.

    Returns:
        The table.

    Raises:
        ValueError: If S_churn is negative, the method is unknown, or log(α/σ) is infinite on the grid.
    """
    if S_churn < 0:
        raise ValueError(f"S_churn must be at least 0, got {S_churn}")
    tableau, path = _tableau(method), noisy_path(sde, times)
    highest = Path(sde, [sde.T]).level.item()
    gamma = min(S_churn / len(path.t), math.sqrt(2) - 1)  # the paper's N counts the step to σ̃ = 0
    stages = []
    for i, (t, s) in enumerate(zip(path.t[:-1].tolist(), path.t[1:].tolist(), strict=True)):
        level = path.level[i].item()
        if gamma and S_tmin <= level <= S_tmax and (1 + gamma) * level <= highest:
            raised = _time_at_level(sde, (1 + gamma) * level)
            stages.append(_jump(sde, t, raised, S_noise))
            t = raised
        stages += _level_step(sde, t, s, tableau)
    return stages


def restart_stages(
    sde: SDE,
    times: Tensor,
    intervals: Sequence[tuple[float, float, int, int]] = ((0.06, 0.3, 3, 4),),
) -> list[Stage]:
    """Restart sampling (Xu et al., 2023, Algorithm 1): Heun steps in σ̃ and, where they pass the lower end
    of an interval, K times forward to its upper end by the SDE and back by Heun steps.

    Args:
        sde: The SDE.
        times: Time grid, shape (steps + 1,). An interval starts at the grid's time next to its lower end.
        intervals: (σ̃_min, σ̃_max, K, steps) each: noise levels, repetitions, Heun steps of each way back on
            Karras' grid.

    Returns:
        The table.

    Raises:
        ValueError: If an interval is empty, not within the grid's noise levels, or has no repetition or step.
    """
    path = noisy_path(sde, times)
    heun, levels = TABLEAUS["heun"], path.level
    after: dict[int, list[tuple[float, int, int]]] = {}
    for low, high, repeats, steps in intervals:
        if not (levels[-1] <= low < high <= levels[0]) or min(repeats, steps) < 1:
            raise ValueError(
                f"a restart needs {levels[-1]:.4g} <= σ_min < σ_max <= {levels[0]:.4g}, the noise levels of "
                f"the grid, and K and steps of at least 1, got {(low, high, repeats, steps)}"
            )
        nearest = int((levels[1:].log() - math.log(low)).abs().argmin()) + 1
        after.setdefault(nearest, []).append((high, repeats, steps))
    stages = []
    for i, (t, s) in enumerate(zip(path.t[:-1].tolist(), path.t[1:].tolist(), strict=True), start=1):
        pieces = _level_step(sde, t, s, heun, ends_step=i not in after)
        for high, repeats, steps in after.get(i, ()):
            back = karras_times(sde, high, levels[i].item(), steps).tolist()
            back[-1] = s
            for _ in range(repeats):
                pieces.append(_jump(sde, s, back[0]))
                for a, b in zip(back[:-1], back[1:], strict=True):
                    pieces += _level_step(sde, a, b, heun, ends_step=False)
        if i in after:
            *pieces, last = pieces
            pieces.append(Stage(last.time, last.value, last.keep, last.weights, last.std))
        stages += pieces
    return stages


def dpm_solver_2s_stages(sde: SDE, times: Tensor) -> list[Stage]:
    """DPM-Solver++(2S) (Lu et al., 2022, Algorithm 1) with its second evaluation halfway in λ (r_1 = ½).

    Raises:
        ValueError: If log(α/σ) is infinite on the grid.
    """
    lam = noisy_path(sde, times).lam
    middle = sde.time_at_log_snr(lam[:-1] + lam[1:])
    stages = []
    for t, m, s in zip(times[:-1].tolist(), middle.tolist(), times[1:].tolist(), strict=True):
        path = Path(sde, [t, m, s])
        (keep_m, keep_s), h = (path.sigma[1:] / path.sigma[0]).tolist(), path.lam - path.lam[0]
        to_m, to_s = (-path.alpha[1:] * torch.expm1(-h[1:])).tolist()
        rows = [(keep_m, [to_m]), (keep_s, [0.0, to_s])]
        stages += stages_of_step([t, m], denoised_values(path)[:2], rows)
    return stages
