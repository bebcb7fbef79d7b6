"""Time grids: where a sampler places its steps.

A grid is a float64 tensor of steps + 1 strictly decreasing times from T to eps; a step's length is read off
the grid alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_lib import SDE, chain_times


def _checked(sde: SDE, steps: int, eps: float | None) -> float:
    eps = sde.sampling_eps if eps is None else eps
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}")
    if not 0 <= eps < sde.T:
        raise ValueError(f"eps must lie in [0, T) = [0, {sde.T}), got {eps}")
    return eps


def uniform_grid(sde: SDE, steps: int, eps: float | None = None) -> Tensor:
    """Times that are uniform in t (Song et al., 2021, Appendix G).

    Args:
        sde: The SDE, for T and its `sampling_eps`.
        steps: Number of steps.
        eps: Last time; None for `sde.sampling_eps`.

    Returns:
        Times, shape (steps + 1,), float64, from T down to eps.

    Raises:
        ValueError: If steps is not a positive integer or eps does not lie in [0, T).
    """
    return torch.linspace(sde.T, _checked(sde, steps, eps), steps + 1, dtype=torch.float64)


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
        ValueError: If steps is not a positive integer, eps does not lie in [0, T), or the log SNR is infinite
            at an end.
    """
    ends = torch.tensor([sde.T, _checked(sde, steps, eps)], dtype=torch.float64)
    first, last = sde.log_snr(ends).tolist()
    if not torch.tensor([first, last]).isfinite().all():
        raise ValueError(
            f"log SNR must be finite at both ends of the grid, it is {first} at T and {last} at eps; "
            "choose another eps"
        )
    times = sde.time_at_log_snr(torch.linspace(first, last, steps + 1, dtype=torch.float64))
    times[[0, -1]] = ends
    return times


def chain_grid(sde: SDE, steps: int | None = None) -> Tensor:
    """Times of the SDE's discrete chain, evenly respaced: `steps` of them from the last to the first, rounded
    to the nearest (Nichol & Dhariwal, 2021, Section 4), and then t = 0.

    Args:
        sde: The SDE.
        steps: Number of steps, at most that of the chain; None for the whole chain.

    Returns:
        Times, shape (steps + 1,), float64, from T down to 0.

    Raises:
        ValueError: If steps is not a positive integer or exceeds the chain's.
    """
    times = chain_times(sde)
    longest = len(times) - 1
    steps = longest if steps is None else steps
    if not isinstance(steps, int) or not 1 <= steps <= longest:
        raise ValueError(
            f"steps must be an integer in 1..{longest}, the steps of the chain of {sde}, got {steps!r}"
        )
    kept = torch.linspace(0, longest - 1, steps, dtype=torch.float64).round().long()
    return torch.cat([times[kept], times[-1:]])


GRIDS = {"uniform": uniform_grid, "log_snr": log_snr_grid}
