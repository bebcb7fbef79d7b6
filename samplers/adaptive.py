"""The reverse SDE with steps whose size each sample chooses, from its own error only.

x' is an Euler-Maruyama step, x̃ the same step with drift and diffusion of its end and the same noise;
(x' + x̃)/2 is accepted where √mean((x' - x̃)²/(2δ)²) <= 1, δ = max(ε_abs, ε_rel max(|x'|, |x'_prev|)). Samples
that have reached the last time leave the computation.

References:
    Gotta Go Fast When Generating Data with Score-Based Models (Jolicoeur-Martineau et al., 2021),
        https://arxiv.org/abs/2105.14080: Algorithm 1.
    Adaptive methods for stochastic differential equations via natural embeddings and rejection sampling with
        memory (Rackauckas & Nie, 2017): Section 3, RSwM1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from score_diffusion.samplers.base import CountedScore, Sampler
from score_diffusion.samplers.grids import Grid
from score_diffusion.sde_lib import SDE, InputError, SampleNoise, expand
from score_diffusion.sde_lib.ode_solver import SMALLEST_STEP, check_tolerances, no_step_message
from score_diffusion.sde_lib.per_sample import flags_like, root_mean_square_each


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
        self._increments[rows, top] = torch.where(flags_like(kept, z), increment - taken, increment)
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
            norm = root_mean_square_each((euler - other) / (2 * allowed))
            if not norm.isfinite().all() or h.min() < SMALLEST_STEP * span:
                raise InputError(
                    no_step_message(type(self).__name__, t[h.argmin()].item(), self.rtol, self.atol)
                )
            stale = norm <= 1
            path.keep_rejected(~stale, step, w)
            accepted = flags_like(stale, x)
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
