"""Time grids: where a sampler places its steps.

A grid is a float64 tensor of steps + 1 strictly decreasing times from T to eps. The length of a step follows
from the grid only. `Grid("karras", 20)` names a grid before there is an SDE; every sampler takes either.

References:
    Denoising Diffusion Implicit Models (Song et al., 2021), https://arxiv.org/abs/2010.02502: quadratic.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        https://arxiv.org/abs/2206.00364: eq. 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from score_diffusion.sde_lib import SDE, InputError, chain_times, check_name

FEW_STEPS = 15
"""In so few steps of `eabm` what happens at high noise decides, and high orders do more harm than good."""


def _checked_end(sde: SDE, steps: int, eps: float | None) -> float:
    """The last time of a grid."""
    eps = sde.sampling_eps if eps is None else eps
    if not isinstance(steps, Integral) or steps < 1:
        raise InputError(f"steps must be a positive integer, got {steps!r}")
    if not 0 <= eps < sde.T:
        raise InputError(f"eps must lie in [0, T) = [0, {sde.T}), got {eps}")
    return eps


def _evenly(first: float, last: float, steps: int) -> Tensor:
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def _noisy_ends(sde: SDE, steps: int, eps: float | None) -> Tensor:
    """(T, eps), both with a finite log(σ/α)."""
    ends = torch.tensor([sde.T, _checked_end(sde, steps, eps)], dtype=torch.float64)
    first, last = sde.log_noise_level(ends).tolist()
    if not (math.isfinite(first) and math.isfinite(last)):
        raise InputError(
            f"log(σ/α) must be finite at both ends of the grid; it is {first} at T and {last} at eps: "
            "choose another eps"
        )
    return ends


def _with_ends(times: Tensor, ends: Tensor) -> Tensor:
    """The times with their ends set to the exact values."""
    times[[0, -1]] = ends
    return times


def uniform_grid(sde: SDE, steps: int, eps: float | None = None) -> Tensor:
    """Times that are uniform in t (Song et al., 2021, Appendix G).

    Args:
        sde: The SDE, for T and its `sampling_eps`.
        steps: Number of steps.
        eps: Last time; None for `sde.sampling_eps`.

    Returns:
        Times, shape (steps + 1,), float64, from T down to eps.

    Raises:
        InputError: If steps is not a positive integer or eps does not lie in [0, T).
    """
    return _evenly(sde.T, _checked_end(sde, steps, eps), steps)


def log_snr_grid(sde: SDE, steps: int, eps: float | None = None) -> Tensor:
    """Times that are uniform in log SNR: noise levels σ/α in a geometric sequence, as in NCSN (Song & Ermon,
    2019).

    Args:
        sde: The SDE.
        steps: Number of steps.
        eps: Last time, above 0 unless σ(0) > 0; None for `sde.sampling_eps`.

    Returns:
        Times, shape (steps + 1,), float64, from T down to eps.

    Raises:
        InputError: If steps is not a positive integer, eps does not lie in [0, T), or the log SNR is infinite
            at an end.
    """
    ends = _noisy_ends(sde, steps, eps)
    first, last = sde.log_noise_level(ends).tolist()
    return _with_ends(sde.time_at_log_noise_level(_evenly(first, last, steps)), ends)


def quadratic_grid(sde: SDE, steps: int, eps: float | None = None) -> Tensor:
    """Times whose square roots are uniform, dense near the data (Song et al., 2021, DDIM, Appendix D.2).

    Arguments, result and errors as for `uniform_grid`.
    """
    ends = torch.tensor([sde.T, _checked_end(sde, steps, eps)], dtype=torch.float64)
    first, last = ends.sqrt().tolist()
    return _with_ends(_evenly(first, last, steps).square(), ends)


def karras_times(sde: SDE, first: float, last: float, steps: int, rho: float = 7.0) -> Tensor:
    """Times with σ̃^(1/ρ) uniform from level `first` down to `last` (Karras et al., 2022, eq. 5)."""
    levels = _evenly(first ** (1 / rho), last ** (1 / rho), steps) ** rho
    return sde.time_at_log_noise_level(levels.log())


def karras_grid(sde: SDE, steps: int, eps: float | None = None) -> Tensor:
    """Times with σ̃^(1/ρ) uniform, ρ = 7 (Karras et al., 2022, eq. 5), σ̃ = σ/α.

    Arguments, result and errors as for `log_snr_grid`.
    """
    ends = _noisy_ends(sde, steps, eps)
    first, last = sde.log_noise_level(ends).exp().tolist()
    return _with_ends(karras_times(sde, first, last, steps), ends)


def clock(log_noise_level: Tensor, scale: float = 1.0) -> Tensor:
    """τ = √log(1 + (σ̃/scale)²) for log σ̃ of any shape.

    VP has α² = 1/(1 + σ̃²) = exp(-½ (β_1 - β_0) t² - β_0 t), hence τ ∝ t up to the term of β_0 (at scale 1): τ
    is the time at which VP has the noise level σ̃, which may be of any SDE. It grows like σ̃ near the data and
    like √(2 log σ̃) far away.
    """
    return torch.nn.functional.softplus(2 * (log_noise_level - math.log(scale))).sqrt()


def clock_grid(sde: SDE, steps: int, eps: float | None = None) -> Tensor:
    """Times with √τ uniform, τ that of `clock`: the same noise levels for every SDE, for VP nearly those of
    the quadratic grid.

    Arguments, result and errors as for `log_snr_grid`.
    """
    ends = _noisy_ends(sde, steps, eps)
    first, last = clock(sde.log_noise_level(ends)).sqrt().tolist()
    return _with_ends(clock_times(sde, _evenly(first, last, steps).square()), ends)


def early_grid(sde: SDE, steps: int, eps: float | None = None) -> Tensor:
    """Times with τ^0.4 uniform, τ that of `clock`: more steps than on the clock grid at high noise, where
    modes far apart become distinct.

    Arguments, result and errors as for `log_snr_grid`.
    """
    return early_times(sde, steps, eps)


def spread_grid(sde: SDE, steps: int, eps: float | None = None) -> Tensor:
    """The early grid with τ at the scale √(steps/8), from 1 to 1.5, and in more than 15 steps τ^0.3 uniform.

    With few steps all of them lie where most data change. With many the steps at high noise, which decide for
    data that nobody scaled, are denser, and so are those at low noise, where the scores of networks are
    rougher than those of mixtures.

    Arguments, result and errors as for `log_snr_grid`.
    """
    return early_times(sde, steps, eps, min(max(math.sqrt(steps / 8), 1.0), 1.5), spread_power(steps))


def spread_power(steps: int) -> float:
    """The power of τ that is uniform on the spread grid."""
    return 0.4 if steps <= FEW_STEPS else 0.3


def early_times(sde: SDE, steps: int, eps: float | None, scale: float = 1.0, power: float = 0.4) -> Tensor:
    """Times with τ^power uniform, τ that of `clock` at a scale; the rest as for `log_snr_grid`."""
    ends = _noisy_ends(sde, steps, eps)
    first, last = clock(sde.log_noise_level(ends), scale).pow(power).tolist()
    return _with_ends(clock_times(sde, _evenly(first, last, steps).pow(1 / power), scale), ends)


def clock_times(sde: SDE, tau: Tensor, scale: float = 1.0) -> Tensor:
    """The times at which `clock` gives τ > 0 at a scale, float64, same shape."""
    return sde.time_at_log_noise_level(torch.expm1(tau.double().square()).log() / 2 + math.log(scale))


def chain_grid(sde: SDE, steps: int | None = None) -> Tensor:
    """Times of the SDE's discrete chain: `steps` of them from the last to the first, evenly spaced and
    rounded to the nearest (Nichol & Dhariwal, 2021, Section 4), and then t = 0.

    Args:
        sde: The SDE.
        steps: Number of steps, at most that of the chain; None for the whole chain.

    Returns:
        Times, shape (steps + 1,), float64, from T down to 0.

    Raises:
        InputError: If steps is not a positive integer or exceeds that of the chain.
    """
    times = chain_times(sde)
    longest = len(times) - 1
    steps = longest if steps is None else steps
    if not isinstance(steps, Integral) or not 1 <= steps <= longest:
        raise InputError(
            f"steps must be an integer from 1 to {longest}, the steps of the chain of {sde}, got {steps!r}"
        )
    kept = torch.linspace(0, longest - 1, steps, dtype=torch.float64).round().long()
    return torch.cat([times[kept], times[-1:]])


GRIDS: dict[str, Callable[[SDE, int], Tensor]] = {
    "clock": clock_grid,
    "early": early_grid,
    "spread": spread_grid,
    "uniform": uniform_grid,
    "quadratic": quadratic_grid,
    "log_snr": log_snr_grid,
    "karras": karras_grid,
    "chain": chain_grid,
}
"""The grids as functions of an SDE and a number of steps."""


@dataclass(frozen=True)
class Grid:
    """A grid by name, for any SDE: what a sampler takes for `times` instead of the times themselves.

    Raises:
        InputError: If the name is not in `GRIDS`.
    """

    name: str
    steps: int | None = None
    """Number of steps; None for as many as the SDE's discrete chain has."""

    def __post_init__(self) -> None:
        check_name("grid", self.name, GRIDS)

    def times(self, sde: SDE) -> Tensor:
        """The times for an SDE, shape (steps + 1,), float64, decreasing."""
        return GRIDS[self.name](sde, len(chain_times(sde)) - 1 if self.steps is None else self.steps)


def times_of(sde: SDE, times: Tensor | Grid) -> Tensor:
    """The times that a sampler's argument `times` stands for, shape (steps + 1,), float64, on the CPU."""
    return times.times(sde) if isinstance(times, Grid) else torch.as_tensor(times, dtype=torch.float64).cpu()
