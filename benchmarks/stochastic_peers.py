"""The stochastic samplers of diffusers and azula, and those of k-diffusion restated from their formulas, with
an exact score of ours. They run on the noise levels of a grid to its end, as the deterministic ones of
`peers.py` do, and take their noise from PyTorch's global generator.

SDE-DPMSolver++ 1M stands for several that are the same method on the same levels, and gave the same samples
to three digits: diffusers' DDPM and EulerAncestralDiscrete, azula's DDPM and DDIM at η = 1. diffusers'
DPMSolverSDE and KDPM2AncestralDiscrete are k-diffusion's dpmpp_sde and dpm_2_ancestral.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        https://arxiv.org/abs/2206.00364: ancestral steps, as k-diffusion has them, go to
        σ_down = σ_s √(1 - σ_s²/σ_t²) and add noise of σ_up = √(σ_s² - σ_down²).
    DPM-Solver++ (Lu et al., 2022), https://arxiv.org/abs/2211.01095.
    SA-Solver (Xue et al., 2023), https://arxiv.org/abs/2309.05019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import diffusers
import torch
from torch import Tensor

from benchmarks.peers import Peer, azula_run, variance_preserving
from score_diffusion.samplers import GRIDS
from score_diffusion.sde_lib import SDE, ScoreFunction

try:
    import azula.sample
except ImportError:
    azula = None

GRIDS_OF_PEERS = ("karras", "quadratic")

Denoiser = Callable[[Tensor, float], Tensor]
"""x̂_0 as a function of x̃ = x/α and σ̃ = σ/α."""


def stochastic_peers() -> dict[str, Peer]:
    """Every stochastic peer by name."""
    found = {}
    multistep, single = diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
    end = {"final_sigmas_type": "sigma_min", "algorithm_type": "sde-dpmsolver++"}
    sa = diffusers.SASolverScheduler
    schedulers = {f"SDE-DPMSolver++ {n}M": partial(multistep, solver_order=n, **end) for n in (1, 2, 3)}
    schedulers |= {
        "SDE-DPMSolver++ 2M heun": partial(multistep, solver_order=2, solver_type="heun", **end),
        "SDE-DPMSolver++ 2S": partial(single, solver_order=2, **end),
        "SASolver": sa,
        "SASolver 3, 3": partial(sa, predictor_order=3, corrector_order=3),
        "SASolver tau 1": partial(sa, tau_func=lambda t: 1.0),
    }
    for grid in GRIDS_OF_PEERS:
        for name, make in schedulers.items():
            found[f"{name} {grid}"] = Peer("diffusers", 1, variance_preserving(make, grid))
        for name, (step, cost) in K_DIFFUSION.items():
            found[f"k-diffusion {name} {grid}"] = Peer("k-diffusion", cost, _k_diffusion(step, grid))
    if azula:
        for power, grid in ((1, "uniform"), (2, "quadratic")):
            found[f"azula Ito {grid}"] = Peer("azula", 1, azula_run(azula.sample.ItoSampler, power))
    return found


def _k_diffusion(step: Callable[..., Tensor], grid: str) -> Callable[..., Tensor]:
    def run(sde: SDE, score: ScoreFunction, x_T: Tensor, steps: int) -> Tensor:
        times = GRIDS[grid](sde, steps)
        levels = sde.log_noise_level(times).exp().tolist()

        def denoiser(x: Tensor, level: float) -> Tensor:
            t = sde.time_at_log_noise_level(torch.tensor(level, dtype=torch.float64).log())
            return x + level**2 * sde.alpha(t) * score(sde.alpha(t) * x, t.expand(len(x)))

        x, history = x_T / sde.alpha(times[0]), list[tuple[float, Tensor]]()
        for here, there in zip(levels[:-1], levels[1:], strict=True):
            x = step(denoiser, x, here, there, history)
        return x * sde.alpha(times[-1])

    return run


def _ancestral_levels(here: float, there: float) -> tuple[float, float]:
    """σ_down and σ_up."""
    down = there * math.sqrt(1 - (there / here) ** 2)
    return down, math.sqrt(there**2 - down**2)


def _dpm_2_ancestral(D: Denoiser, x: Tensor, here: float, there: float, _: list) -> Tensor:
    down, up = _ancestral_levels(here, there)
    middle = math.sqrt(here * down)
    half = x + (x - D(x, here)) / here * (middle - here)
    x = x + (half - D(half, middle)) / middle * (down - here)
    return x + up * torch.randn_like(x)


def _dpmpp_2s_ancestral(D: Denoiser, x: Tensor, here: float, there: float, _: list) -> Tensor:
    down, up = _ancestral_levels(here, there)
    middle = math.sqrt(here * down)
    half = middle / here * x + (1 - middle / here) * D(x, here)
    x = down / here * x + (1 - down / here) * D(half, middle)
    return x + up * torch.randn_like(x)


def _dpmpp_sde(D: Denoiser, x: Tensor, here: float, there: float, _: list) -> Tensor:
    middle, denoised = math.sqrt(here * there), D(x, here)
    shared = (here - middle) / (here - there)  # of the variance of one Brownian motion in σ̃
    z = torch.randn_like(x)
    down, up = _ancestral_levels(here, middle)
    half = down / here * x + (1 - down / here) * denoised + up * z
    down, up = _ancestral_levels(here, there)
    x = down / here * x + (1 - down / here) * D(half, middle)
    return x + up * (math.sqrt(shared) * z + math.sqrt(1 - shared) * torch.randn_like(x))


def _dpmpp_3m_sde(D: Denoiser, x: Tensor, here: float, there: float, history: list) -> Tensor:
    denoised, h = D(x, here), math.log(here / there)
    first = -math.expm1(-2 * h)
    moved = math.exp(-2 * h) * x + first * denoised
    if history:
        r0, d0 = history[0][0] / h, (denoised - history[0][1]) / (history[0][0] / h)
        phi_2 = math.expm1(-2 * h) / (2 * h) + 1
        if len(history) > 1:
            r1 = history[1][0] / h
            d1 = (history[0][1] - history[1][1]) / r1
            slope, bend = d0 + (d0 - d1) * r0 / (r0 + r1), (d0 - d1) / (r0 + r1)
            moved = moved + phi_2 * slope - (phi_2 / (2 * h) - 0.5) * bend
        else:
            moved = moved + phi_2 * d0
    history.insert(0, (h, denoised))
    return moved + there * math.sqrt(first) * torch.randn_like(x)


K_DIFFUSION = {
    "dpm_2_ancestral": (_dpm_2_ancestral, 2),
    "dpmpp_2s_ancestral": (_dpmpp_2s_ancestral, 2),
    "dpmpp_sde": (_dpmpp_sde, 2),
    "dpmpp_3m_sde": (_dpmpp_3m_sde, 1),
}
