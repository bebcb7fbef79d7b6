"""A time grid that is fitted to a score function, for one sampler and one number of steps.

The error of a grid is measured at its end, where the local errors have added up: it is the distance of the
samples of a small batch to those of the probability-flow ODE solved in many steps, from the same x_T. The
search changes the logarithm of the density of steps, which is piecewise linear along the initial grid: it
moves one knot up or down at a time, and keeps the change if the error falls.

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

FINE_STEPS = 128  # of the reference solution
KNOTS = 8
SWEEPS = 8
FIRST_CHANGE = 0.3  # of the logarithm of the density at a knot

Progress = Callable[[int, int], None]


def fit_grid(
    make: Callable[[Tensor], Sampler],
    score: ScoreFunction,
    sde: SDE,
    times: Tensor,
    shape: Sequence[int],
    seed: int = 0,
    batch: int = 256,
    on_step: Progress = lambda i, n: None,
) -> Tensor:
    """Searches for the grid with the smallest error at its end.

    Args:
        make: Makes the sampler on a given grid; it is deterministic and has no final denoising.
        score: The score function.
        sde: The SDE.
        times: The initial grid, shape (steps + 1,), with noise at its end.
        shape: Shape of one sample.
        seed: Seed of x_T of the batch.
        batch: Number of samples on which the error is measured.
        on_step: Called as on_step(i, n) after knot i of at most n.

    Returns:
        Times, shape (steps + 1,), float64, with the same ends; the initial ones if no better ones are found.

    Raises:
        InputError: If the sampler or the score fails on the initial grid.
    """
    steps = len(times) - 1
    generator = torch.Generator().manual_seed(seed % 2**63)  # torch takes no larger one
    x_T = sde.prior_std * torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    x_T = x_T.to(score_device(score))
    # Fixed steps: the rounding of a float32 network would stop an adaptive solver at such tolerances.
    fine = clock_grid(sde, max(FINE_STEPS, 4 * steps), times[-1].item())
    target = eabm(sde, fine)(score, x_T.shape, x_T=x_T).samples
    knots = min(steps, KNOTS)

    def error(change: Tensor) -> float:
        samples = make(_respaced(sde, times, change))(score, x_T.shape, x_T=x_T).samples
        return (samples - target).flatten(1).norm(dim=1).clamp_min(1e-30).log().mean().item()

    change = _coordinate_search(error, knots, SWEEPS if steps > 1 else 0, on_step)
    return _respaced(sde, times, change) if change.any() else times.double()


def _respaced(sde: SDE, times: Tensor, change: Tensor) -> Tensor:
    """The grid with the logarithms of its steps in the clock τ changed by these values at knots."""
    tau, knots = (
        clock(sde.log_noise_level(times.double())),
        torch.linspace(0, 1, len(change), dtype=torch.float64),
    )
    places = torch.linspace(0, 1, len(times) - 1, dtype=torch.float64)
    hats = (1 - (places[:, None] - knots).abs() * max(1, len(knots) - 1)).clamp_min(0.0)  # (steps, knots)
    lengths = -tau.diff() * (hats @ change).exp()
    lengths = lengths * (tau[0] - tau[-1]) / lengths.sum()
    fitted = clock_times(sde, tau[0] - lengths.cumsum(0))
    fitted[-1] = times[-1]
    return torch.cat([times[:1].double(), fitted])


def _coordinate_search(
    error: Callable[[Tensor], float], knots: int, sweeps: int, on_step: Progress
) -> Tensor:
    """The values at the knots, shape (knots,), with the smallest error that changing one at a time finds."""
    best = torch.zeros(knots, dtype=torch.float64)
    least, width = error(best), FIRST_CHANGE
    for sweep in range(sweeps):
        before = least
        for k in range(knots):
            for sign in (1, -1):
                trial = best.clone()
                trial[k] += sign * width
                found = error(trial)
                if found < least:
                    least, best = found, trial
                    break
            on_step(sweep * knots + k + 1, sweeps * knots)
        if least == before:
            width /= 2
    return best
