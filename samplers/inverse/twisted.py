"""The twisted diffusion sampler (TDS): sequential Monte Carlo, exact in the limit of many particles.

A set of P weighted particles moves from T to 0. A twist, a guess of p(y | x_t) from x̂_0, guides the
proposals, and the weights make up for what the guess gets wrong (Algorithm 1 of Wu et al.):

    twist      p̃(y | x_t) = N(y; A x̂_0, S_t),    S_t = σ_y² I + r_t² A Aᵀ,    r_t² as in ΠGDM
    proposal   x_s ~ q = N(m(x_t) + (σ²_{t|s}/α_{t|s}) ∇ log p̃(y | x_t), v Q)
    weight     w = p(x_s | x_t) p̃(y | x_s)/[p̃(y | x_t) q(x_s | x_t, y)]

with p(x_s | x_t) = N(m(x_t), v I) the reverse step of the prior: m is DDPM's posterior mean at x̂_0, and

    v = σ²_{t|s} σ_s²/σ_t² + (α_s σ²_{t|s}/σ_t²)² r_t²

its variance for data from N(0, s² I), which lies between DDPM's two choices. In the paper Q = I. Here it is
narrower in the directions that A sees, by S_s/S_t for each singular value: for such data q is then p(x_s |
x_t, y), and all weights are equal. As t falls so does r_t², and the twist becomes the likelihood. Sets are
resampled (systematically) where their effective sample size falls below a share of P.

Any twist and any proposal is right in the limit; better ones need fewer particles. What remains with many
particles is the error of the first-order reverse steps, which falls with their number. For non-linear
operators A Aᵀ is replaced by I.

A set serves `draws` samples: sample k is draw k mod `draws` of set ⌊k/draws⌋, a system of its own with the
random stream of (seed, ⌊k/draws⌋). So sample k depends on (seed, k) only, however many processes share the
work. With one draw per set samples are independent, at P evaluations a step for each; with draws = P they
cost one, but the samples of a set are not independent: descendants of one particle are alike.

Reference:
    Practical and Asymptotically Exact Conditional Sampling in Diffusion Models (Wu et al., 2023),
        https://arxiv.org/abs/2306.17775.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.samplers.base import CountedScore, Sampler, SampleResult
from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.inverse.operators import LinearOperator, Operator
from score_diffusion.samplers.inverse.pigdm import isotropic_variance
from score_diffusion.samplers.inverse.posterior import checked_measurement, checked_sigma
from score_diffusion.sde_lib import SDE, InputError, SampleNoise, ScoreFunction, map_condition
from score_diffusion.sde_lib.per_sample import dot_each
from score_diffusion.sde_lib.score_wrapper import Condition


@dataclass(frozen=True)
class ParticleResult(SampleResult):
    """What the twisted sampler returns."""

    ess: Tensor
    """Effective sample size (Σw)²/Σw² of each sample's set at each time, before resampling, in [1, P]: shape
    (steps + 1, B), float64.
    """


@dataclass
class _Particles:
    """S sets of P particles, flattened: set by set."""

    x: Tensor  # (S P, *shape)
    log_w: Tensor  # (S, P), float64
    history: list[Tensor] | None  # the states of the particles' ancestors so far; None unless asked for


class TwistedSampler(Sampler):
    """The twisted diffusion sampler. It takes the score of the prior.

    Args:
        sde: The SDE.
        times: Time grid, shape (steps + 1,), or a `Grid`; it must end where there is noise.
        operator: The measurement A: linear with a decomposition, or any differentiable one if sigma_y > 0.
        y: The measurement, of all samples, shape (*output_shape).
        sigma_y: Standard deviation of its noise, at least 0.
        particles: P, particles in a set.
        draws: Samples that a set serves, a divisor of P.
        resample_below: Share of P below which the effective sample size triggers resampling, in [0, 1].
        data_std: s, the standard deviation of the data.
        denoise: Whether to end with x̂_0 given y, Tweedie's formula with the twist; costs nothing.

    Raises:
        InputError: If the operator, y or sigma_y do not fit, the grid ends without noise, draws does not
            divide particles, or resample_below lies outside [0, 1].
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("clock", 99),
        *,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        particles: int = 16,
        draws: int = 1,
        resample_below: float = 0.5,
        data_std: float = 1.0,
        denoise: bool = True,
    ) -> None:
        super().__init__(sde, times, denoise=False)
        if particles < 1 or draws < 1 or particles % draws:
            raise InputError(f"particles must be a positive multiple of draws, got {particles} and {draws}")
        if not 0 <= resample_below <= 1:
            raise InputError(f"resample_below must lie in [0, 1], got {resample_below}")
        if not sde.sigma(self.times[-1]) > 0:
            raise InputError(
                "times must end where there is noise: the sampler takes the step to none itself, with "
                "denoise=True"
            )
        self.particles, self.draws, self.resample_below = particles, draws, resample_below
        self.data_std, self._denoise = data_std, denoise
        self.y = checked_measurement(operator, y)
        if len(self.y) != 1:
            raise InputError(f"y must be one measurement, that of all samples, got {len(self.y)}")
        self._twist = Twist(operator, self.y, sigma_y)
        self._coefficients()

    def _coefficients(self) -> None:
        """Numbers of each step, float64: m = keep x_t + move x̂_0, shift of the guidance, v."""
        t, s = self.times[:-1], self.times[1:]
        alpha_ts, var_ts = self.sde.transition(s, t)
        alpha_s, var_s, var_t = self.sde.alpha(s), self.sde.sigma(s).square(), self.sde.sigma(t).square()
        self._r2 = isotropic_variance(self.sde.alpha(self.times), self.sde.sigma(self.times), self.data_std)
        move = alpha_s * var_ts / var_t
        variance = var_ts * var_s / var_t + move.square() * self._r2[:-1]
        rows = (alpha_ts * var_s / var_t, move, var_ts / alpha_ts, variance)
        self._steps = list(zip(*(row.tolist() for row in rows), strict=True))
        if self._twist.svd is not None:
            likely = torch.stack([self._twist.variance(r2) for r2 in self._r2.tolist()])  # (steps + 1, R)
            self._narrowing = (likely[1:] / likely[:-1]).sqrt()

    def __call__(
        self,
        score: ScoreFunction,
        shape: Sequence[int],
        seed: int = 0,
        *,
        cond: Condition = None,
        x_T: Tensor | None = None,
        first: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        trajectory: bool = False,
        on_step: Callable[[int, int], None] | None = None,
    ) -> ParticleResult:
        """Draws samples, as `Sampler` does.

        Evaluations per sample are those of its set over its draws. The trajectory is that of the lines of
        ancestors.

        Raises:
            InputError: As for a Sampler, if x_T is given, because particles start from the prior, or if the
                draws of a set are to have conditions of their own.
        """
        if x_T is not None:
            raise InputError("the twisted sampler starts its particles from the prior: leave out x_T")
        if self.draws > 1:
            map_condition(self._check_shared, cond)
        first_set = first // self.draws
        sets = -(-(first + shape[0]) // self.draws) - first_set
        self._ess: list[Tensor] = []
        result = super().__call__(
            score,
            (sets, *shape[1:]),
            seed,
            cond=cond,
            first=first_set,
            device=device,
            dtype=dtype,
            trajectory=trajectory,
            on_step=on_step,
        )
        mine = slice(first - first_set * self.draws, first - first_set * self.draws + shape[0])
        nfe_each = (result.nfe_each // self.draws).repeat_interleave(self.draws)[mine]
        ess = torch.stack(self._ess).repeat_interleave(self.draws, 1)[:, mine]
        path = self._path[:, mine] if trajectory else None
        return ParticleResult(result.samples[mine], int(nfe_each.max()), nfe_each, result.times, path, ess)

    def _check_shared(self, values: Tensor) -> Tensor:
        if len(values) != 1:
            raise InputError(
                f"the {self.draws} draws of a set of particles share their condition: give cond of 1 row, "
                f"got {len(values)}, or take draws=1"
            )
        return values

    def integrate(
        self,
        score: CountedScore,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        sets, steps = len(x), len(self.times) - 1
        others = [self.sde.prior_std * noise.normal() for _ in range(self.particles - 1)]
        x = torch.stack([x, *others], 1).flatten(0, 1)  # (S P, *shape)
        log_w = torch.zeros(sets, self.particles, dtype=torch.float64, device=x.device)
        particles = _Particles(x, log_w, None if record is None else [x])
        among = torch.arange(sets, device=x.device).repeat_interleave(self.particles)
        for k in range(steps):
            x_0, log_twist, guidance = self._evaluated(score, particles, k, among)
            self._ess.append(effective_sample_size(particles.log_w))
            index = self._resampled(particles, noise)
            x_0, guidance, log_twist = (
                x_0[index],
                guidance[index],
                log_twist.flatten()[index].view_as(log_twist),
            )
            self._propose(particles, k, x_0, log_twist, guidance, noise)
            on_step(k + 1, steps)
        x_0, _, guidance = self._evaluated(score, particles, steps, among)
        self._ess.append(effective_sample_size(particles.log_w))
        return self._drawn(particles, x_0, guidance, noise)

    def _evaluated(
        self, score: CountedScore, particles: _Particles, k: int, among: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x̂_0, log p̃(y | x_t), shape (S, P), and its gradient at times[k]; the twist enters the weights."""
        alpha, sigma = (f(self.times[k]).item() for f in (self.sde.alpha, self.sde.sigma))
        with torch.enable_grad():
            x = particles.x.detach().requires_grad_()
            x_0 = (x + sigma**2 * score(x, self.times[k].item(), among=among)) / alpha
            log_twist = self._twist.log_prob(x_0, self._r2[k].item())
            (guidance,) = torch.autograd.grad(log_twist.sum(), x)
        log_twist = log_twist.detach().view_as(particles.log_w)
        particles.log_w = particles.log_w + log_twist
        return x_0.detach(), log_twist, guidance

    def _resampled(self, particles: _Particles, noise: SampleNoise) -> Tensor:
        """Resamples the sets whose effective sample size is low; the indices (S P,) of the survivors."""
        log_w = particles.log_w
        sets, P = log_w.shape
        low = (effective_sample_size(log_w) < self.resample_below * P)[:, None]
        chosen = systematic(log_w, uniform_each(noise), P)
        index = torch.where(low, chosen, torch.arange(P, device=log_w.device))
        particles.log_w = torch.where(low, log_w.logsumexp(1, keepdim=True) - math.log(P), log_w)
        flat = (index + P * torch.arange(sets, device=log_w.device)[:, None]).flatten()
        particles.x = particles.x[flat]
        if particles.history is not None:
            particles.history = [states[flat] for states in particles.history]
        return flat

    def _propose(
        self,
        particles: _Particles,
        k: int,
        x_0: Tensor,
        log_twist: Tensor,
        guidance: Tensor,
        noise: SampleNoise,
    ) -> None:
        """Moves the particles from times[k] to times[k + 1] and weighs the step."""
        keep, move, shift, variance = self._steps[k]
        std = math.sqrt(variance)
        z = torch.stack([noise.normal() for _ in range(self.particles)], 1).flatten(0, 1)
        narrowed, log_det = self._narrowed(z, k)
        jump = (shift / std) * guidance + narrowed  # (x_s - m)/√v
        particles.x = keep * particles.x + move * x_0 + std * jump
        ratio = (dot_each(z, z) - dot_each(jump, jump)) / 2 + log_det  # log p - log q
        particles.log_w = particles.log_w + ratio.view_as(particles.log_w) - log_twist
        if particles.history is not None:
            particles.history.append(particles.x)

    def _narrowed(self, z: Tensor, k: int) -> tuple[Tensor, float]:
        """Noise with covariance Q from standard normal z, and half the log determinant of Q."""
        svd = self._twist.svd
        if svd is None:
            return z, 0.0
        factor = self._narrowing[k]
        return z + svd.V((factor.to(z) - 1) * svd.Vt(z)), factor.log().sum().item()

    def _drawn(
        self,
        particles: _Particles,
        x_0: Tensor,
        guidance: Tensor,
        noise: SampleNoise,
    ) -> Tensor:
        """The draws of each set from its weighted particles, (S draws, *shape)."""
        sets, P = particles.log_w.shape
        index = systematic(particles.log_w, uniform_each(noise), self.draws)
        flat = (index + P * torch.arange(sets, device=index.device)[:, None]).flatten()
        if particles.history is not None:
            self._path = torch.stack([states[flat] for states in particles.history])
        if not self._denoise:
            return particles.x[flat]
        scale = (self.sde.sigma(self.times[-1]).square() / self.sde.alpha(self.times[-1])).item()
        return (x_0 + scale * guidance)[flat]


class Twist:
    """log p̃(y | x_t) up to a constant, as a function of x̂_0.

    Args:
        operator: Linear with a decomposition, or any differentiable one if sigma_y > 0.
        y: The measurement, shape (1, *output_shape).
        sigma_y: Standard deviation of its noise.

    Raises:
        InputError: If sigma_y is negative, or 0 for an operator that is not linear.
    """

    def __init__(self, operator: Operator, y: Tensor, sigma_y: float) -> None:
        self._operator, self._y, self._sigma_y = operator, y, checked_sigma(sigma_y)
        self.svd = operator.svd() if isinstance(operator, LinearOperator) else None
        if self.svd is None and sigma_y == 0:
            raise InputError("a twist through a non-linear operator needs sigma_y > 0, got 0")

    def variance(self, r2: float) -> Tensor:
        """The variances σ_y² + r² s² in the coordinates of the decomposition, (R,); (1,) without one."""
        s2 = torch.ones(1, dtype=torch.float64) if self.svd is None else self.svd.s.square()
        return self._sigma_y**2 + r2 * s2

    def log_prob(self, x_0: Tensor, r2: float) -> Tensor:
        """log N(y; A x̂_0, σ_y² I + r² A Aᵀ), up to a constant, shape (B,), float64."""
        residual = self._y.to(x_0) - self._operator(x_0)
        # What lies outside the range of A does not depend on x̂_0.
        c = residual.flatten(1) if self.svd is None else self.svd.Ut(residual)
        variance = self.variance(r2).to(x_0.device)
        return -0.5 * (c.double().square() / variance + variance.log()).sum(1)


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(Σw)²/Σw² of each set of log weights (S, P), shape (S,)."""
    return (2 * log_w.logsumexp(1) - (2 * log_w).logsumexp(1)).exp()


def uniform_each(noise: SampleNoise) -> Tensor:
    """A uniform number of each sample's stream, shape (B,), float64."""
    return torch.special.ndtr(noise.normal().flatten(1)[:, 0].double())


def systematic(log_w: Tensor, u: Tensor, draws: int) -> Tensor:
    """Systematic resampling: indices of the particles, (S, draws).

    Particle p is chosen ⌊draws w_p⌋ or ⌈draws w_p⌉ times, and each draw is p with probability w_p.

    Args:
        log_w: Log weights, shape (S, P).
        u: Uniform numbers in [0, 1], shape (S,).
        draws: Number of indices.
    """
    cumulative = log_w.softmax(1).cumsum(1)
    places = (u[:, None] + torch.arange(draws, device=u.device) / draws) % 1
    return torch.searchsorted(cumulative, places * cumulative[:, -1:]).clamp_max(log_w.shape[1] - 1)
