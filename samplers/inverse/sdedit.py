"""SDEdit: image-to-image by noising a guide, such as a painted sketch, and denoising it.

    x_{t_0} = α(t_0) x_guide + σ(t_0) z, then any sampler from t_0 to 0                        (Algorithm 1)

    times = times_from(sde, clock_grid(sde, 50), start=0.6)
    x_T = noised_guide(sde, guide, start=0.6, seed=0)
    result = ancestral(sde, times, denoise=True)(score, x_T.shape, seed=0, x_T=x_T)

With t_0 near 0 the result is the guide, with t_0 = T an unconditional sample. To keep parts of the guide as
they are (Algorithm 2), sample with the score `Replacement` and a `Mask` of these parts.

Assumes that at t_0 noised guides look like noised data. There is no likelihood, and no posterior that it
samples.

Reference:
    SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (Meng et al., 2022),
        https://arxiv.org/abs/2108.01073.
"""

from __future__ import annotations

import torch
from torch import Tensor

from score_diffusion.samplers.grids import Grid
from score_diffusion.sde_lib import SDE, InputError, SampleNoise


def times_from(sde: SDE, times: Tensor, start: float) -> Tensor:
    """The part of a time grid from a start time on: the start, and the times of the grid below it.

    Args:
        sde: The SDE.
        times: Time grid, shape (steps + 1,).
        start: t_0, above the last time of the grid and at most T.

    Returns:
        Times, decreasing, float64.

    Raises:
        InputError: If start does not lie there.
    """
    times = torch.as_tensor(times, dtype=torch.float64).cpu()
    if not times[-1] < start <= sde.T:
        raise InputError(f"start must lie in ({times[-1].item():.6g}, {sde.T}], got {start}")
    first = torch.tensor([start], dtype=torch.float64)
    return torch.cat([first, times[times < start]])


def grid_from(sde: SDE, grid: Grid, start: float) -> Tensor:
    """A grid by name whose steps all lie below a start time: `grid.steps` of them, or one fewer.

    Returns:
        Times from the start down, float64.

    Raises:
        InputError: If start is not above the last time of the grid, or above T.
    """
    if grid.steps is None:
        raise InputError("a grid from a start time needs a number of steps, got None")
    n, longer = grid.steps, times_from(sde, grid.times(sde), start)
    while len(longer) <= grid.steps + 1:
        times, n = longer, n + 1
        longer = times_from(sde, Grid(grid.name, n).times(sde), start)
    return times


def noised_guide(sde: SDE, guide: Tensor, start: float, seed: int = 0, first: int = 0) -> Tensor:
    """The guide at time `start`, for a sampler's x_T.

    Args:
        sde: The SDE.
        guide: One guide for each sample, shape (B, *shape), floating point.
        start: t_0 in (0, T].
        seed: Seed of the run; the noise of sample k depends on (seed, first + k) only.
        first: Index of the first sample within its run.

    Returns:
        Start states, shape (B, *shape).

    Raises:
        InputError: If start does not lie in (0, T].
    """
    if not 0 < start <= sde.T:
        raise InputError(f"start must lie in (0, {sde.T}], got {start}")
    t = torch.tensor(start, dtype=torch.float64)
    noise = SampleNoise(seed, first, guide.shape, guide.device, guide.dtype, purpose="sdedit")
    return sde.alpha(t).item() * guide + sde.sigma(t).item() * noise.normal()
