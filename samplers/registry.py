"""Every sampler by name, with what it promises: its order, its cost, its grid and its paper.

    sampler = make_sampler("eabm", sde, nfe=20)

The order is that of the error at the last time as steps shrink: of every sample for the deterministic
methods, of mean and covariance (the weak order) for the stochastic ones. The tests measure each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from score_diffusion.samplers.adaptive import AdaptiveSDESampler
from score_diffusion.samplers.ancestral import AncestralSampler, DDIMSampler
from score_diffusion.samplers.base import Sampler
from score_diffusion.samplers.exponential import dpm_solver_stages, exponential_adams_stages, unipc_stages
from score_diffusion.samplers.grids import GRIDS
from score_diffusion.samplers.langevin import AnnealedLangevinSampler, ConsistentAnnealedSampler
from score_diffusion.samplers.linear import LinearSampler, Stage
from score_diffusion.samplers.ode import ODESampler
from score_diffusion.samplers.predictor_corrector import PCSampler
from score_diffusion.samplers.predictors import Ancestral, EulerMaruyama, ReverseDiffusion
from score_diffusion.samplers.runge_kutta import (
    dpm_solver_2s_stages,
    edm_stages,
    restart_stages,
    runge_kutta_stages,
)
from score_diffusion.sde_lib import SDE

DEFAULT = "eabm"
"""The sampler to take where nothing speaks for another."""


@dataclass(frozen=True)
class SamplerSpec:
    """What a sampler is and costs."""

    make: Callable[[SDE, Tensor, bool], Sampler]
    """From the SDE, the time grid and whether to end with Tweedie's formula."""
    order: int | None
    """Of its error in the step size; None for MCMC, whose error does not vanish with the step size alone."""
    nfe_per_step: int | None
    """Evaluations a step; None for methods that choose their own steps."""
    stochastic: bool
    paper: str
    grid: str = "clock"
    """The name of its default grid in `GRIDS`."""
    extra: int = 0
    """Evaluations beyond those of the steps."""
    serves: str = "all"
    """Which SDEs."""
    nfe: int = 50
    """Evaluations to spend where nobody says how many."""

    def steps(self, nfe: int, denoise: bool) -> int:
        """The most steps that cost at most `nfe` evaluations, the final denoising included.

        Raises:
            ValueError: If not even one does, or the method chooses its own steps.
        """
        if self.nfe_per_step is None:
            raise ValueError("an adaptive method chooses its own steps: set rtol and atol instead of nfe")
        steps = (nfe - self.extra - denoise) // self.nfe_per_step
        if steps < 1:
            least = self.nfe_per_step + self.extra + denoise
            raise ValueError(f"one step costs {least} evaluations with all that belongs to it, got nfe={nfe}")
        return steps


def _table(
    stages: Callable[..., list[Stage]], *options: object
) -> Callable[[SDE, Tensor, bool], LinearSampler]:
    return lambda sde, times, denoise: LinearSampler(
        sde, times, stages(sde, times, *options), denoise=denoise
    )


def _cas(sde: SDE, times: Tensor, denoise: bool) -> ConsistentAnnealedSampler:
    """With the step size 1.1 times the least one that the grid allows, or 0.2, up to a full denoising."""
    least = 2 * (1 - sde.noise_level(times).diff().exp().min().item())
    return ConsistentAnnealedSampler(sde, times, min(2.0, max(0.2, 1.1 * least)), denoise)


RESTART_STEPS = 24  # evaluations of the default restarts: 3 times 4 Heun steps

SAMPLERS: dict[str, SamplerSpec] = {
    "eabm": SamplerSpec(
        _table(exponential_adams_stages),
        5,
        1,
        False,
        "exponential Adams-Bashforth-Moulton, see samplers/exponential.py",
    ),
    "dpmpp_2s": SamplerSpec(_table(dpm_solver_2s_stages), 2, 2, False, "DPM-Solver++ (Lu et al., 2022)"),
    "dpmpp_2m": SamplerSpec(_table(dpm_solver_stages, 2), 2, 1, False, "DPM-Solver++ (Lu et al., 2022)"),
    "dpmpp_3m": SamplerSpec(_table(dpm_solver_stages, 3), 3, 1, False, "DPM-Solver++ (Lu et al., 2022)"),
    "unipc": SamplerSpec(_table(unipc_stages), 4, 1, False, "UniPC (Zhao et al., 2023)", "log_snr"),
    "deis": SamplerSpec(
        _table(exponential_adams_stages, 4, False, "t", math.inf),
        4,
        1,
        False,
        "DEIS, tAB3 (Zhang & Chen, 2023)",
        "quadratic",
    ),
    "ddim": SamplerSpec(
        lambda sde, times, denoise: DDIMSampler(sde, times, denoise=denoise),
        1,
        1,
        False,
        "DDIM (Song et al., 2021)",
    ),
    "euler": SamplerSpec(
        _table(runge_kutta_stages, "euler"), 1, 1, False, "probability flow (Song et al., 2021)"
    ),
    "midpoint": SamplerSpec(
        _table(runge_kutta_stages, "midpoint"), 2, 2, False, "probability flow (Song et al., 2021)"
    ),
    "heun": SamplerSpec(
        _table(runge_kutta_stages, "heun"), 2, 2, False, "probability flow (Song et al., 2021)"
    ),
    "rk4": SamplerSpec(
        _table(runge_kutta_stages, "rk4"), 4, 4, False, "probability flow (Song et al., 2021)"
    ),
    "edm": SamplerSpec(_table(edm_stages), 2, 2, False, "EDM, Algorithm 1 (Karras et al., 2022)", "karras"),
    "ode": SamplerSpec(
        lambda sde, times, denoise: ODESampler(sde, times=times[[0, -1]], denoise=denoise),
        5,
        None,
        False,
        "Dormand-Prince, a step size for each sample (Song et al., 2021)",
    ),
    "adaptive_sde": SamplerSpec(
        lambda sde, times, denoise: AdaptiveSDESampler(sde, times[[0, -1]], denoise=denoise),
        None,
        None,
        True,
        "Gotta Go Fast, a step size for each sample (Jolicoeur-Martineau et al., 2021)",
    ),
    "pc": SamplerSpec(
        lambda sde, times, denoise: PCSampler(sde, times=times, denoise=denoise),
        None,
        2,
        True,
        "predictor-corrector (Song et al., 2021)",
        nfe=1001,
    ),
    "euler_maruyama": SamplerSpec(
        _table(EulerMaruyama().stages), 1, 1, True, "reverse SDE (Song et al., 2021)"
    ),
    "reverse_diffusion": SamplerSpec(
        _table(ReverseDiffusion().stages), 1, 1, True, "reverse SDE, eq. 46 (Song et al., 2021)"
    ),
    "ancestral": SamplerSpec(_table(Ancestral().stages), 1, 1, True, "ancestral sampling (Ho et al., 2020)"),
    "ddpm": SamplerSpec(
        lambda sde, times, denoise: AncestralSampler(sde, times, denoise=denoise),
        1,
        1,
        True,
        "DDPM, Algorithm 2 (Ho et al., 2020)",
        "chain",
        serves="VP, sub-VP, VE, DDPM's chains",
        nfe=500,
    ),
    "dpmpp_sde": SamplerSpec(
        _table(dpm_solver_stages, 1, 1.0), 1, 1, True, "SDE-DPM-Solver++ (Lu et al., 2022)"
    ),
    "dpmpp_2m_sde": SamplerSpec(
        _table(dpm_solver_stages, 2, 1.0), 2, 1, True, "SDE-DPM-Solver++ (Lu et al., 2022)"
    ),
    "dpmpp_3m_sde": SamplerSpec(
        _table(dpm_solver_stages, 3, 1.0), 2, 1, True, "SDE-DPM-Solver++ (Lu et al., 2022)"
    ),
    "edm_churn": SamplerSpec(
        _table(edm_stages, 40.0), 2, 2, True, "EDM, Algorithm 2 (Karras et al., 2022)", "karras"
    ),
    "restart": SamplerSpec(
        _table(restart_stages), 2, 2, True, "Restart (Xu et al., 2023)", "karras", RESTART_STEPS
    ),
    "ald": SamplerSpec(
        lambda sde, times, denoise: AnnealedLangevinSampler(sde, times, denoise=denoise),
        None,
        5,
        True,
        "annealed Langevin dynamics (Song & Ermon, 2019)",
        "log_snr",
        extra=5,
        nfe=1006,
    ),
    "cas": SamplerSpec(
        _cas,
        None,
        1,
        True,
        "consistent annealed sampling (Jolicoeur-Martineau et al., 2021)",
        "log_snr",
        nfe=201,
    ),
}


def find_sampler(name: str) -> SamplerSpec:
    """SAMPLERS[name].

    Raises:
        ValueError: If there is no such name.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def make_sampler(
    name: str, sde: SDE, nfe: int | None = None, grid: str | Tensor | None = None, denoise: bool = False
) -> Sampler:
    """A sampler by name, with the settings of its paper, for a number of evaluations.

    Args:
        name: A name in `SAMPLERS`.
        sde: The SDE.
        nfe: Evaluations per sample at most, the final denoising included; None where `grid` is a list of
            times, or the method chooses its own steps.
        grid: A name in `GRIDS`, or the times themselves, shape (steps + 1,); None for the sampler's own.
        denoise: Whether to end with Tweedie's formula.

    Returns:
        The sampler.

    Raises:
        ValueError: If a name is unknown, nfe does not suffice for one step, or the SDE does not fit.
    """
    spec = find_sampler(name)
    if isinstance(grid, Tensor):
        return spec.make(sde, grid, denoise)
    grid = grid or spec.grid
    if grid not in GRIDS:
        raise ValueError(
            f"unknown grid {grid!r}; choose one of {', '.join(GRIDS)}, or give a tensor of times"
        )
    if nfe is None and spec.nfe_per_step is not None:
        raise ValueError(f"sampler {name!r} needs nfe, a number of evaluations, or a tensor of times as grid")
    steps = 1 if nfe is None else spec.steps(nfe, denoise)
    return spec.make(sde, GRIDS[grid](sde, steps), denoise)


def sampler_table() -> list[tuple[str, ...]]:
    """Rows (name, kind, order, NFE per step, grid, SDEs, paper) of all samplers, a header first."""
    rows: list[tuple[str, ...]] = [("name", "kind", "order", "NFE/step", "grid", "SDEs", "paper")]
    for name, spec in SAMPLERS.items():
        kind = "SDE" if spec.stochastic else "ODE"
        per_step = "adaptive" if spec.nfe_per_step is None else str(spec.nfe_per_step)
        order = "-" if spec.order is None else str(spec.order)
        rows.append((name, kind, order, per_step, spec.grid, spec.serves, spec.paper))
    return rows
