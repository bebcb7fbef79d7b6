"""A time grid fitted to a score function: where this score needs its steps, for one sampler and one number
of them.

What a placement of the steps is worth is measured where the local errors have added up: the distance of a
small batch's samples to those of the probability-flow ODE solved in many steps, from the same x_T.
Fitting goes over the logarithm of the density of steps, piecewise linear along the grid one starts from:
steps are taken from where they matter little and put where the error is made, one knot up or down at a
time, and the change is kept if the distance falls.

Reference:
    Learning to Discretize Denoising Diffusion ODEs (Tong et al., 2025), https://arxiv.org/abs/2405.15506: the
    distance to a teacher's solution as the objective (there minimized by gradients through the sampler).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from score_diffusion.samplers.base import Sampler
from score_diffusion.samplers.exponential import eabm
from score_diffusion.samplers.grids import clock, clock_grid, clock_times
from score_diffusion.sde_lib import SDE, ScoreFunction, score_device

FINE_STEPS = 128  # of the solution that the samples are compared with
KNOTS = 8
SWEEPS = 8
FIRST_CHANGE = 0.3  # of the logarithm of the density at a knot


def fit_grid(
    make: Callable[[Tensor], Sampler],
    score: ScoreFunction,
    sde: SDE,
    times: Tensor,
    shape: Sequence[int],
    seed: int = 0,
    batch: int = 256,
    on_step: Callable[[int, int], None] = lambda i, n: None,
) -> Tensor:
    """The grid of as many steps with the smallest error at its end that the search finds.

    Args:
        make: The sampler on a given grid; deterministic, without a final denoising.
        score: The score function.
        sde: The SDE.
        times: The grid to start from, shape (steps + 1,), with noise at its end.
        shape: Shape of one sample.
        seed: Of the batch's x_T.
        batch: Number of samples that the error is measured on.
        on_step: Called as on_step(i, n) after knot i of at most n.

    Returns:
        Times, shape (steps + 1,), float64, with the same ends; those given where nothing is better.

    Raises:
        InputError: If the sampler or the score fails on the grid to start from.
    """
    steps = len(times) - 1
    x_T = sde.prior_std * torch.randn(
        batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    x_T = x_T.to(score_device(score))
    # Fixed steps: the rounding of a float32 network would stop an adaptive solver at such tolerances.
    fine = clock_grid(sde, max(FINE_STEPS, 4 * steps), times[-1].item())
    target = eabm(sde, fine)(score, x_T.shape, x_T=x_T).samples
    tau = clock(sde.noise_level(times.double()))
    places = torch.linspace(0, 1, steps, dtype=torch.float64)
    knots = torch.linspace(0, 1, min(steps, KNOTS), dtype=torch.float64)
    hats = (1 - (places[:, None] - knots).abs() * max(1, len(knots) - 1)).clamp_min(0.0)  # (steps, knots)

    def grid(change: Tensor) -> Tensor:
        lengths = -tau.diff() * (hats @ change).exp()
        lengths = lengths * (tau[0] - tau[-1]) / lengths.sum()
        fitted = clock_times(sde, tau[0] - lengths.cumsum(0))
        fitted[-1] = times[-1]
        return torch.cat([times[:1].double(), fitted])

    def error(change: Tensor) -> float:
        samples = make(grid(change))(score, x_T.shape, x_T=x_T).samples
        return (samples - target).flatten(1).norm(dim=1).clamp_min(1e-30).log().mean().item()

    best = torch.zeros_like(knots)
    start = least = error(best)
    width = FIRST_CHANGE
    for sweep in range(SWEEPS if steps > 1 else 0):
        before = least
        for k in range(len(knots)):
            for sign in (1, -1):
                trial = best.clone()
                trial[k] += sign * width
                found = error(trial)
                if found < least:
                    least, best = found, trial
                    break
            on_step(sweep * len(knots) + k + 1, SWEEPS * len(knots))
        if least == before:
            width /= 2
    return grid(best) if least < start else times.double()
