"""The bound of the reverse-time SDE on the negative log-likelihood.

A score s(x, t) is a generative model twice: by its probability-flow ODE, whose likelihood is exact
(likelihood.py), and by its reverse-time SDE dx = (f x - g² s) dt + g dw̄, whose likelihood has a bound that
needs no divergence. For x at time ε and x_t = a x + τ z, the SDE's transition from ε to t,

    -log p_ε(x) <= E[-log p_T(x_T)] + ∫_ε^T E[½ g² ‖s(x_t, t)‖² + g² s(x_t, t)·z/τ] dt - D log(α_T/α_ε)

(Song et al., 2021, Theorem 3, with ∇log p(x_t | x) = -z/τ; Huang et al., 2021, Theorem 3). It is an equality
for the exact score with the exact p_T. The gap is half the integral of g² E‖s - ∇log q_t‖², where q_t is the
model's own law of x_t.

In u = log(σ/α), g² dt = 2 σ² du, so that the integrand in u is of the size of D everywhere. It is estimated
at u stratified over its range, and at z and -z together: that cancels s(x, ε)·z/τ, which has mean zero and
grows without bound as t -> ε. Where there is more noise than detail the score is about -z/σ, and most of the
variance is that of ‖z‖². Its coefficient for data N(0, c² I), times ‖z‖² - D, which has mean zero, is
subtracted.

References:
    Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021),
        https://arxiv.org/abs/2101.09258: Theorem 3, eq. 11.
    A Variational Perspective on Diffusion-Based Generative Models and Score Matching (Huang et al., 2021),
        https://arxiv.org/abs/2106.02808: Theorem 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError
from score_diffusion.sde_lib.likelihood import check_samples
from score_diffusion.sde_lib.random_streams import SampleNoise
from score_diffusion.sde_lib.score_wrapper import in_dtype
from score_diffusion.sde_lib.sde import SDE, ScoreFunction, expand


@dataclass(frozen=True)
class ReverseBound:
    """What `reverse_sde_bound` returns; B samples of D dimensions each."""

    nats: Tensor
    """The bound on -log p(x) in nats, shape (B,), float64."""
    estimates: Tensor
    """Its independent estimates, shape (B, n_draws), whose mean is `nats`."""
    standard_error: Tensor
    """Standard error of `nats` over the draws, shape (B,); NaN for one draw."""
    bits_per_dim: Tensor
    """(nats/D - log(bin_width))/log 2, shape (B,)."""
    nfe: int
    """Number of evaluations of the score, per sample."""


def reverse_sde_estimate(
    sde: SDE,
    score: ScoreFunction,
    x: Tensor,
    place: Tensor,
    noise: Tensor,
    eps: float = 1e-5,
    prior_logp: Callable[[Tensor], Tensor] | None = None,
    detail: float = 0.3,
) -> Tensor:
    """One unbiased estimate of the bound in nats, differentiable in x and in the score's parameters.

    Args:
        sde: The SDE; its prior is the density at T.
        score: The score function, called at x_t with the noise and with its negative.
        x: Data, shape (B, *shape).
        place: Where log(σ/α) lies between its values at eps and at T, shape (B,), uniform in (0, 1).
        noise: Standard normal noise z, shape (B, *shape).
        eps: The time of x.
        prior_logp: Log density of x_T; None for that of the SDE's prior.
        detail: Standard deviation c of the details of the data; it moves the variance only.

    Returns:
        The estimate, shape (B,), float64.
    """
    log_density = prior_logp or sde.prior_logp
    ends = torch.tensor([eps, sde.T], dtype=torch.float64, device=x.device)
    low, high = sde.log_noise_level(ends)
    with torch.no_grad():
        t = sde.time_at_log_noise_level(torch.lerp(low, high, place.double())).clamp(eps, sde.T)  # (B,)
    a, variance = sde.transition(ends[0].expand_as(t), t)
    tau = variance.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    z, mean = noise.double(), expand(a, noise.double()) * x.double()
    to_T, variance_T = sde.transition(*ends)
    total = -_log_scale(sde, ends, x)
    sigma2 = sde.sigma(t).square()
    v = (detail * sde.alpha(t)).square() + sigma2  # the variance of x_t where the data are N(0, c² I)
    excess = z.square().flatten(1).sum(1) - x[0].numel()
    known = sigma2 * (2 * v - variance) / v.square() * excess
    for sign in (1, -1):
        x_t = mean + sign * expand(tau, mean) * z
        s = score(x_t.to(x.dtype), t.to(x.dtype)).double()
        inner = (s * z).flatten(1).sum(1) * (sign / tau)
        # g² dt = 2 σ² du
        integrand = 2 * sigma2 * (0.5 * s.square().flatten(1).sum(1) + inner)
        x_T = to_T * x.double() + sign * variance_T.sqrt() * z
        total = total + 0.5 * ((high - low) * (integrand + known) - log_density(x_T))
    return total


def _log_scale(sde: SDE, ends: Tensor, x: Tensor) -> Tensor:
    """D log(α_T/α_ε)."""
    first, last = sde.log_alpha(ends)
    return x[0].numel() * (last - first)


def reverse_sde_bound(
    sde: SDE,
    score: ScoreFunction,
    x: Tensor,
    *,
    n_times: int = 64,
    n_draws: int = 1,
    eps: float = 1e-5,
    bin_width: float = 1.0,
    prior_logp: Callable[[Tensor], Tensor] | None = None,
    detail: float = 0.3,
    seed: int = 0,
    first: int = 0,
) -> ReverseBound:
    """The bound of the reverse SDE on -log p_ε(x) (Song et al., 2021, Theorem 3).

    Args:
        sde: The SDE; its prior is the density at T.
        score: The score function, called in the dtype of the data; it need not be differentiable.
        x: Data, shape (B, *shape), floating point, finite.
        n_times: Times of an estimate, one in each of as many cells; 2 evaluations of the score each.
        n_draws: Independent estimates.
        eps: The time of x. The result bounds -log p_eps(x), whose value for the probability-flow ODE
            `log_likelihood` has at the same eps.
        bin_width: Width of the bins of dequantized data, for bits_per_dim.
        prior_logp: Log density of x_T, (B, *shape) -> (B,); None for that of the SDE's prior.
        detail: Standard deviation c of the details of the data; it moves the variance only.
        seed: Seed of times and noise; those of sample k depend only on (seed, first + k).
        first: Index of the first sample.

    Returns:
        The bound, its standard error over the draws, and the number of evaluations.

    Raises:
        InputError: If x is not a finite floating-point tensor (B, *shape), a number is below 1, or a value is
            not finite.
    """
    check_samples(x)
    if n_times < 1 or n_draws < 1:
        raise InputError(f"n_times and n_draws must be at least 1, got {n_times} and {n_draws}")
    in_data_dtype = in_dtype(score, x.dtype)
    noise = SampleNoise(seed, first, x.shape, x.device, torch.float64, purpose="reverse bound")
    offsets = SampleNoise(seed, first, (len(x), n_draws), x.device, torch.float64, purpose="bound times")
    u = torch.special.ndtr(offsets.normal())  # (B, n_draws)
    draws = []
    for draw in range(n_draws):
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for cell in range(n_times):
            place = (cell + u[:, draw]) / n_times
            with torch.no_grad():
                z = noise.normal()
                total = total + reverse_sde_estimate(sde, in_data_dtype, x, place, z, eps, prior_logp, detail)
        draws.append(total / n_times)
    return _result(torch.stack(draws, 1), x[0].numel(), bin_width, 2 * n_times * n_draws)


def _result(estimates: Tensor, dimensions: int, bin_width: float, nfe: int) -> ReverseBound:
    nats = estimates.mean(1)
    if not nats.isfinite().all():
        raise InputError("a bound is not finite: check that the score is")
    draws = estimates.shape[1]
    error = estimates.std(1) / math.sqrt(draws) if draws > 1 else torch.full_like(nats, math.nan)
    bits = (nats / dimensions - math.log(bin_width)) / math.log(2)
    return ReverseBound(nats, estimates, error, bits, nfe)
