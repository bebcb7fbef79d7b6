"""Ordinary differential equations by embedded Runge-Kutta pairs, with step sizes for each sample.

A method of order p and its companion of order p - 1 differ by the error of a step. Steps follow from the
error of their own sample only, so that a solution does not depend on its batch. Samples that have reached the
last time leave the computation.

Reference:
    Solving Ordinary Differential Equations I (Hairer, Nørsett & Wanner, 1993): Section II.1, tableaus; II.4,
        step size control and the first step; II.6, the cubic Hermite interpolant; the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError, check_name
from score_diffusion.sde_lib.per_sample import flags_like, root_mean_square_each
from score_diffusion.sde_lib.sde import expand

SMALLEST_STEP = 1e-12  # as a fraction of the whole interval: a shorter step is lost in rounding


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: stage i is evaluated at t + c_i h, at the states x + h Σ_j a_ij v_j.

    Raises:
        InputError: If the sizes do not fit each other, a row of a does not sum to its c, or b not to 1.
    """

    c: tuple[float, ...]
    """Positions of the stages within a step, the first of them 0."""
    a: tuple[tuple[float, ...], ...]
    """Rows of the second and later stages."""
    b: tuple[float, ...]
    """Weights of the stages in the step."""
    order: int

    def __post_init__(self) -> None:
        stages = len(self.c)
        if [len(row) for row in self.a] != list(range(1, stages)) or len(self.b) != stages:
            raise InputError(
                f"a tableau of {stages} stages must have rows of 1 to {stages - 1} numbers in a and {stages} "
                f"numbers in b, got a = {self.a} and b = {self.b}"
            )
        for c, row in zip(self.c, ((), *self.a), strict=True):
            if not math.isclose(sum(row), c, abs_tol=1e-12):
                raise InputError(f"each row of a must sum to its c, {row} sums to {sum(row)}, c is {c}")
        if not math.isclose(sum(self.b), 1):
            raise InputError(f"the weights b of a tableau must sum to 1, {self.b} sum to {sum(self.b)}")


@dataclass(frozen=True)
class EmbeddedPair:
    """A Runge-Kutta method whose last stage is the first of the next step, and a companion for the error."""

    tableau: Tableau
    companion: tuple[float, ...]
    """Weights of the method of lower order: one for each stage, one for the slope at the end of the step."""


PAIRS = {
    "adaptive_heun": EmbeddedPair(Tableau((0.0, 1.0), ((1.0,),), (0.5, 0.5), order=2), (1.0, 0.0, 0.0)),
    "bosh3": EmbeddedPair(
        Tableau((0.0, 1 / 2, 3 / 4), ((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), order=3),
        (7 / 24, 1 / 4, 1 / 3, 1 / 8),
    ),
    "dopri5": EmbeddedPair(
        Tableau(
            (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
            (
                (1 / 5,),
                (3 / 40, 9 / 40),
                (44 / 45, -56 / 15, 32 / 9),
                (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
                (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            ),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
            order=5,
        ),
        (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    ),
}

Dynamics = Callable[[Tensor, Tensor, Tensor], Tensor]
"""dx/dt of states (n, *shape) at times (n,), for the samples with the indices (n,)."""

Size = Callable[[Tensor], Tensor]
"""The size, shape (n,), of errors in units of the tolerance, (n, *shape)."""


def solve_each(
    dynamics: Dynamics,
    x: Tensor,
    times: Tensor,
    method: str,
    rtol: float,
    atol: float,
    on_progress: Callable[[float], None] = lambda done: None,
    size: Size = root_mean_square_each,
) -> Tensor:
    """Solves dx/dt = dynamics from the first time to the last, with step sizes for each sample.

    Args:
        dynamics: The right-hand side.
        x: States at the first time, shape (B, *shape), float64.
        times: Monotonic times, shape (n,), float64.
        method: A name in `PAIRS`.
        rtol, atol: Relative and absolute tolerance, above 0.
        on_progress: Called with the fraction of the interval that the slowest sample has covered.
        size: The size of an error; a step is accepted where it is at most 1.

    Returns:
        States at the times, shape (n, B, *shape), interpolated by cubic Hermite polynomials.

    Raises:
        InputError: If the method is unknown, a tolerance is not positive, or no step meets the tolerance.
    """
    check_name("method", method, PAIRS)
    check_tolerances(rtol, atol)
    pair, first = PAIRS[method], times[0].item()
    span = times[-1].item() - first
    grid = ((times - first) / span).tolist()  # the solver works in u = (t - first)/span, from 0 to 1
    states, index = torch.stack([x] * len(times)), torch.arange(len(x), device=x.device)

    def slope(x: Tensor, u: Tensor, index: Tensor) -> Tensor:
        return span * dynamics(x, first + span * u, index)

    scaled = partial(_scaled_error, rtol=rtol, atol=atol, size=size)
    u = x.new_zeros(len(x))
    k = slope(x, u, index)
    h = _first_step(slope, scaled, x, k, index, pair.tableau.order)
    while len(index):
        _check_steps(h, first + span * u, rtol, atol)
        h = torch.minimum(h, 1 - u)
        x_new, k_new, error = _step(slope, pair, x, u, h, k, index)
        norm = scaled(error, x, x_new)
        accepted = norm <= 1
        u_new = torch.where(h >= 1 - u, 1.0, u + h)
        for i, passed in enumerate(grid[1:], start=1):
            reached = accepted & (u < passed) & (u_new >= passed)
            if reached.any():
                step = ((passed - u) / h, h, x, x_new, k, k_new)
                states[i, index[reached]] = _hermite(*(value[reached] for value in step))
        h = _next_step_size(h, norm, pair.tableau.order)
        keep = flags_like(accepted, x)
        x, k, u = torch.where(keep, x_new, x), torch.where(keep, k_new, k), torch.where(accepted, u_new, u)
        on_progress(u.min().item())
        going = u < 1
        x, k, u, h, index = x[going], k[going], u[going], h[going], index[going]
    return states


def check_tolerances(rtol: float, atol: float) -> None:
    """Refuses tolerances that are not positive.

    Raises:
        InputError: If one is not.
    """
    if not (rtol > 0 and atol > 0):
        raise InputError(f"rtol and atol must be above 0, got {rtol} and {atol}")


def _check_steps(h: Tensor, t: Tensor, rtol: float, atol: float) -> None:
    """Refuses steps h at times t, each of shape (n,), that are lost in rounding."""
    if not h.isfinite().all() or h.min() < SMALLEST_STEP:
        raise InputError(no_step_message("the ODE solver", t[h.argmin()].item(), rtol, atol))


def no_step_message(solver: str, t: float, rtol: float, atol: float) -> str:
    """What to say of a solver that rejects a step at time t however small it is."""
    return (
        f"{solver} found no step that meets rtol={rtol} and atol={atol} at t = {t:.6g}: check that the score "
        "is finite, or raise the tolerances"
    )


def _scaled_error(error: Tensor, a: Tensor, b: Tensor, rtol: float, atol: float, size: Size) -> Tensor:
    """The error of each sample relative to the tolerances between the states a and b, shape (B,)."""
    return size(error / (atol + rtol * torch.maximum(a.abs(), b.abs())))


def _first_step(
    slope: Dynamics, scaled: Callable[..., Tensor], x: Tensor, k: Tensor, index: Tensor, order: int
) -> Tensor:
    """The first step size by Hairer, Nørsett & Wanner, Section II.4, shape (B,)."""
    d0, d1 = scaled(x, x, x), scaled(k, x, x)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).clamp_max(1.0)
    d2 = scaled(slope(x + expand(h0, x) * k, h0, index) - k, x, x) / h0
    largest = torch.maximum(d1, d2)
    h1 = torch.where(largest <= 1e-15, (1e-3 * h0).clamp_min(1e-6), (0.01 / largest) ** (1 / order))
    return torch.minimum(100 * h0, h1)


def _next_step_size(h: Tensor, norm: Tensor, order: int) -> Tensor:
    """The step sizes to try after steps h with scaled errors `norm`, shape (B,)."""
    factor = (0.9 * norm.clamp_min(1e-10) ** (-1 / order)).clamp(0.2, 10.0)
    return h * torch.where(norm <= 1, factor, factor.clamp_max(1.0))


def _step(
    slope: Dynamics, pair: EmbeddedPair, x: Tensor, u: Tensor, h: Tensor, k: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """States and slopes at u + h, and the error estimate."""
    slopes, wide = [k], expand(h, x)

    def after(weights: tuple[float, ...]) -> Tensor:
        return wide * sum(w * v for w, v in zip(weights, slopes, strict=True) if w)

    for row, c in zip(pair.tableau.a, pair.tableau.c[1:], strict=True):
        slopes.append(slope(x + after(row), u + c * h, index))
    x_new = x + after(pair.tableau.b)
    slopes.append(slope(x_new, u + h, index))
    error = tuple(b - c for b, c in zip((*pair.tableau.b, 0.0), pair.companion, strict=True))
    return x_new, slopes[-1], after(error)


def _hermite(where: Tensor, h: Tensor, x: Tensor, x_new: Tensor, k: Tensor, k_new: Tensor) -> Tensor:
    """The cubic polynomial through both ends of a step with their slopes, at a fraction `where` of it."""
    w, wide = expand(where, x), expand(h, x)
    difference = x_new - x
    bend = (1 - 2 * w) * difference + (w - 1) * wide * k + w * wide * k_new
    return torch.where(w == 1, x_new, (1 - w) * x + w * x_new + w * (w - 1) * bend)
