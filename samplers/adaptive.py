"""Solvers that choose the step sizes of each sample.

The steps of a sample follow only from its own error, so that it does not depend on its batch. Samples that
have reached the last time leave the computation.

    ODE   an embedded Runge-Kutta pair: x' of order p and its companion of order p - 1 differ by the error
          estimate; a step is accepted where √mean((x' - x'')²/(atol + rtol max(|x|, |x'|))²) <= 1.
    SDE   x' by an Euler-Maruyama step, x̃ by the same step with drift and diffusion of its end, the same
          noise in both; (x' + x̃)/2 is accepted where √mean((x' - x̃)²/(2δ)²) <= 1, δ = max(ε_abs, ε_rel
          max(|x'|, |x'_prev|)).

References:
    Gotta Go Fast When Generating Data with Score-Based Models (Jolicoeur-Martineau et al., 2021),
        https://arxiv.org/abs/2105.14080: Algorithm 1.
    Adaptive methods for stochastic differential equations via natural embeddings and rejection sampling with
        memory (Rackauckas & Nie, 2017): Section 3, RSwM1.
    Solving Ordinary Differential Equations I (Hairer, Nørsett & Wanner, 1993): Section II.4, step size
        control and the first step; Section II.6, the cubic Hermite interpolant; the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from score_diffusion.samplers.base import CountedScore, Sampler, mean_square_each
from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.runge_kutta import TABLEAUS, Tableau
from score_diffusion.sde_lib import SDE, InputError, SampleNoise, check_name, expand

SMALLEST_STEP = 1e-12  # as a fraction of the whole interval: a shorter step is lost in rounding


@dataclass(frozen=True)
class EmbeddedPair:
    """A Runge-Kutta method whose last stage is the first of the next step, and a companion for the error."""

    tableau: Tableau
    companion: tuple[float, ...]
    """Weights of the method of lower order: one for each stage, one for the slope at the end of the step."""


PAIRS = {
    "adaptive_heun": EmbeddedPair(TABLEAUS["heun"], (1.0, 0.0, 0.0)),
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


def solve_each(
    dynamics: Dynamics,
    x: Tensor,
    times: Tensor,
    method: str,
    rtol: float,
    atol: float,
    on_progress: Callable[[float], None] = lambda done: None,
) -> Tensor:
    """Solves dx/dt = dynamics from the first time to the last, with step sizes for each sample.

    Args:
        dynamics: The right-hand side.
        x: States at the first time, shape (B, *shape), float64.
        times: Monotonic times, shape (n,), float64.
        method: A name in `PAIRS`.
        rtol, atol: Relative and absolute tolerance, above 0.
        on_progress: Called with the fraction of the interval that the slowest sample has covered.

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
    states = torch.stack([x] * len(times))
    index = torch.arange(len(x), device=x.device)

    def slope(x: Tensor, u: Tensor, index: Tensor) -> Tensor:
        return span * dynamics(x, first + span * u, index)

    scaled = partial(_scaled_error, rtol=rtol, atol=atol)
    u = x.new_zeros(len(x))
    k = slope(x, u, index)
    h = _first_step(slope, scaled, x, k, index, pair.tableau.order)
    while len(index):
        if not h.isfinite().all() or h.min() < SMALLEST_STEP:
            raise no_step_error("the ODE solver", first + span * u[h.argmin()].item(), rtol, atol)
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
        keep = _like(accepted, x)
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


def no_step_error(solver: str, t: float, rtol: float, atol: float) -> InputError:
    """The error of a solver that rejects a step at time t however small it is."""
    return InputError(
        f"{solver} found no step that meets rtol={rtol} and atol={atol} at t = {t:.6g}: check that the score "
        "is finite, or raise the tolerances"
    )


def _scaled_error(error: Tensor, a: Tensor, b: Tensor, rtol: float, atol: float) -> Tensor:
    """The error of each sample relative to the tolerances between the states a and b, shape (B,)."""
    return mean_square_each(error / (atol + rtol * torch.maximum(a.abs(), b.abs()))).sqrt()


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


class BrownianMemory:
    """The Brownian path of each sample, of which no increment is discarded once it is drawn.

    Whether a step is rejected depends on its increment: drawing another one would favour the paths that are
    easy to follow. The increment is kept instead, a shorter step takes a part of it by the Brownian bridge,
    and the rest is used before a new one is drawn (Rackauckas & Nie, 2017, "rejection sampling with memory").

    Args:
        x: States, shape (B, *shape), for shape, dtype and device.
    """

    deepest = 32  # increments kept per sample; each comes from a rejection, which shortens the step

    def __init__(self, x: Tensor) -> None:
        self._lengths = torch.zeros(len(x), self.deepest, dtype=torch.float64, device=x.device)
        self._increments = x.new_zeros(len(x), self.deepest, *x.shape[1:])
        self._count = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def take(self, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Steps of at most h, shape (B,), and increments over them, from standard normal z, (B, *shape)."""
        top = (self._count - 1).clamp_min(0)
        rows = torch.arange(len(h), device=h.device)
        length, increment = self._lengths[rows, top], self._increments[rows, top]
        kept = self._count > 0
        whole = kept & (h >= length * (1 - 1e-9))  # the rest would be only rounding
        h = torch.where(whole, length, h)
        share = torch.where(kept, h / length.clamp_min(1e-300), 0.0)
        spread = torch.where(kept, h * (1 - share), h).clamp_min(0.0).sqrt()
        taken = expand(share, z) * increment + expand(spread, z) * z
        self._lengths[rows, top] = torch.where(kept, length - h, length)
        self._increments[rows, top] = torch.where(_like(kept, z), increment - taken, increment)
        self._count -= whole.long()
        return h, taken

    def keep_rejected(self, rejected: Tensor, h: Tensor, taken: Tensor) -> None:
        """Keeps the steps (B,) and increments (B, *shape) of the samples where `rejected`, shape (B,)."""
        rows, place = rejected.nonzero()[:, 0], self._count[rejected].clamp_max(self.deepest - 1)
        self._lengths[rows, place], self._increments[rows, place] = h[rejected], taken[rejected]
        self._count[rows] = place + 1

    def select(self, going: Tensor) -> None:
        """Keeps only the samples where `going`, shape (B,)."""
        self._lengths, self._increments = self._lengths[going], self._increments[going]
        self._count = self._count[going]


def _like(flags: Tensor, x: Tensor) -> Tensor:
    return flags.reshape(-1, *(1,) * (x.ndim - 1))


class AdaptiveSDESampler(Sampler):
    """The reverse SDE by stochastic improved Euler steps of adaptive size (Jolicoeur-Martineau et al., 2021).

    A rejected step is repeated on the same Brownian path, and the score at its start is not evaluated again.
    The paper draws new noise instead. This does little harm on images, whose error hardly depends on a single
    draw; in few dimensions it changes the law of the samples.

    Args:
        sde, times, denoise: As for every `Sampler`. The times between the first and the last are only those
            at which a trajectory is recorded, each at the end of the step that passes it.
        rtol: Relative tolerance ε_rel, 0.01 to 0.05 in the paper.
        atol: Absolute tolerance ε_abs, in the paper one of 256 grey levels, 2/256 for data in [-1, 1].

    Raises:
        InputError: If a tolerance is not positive.
    """

    first_step, safety, exponent = 0.01, 0.9, 0.9
    growth = 2.0  # largest factor between steps: in few dimensions an error may be small by chance

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("clock", 100),
        *,
        denoise: bool = True,
        rtol: float = 0.02,
        atol: float = 2 / 256,
    ) -> None:
        super().__init__(sde, times, denoise)
        check_tolerances(rtol, atol)
        self.rtol, self.atol = rtol, atol

    def integrate(
        self,
        score: CountedScore,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        first, *later = self.times.tolist()
        last, span = later[-1], first - later[-1]
        t = torch.full((len(x),), first, dtype=torch.float64, device=x.device)
        h = self.first_step * span * torch.ones_like(t)
        previous, arrivals = x, torch.stack([x] * len(later)) if record else x[None]
        index, gradient, stale = torch.arange(len(x), device=x.device), torch.zeros_like(x), t > 0
        out, done, path = x.clone(), 0, BrownianMemory(x)
        while len(index):
            if stale.any():
                gradient[stale] = score(x[stale], t[stale], among=index[stale])
            step, w = path.take(torch.minimum(h, t - last), noise.normal()[index])
            end = torch.where(step >= (t - last) * (1 - 1e-9), last, t - step)
            euler = self._euler(x, x, t, step, gradient, w)
            other = self._euler(x, euler, end, step, score(euler, end, among=index), w)
            allowed = torch.clamp_min(self.rtol * torch.maximum(euler.abs(), previous.abs()), self.atol)
            norm = mean_square_each((euler - other) / (2 * allowed)).sqrt()
            if not norm.isfinite().all() or h.min() < SMALLEST_STEP * span:
                raise no_step_error(type(self).__name__, t[h.argmin()].item(), self.rtol, self.atol)
            stale = norm <= 1
            path.keep_rejected(~stale, step, w)
            accepted = _like(stale, x)
            x = torch.where(accepted, (euler + other) / 2, x)
            previous = torch.where(accepted, euler, previous)
            start, t = t, torch.where(stale, end, t)
            proposed = step * (self.safety * norm.clamp_min(1e-10) ** -self.exponent).clamp_max(self.growth)
            # a step that was cut short by a kept increment says little about the acceptable length
            h = torch.where(stale & (step < h), torch.maximum(h, proposed), proposed)
            out[index] = x
            for i, passed in enumerate(later if record else ()):
                crossed = (start > passed) & (t <= passed)
                arrivals[i, index[crossed]] = x[crossed]
            going = t > last
            path.select(going)
            x, previous, gradient = x[going], previous[going], gradient[going]
            t, h, index, stale = t[going], h[going], index[going], stale[going]
            done += 1
            on_step(done, done + len(index))
        if record:
            for state in arrivals:
                record(state)
        return out

    def _euler(self, x: Tensor, at: Tensor, t: Tensor, h: Tensor, gradient: Tensor, w: Tensor) -> Tensor:
        """A step of length h and increment w from x, with the drift and diffusion of the states `at` at t."""
        f, g2 = self.sde.dlog_alpha(t), self.sde.g2(t).clamp_min(0.0)
        return x - expand(h * f, x) * at + expand(h * g2, x) * gradient + expand(g2.sqrt(), x) * w
