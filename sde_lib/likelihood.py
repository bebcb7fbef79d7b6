"""Log-likelihood by the probability-flow ODE.

Along dx/dt = f x - ½ g² s(x, t) the density obeys the instantaneous change of variables

    log p_ε(x_ε) = log p_T(x_T) + ∫_ε^T ∇·(f x - ½ g² s) dt.

The linear part's divergence is D f; that of the score is its trace, computed exactly with D vector-Jacobian
products or estimated with the Hutchinson-Skilling estimator E[vᵀ (∂s/∂x) v], one v per probe held fixed along
the path, so that every probe gives an unbiased log-likelihood and their spread gives a standard error. State
and accumulation are in float64, while the score computes in the dtype of the data.

Quantized data (an image's grey levels) have a likelihood once uniform noise of a bin's width is added (Theis
et al., 2016); then

    bits/dim = -(log p(x) + D log(bin width)) / (D log 2).

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: Appendix D.2, eqs. 39-40.
    FFJORD (Grathwohl et al., 2019), https://arxiv.org/abs/1810.01367: the estimator inside an ODE.
    A note on the evaluation of generative models (Theis et al., 2016), https://arxiv.org/abs/1511.01844:
        Section 3.1, dequantization.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.sde_lib.divergence import check_probe, probes_of, score_and_divergence
from score_diffusion.sde_lib.errors import InputError, check_name
from score_diffusion.sde_lib.ode_solver import PAIRS, check_tolerances, solve_each
from score_diffusion.sde_lib.per_sample import root_mean_square_each
from score_diffusion.sde_lib.random_streams import SampleNoise
from score_diffusion.sde_lib.score_wrapper import in_dtype
from score_diffusion.sde_lib.sde import SDE, ScoreFunction, expand

DIVERGENCES = ("hutchinson", "hutch++", "exact")


@dataclass(frozen=True)
class Likelihood:
    """What `log_likelihood` returns; B samples of D dimensions each."""

    log_prob: Tensor
    """log p(x) in nats, shape (B,), float64."""
    standard_error: Tensor
    """Standard error of log_prob over the probes, shape (B,); 0 for the exact trace, NaN for a single probe.
    """
    bits_per_dim: Tensor
    """-(log_prob + D log(bin_width))/(D log 2), shape (B,)."""
    bits_standard_error: Tensor
    """Standard error of bits_per_dim, shape (B,)."""
    log_probs: Tensor
    """The estimate of each probe, shape (B, P), whose mean is log_prob; P = 1 for the exact trace."""
    latent: Tensor
    """The code x_T of every sample, shape (B, *shape)."""
    nfe: int
    """Number of evaluations of the score, per sample."""
    solver_error: Tensor
    """Estimated error of log_prob by the solver, in nats, shape (B,): the sum of the differences from its
    less accurate solutions. NaN where it has none; compare with tighter tolerances then.
    """


def dequantize(levels: Tensor, n_levels: int, u: Tensor) -> Tensor:
    """Uniform dequantization of integer levels k in 0..n_levels-1: a uniform draw from the bin of width
    2/(n_levels - 1) around the pixel value 2k/(n_levels - 1) - 1, so that values in [-1, 1] are the bins'
    centres.

    Args:
        levels: Integer levels k, any shape.
        n_levels: Number of levels, 256 for 8-bit images.
        u: Uniform noise in [0, 1), same shape; 0.5 gives the pixel values themselves.

    Returns:
        Continuous values in the dtype of u.
    """
    return 2 * (levels.to(u) + u - 0.5) / (n_levels - 1) - 1


def quantize(x: Tensor, n_levels: int) -> Tensor:
    """The level whose bin holds x, clipped to 0..n_levels-1: the inverse of `dequantize`; int64."""
    return ((x + 1) / 2 * (n_levels - 1) + 0.5).floor().long().clamp(0, n_levels - 1)


def _draw_probes(
    x: Tensor, divergence: str, probe: str, n_probes: int, seed: int, first: int
) -> tuple[Tensor | None, Tensor | None]:
    """Probes and the sketch of Hutch++, each (P, B, *shape), float64, or None where there are none. A sample
    has a stream of its own.
    """
    check_name("divergence", divergence, DIVERGENCES)
    check_probe(probe)
    if divergence == "exact":
        return None, None
    if n_probes < 1:
        raise InputError(f"n_probes must be at least 1, got {n_probes}")

    def draw(purpose: str) -> Tensor:
        streams = SampleNoise(seed, first, x.shape, x.device, torch.float64, purpose)
        return probes_of(torch.stack([streams.normal() for _ in range(n_probes)]), probe)

    return draw("probes"), draw("sketch") if divergence == "hutch++" else None


class DensityField:
    """The score and its divergence along a path, in float64, with a count of the evaluations.

    Args:
        score: The score function.
        x: Data, shape (B, *shape), for shape and dtype.
        probes: Probes, shape (P, B, *shape); None for the exact divergence, P = 1.
        sketch: Vectors of Hutch++, (K, B, *shape); None for Hutchinson's estimator.
    """

    def __init__(
        self, score: ScoreFunction, x: Tensor, probes: Tensor | None, sketch: Tensor | None = None
    ) -> None:
        self._score, self._probes, self._sketch = in_dtype(score, x.dtype), probes, sketch
        self.shape, self.dimensions = x.shape, x[0].numel()
        self.estimates = 1 if probes is None else len(probes)
        self.nfe = 0

    def __call__(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score, (B, *shape), and estimates of its divergence, (B, P), at states x_t and the time t, or
        that of each sample (B,).
        """
        self.nfe += 1
        s, traces = score_and_divergence(
            self._score, x_t, t.expand(len(x_t)), self._probes, sketch=self._sketch
        )
        return s, traces.T


@dataclass(frozen=True)
class Solution:
    """The end of the path of x_t and of its log density."""

    latent: Tensor
    """x_T, shape (B, *shape), float64."""
    change: Tensor
    """log p_ε(x) - log p_T(x_T), one estimate for each probe, shape (B, P)."""
    coarser: tuple[Solution, ...] = ()
    """Less accurate solutions, from whose differences the error is estimated; none for no estimate."""


DensitySolver = Callable[[SDE, DensityField, Tensor, float], Solution]
"""From the SDE, the field, data x (B, *shape) and the time ε of the data to the solution at T."""


def density_error_size(error: Tensor, dimensions: int) -> Tensor:
    """The size, shape (B,), of errors of x_t and its log densities, (B, D + P): the larger of the
    root-mean-square over x_t and the error of each log density.
    """
    return torch.maximum(root_mean_square_each(error[:, :dimensions]), error[:, dimensions:].abs().amax(1))


class AdaptiveSolver:
    """An adaptive Runge-Kutta pair for x_t and its log density as one state (B, D + P).

    Args:
        method: A name in `PAIRS`: dopri5, bosh3 or adaptive_heun.
        rtol: Relative tolerance of a step of each sample.
        atol: Absolute tolerance of a step of each sample, in units of x and in nats.

    Raises:
        InputError: If the method is unknown, or a tolerance is not positive.
    """

    def __init__(self, method: str = "dopri5", rtol: float = 1e-5, atol: float = 1e-5) -> None:
        check_name("method", method, PAIRS)
        check_tolerances(rtol, atol)
        self.method, self.rtol, self.atol = method, rtol, atol

    def __call__(self, sde: SDE, field: DensityField, x: Tensor, eps: float) -> Solution:
        """The solution at T; it has no estimate of its error."""
        D = field.dimensions
        start = torch.nn.functional.pad(x.double().flatten(1), (0, field.estimates))
        states, at = start.clone(), torch.full((len(x),), eps, dtype=torch.float64, device=x.device)

        def dynamics(state: Tensor, t: Tensor, index: Tensor) -> Tensor:
            # The field is that of a whole batch, so that samples that have arrived stay in it.
            states[index], at[index] = state, t
            s, traces = field(states[:, :D].reshape(field.shape), at)
            f, half_g2 = expand(sde.dlog_alpha(at), states), expand(sde.g2(at) / 2, states)
            change = torch.cat([f * states[:, :D] - half_g2 * s.flatten(1), D * f - half_g2 * traces], dim=1)
            return change[index]

        times = torch.tensor([eps, sde.T], dtype=torch.float64, device=x.device)
        size = functools.partial(density_error_size, dimensions=D)
        end = solve_each(dynamics, start, times, self.method, self.rtol, self.atol, size=size)[-1]
        return Solution(end[:, :D].reshape(field.shape), end[:, D:])


def _likelihood(
    solution: Solution,
    field: DensityField,
    exact: bool,
    dtype: torch.dtype,
    prior_logp: Callable[[Tensor], Tensor],
    bin_width: float,
) -> Likelihood:
    """The result, from the solution at T."""
    log_probs = prior_logp(solution.latent)[:, None] + solution.change  # (B, P)
    log_prob = log_probs.mean(1)
    if not log_prob.isfinite().all():
        raise InputError("a log-likelihood is not finite: check that the score is, or take more steps")
    if field.estimates > 1:
        error = log_probs.std(1) / math.sqrt(field.estimates)
    else:  # a single probe has no spread to measure: NaN, not a false 0
        error = torch.full_like(log_prob, 0.0 if exact else math.nan)
    solver_error = torch.full_like(log_prob, math.nan)
    if solution.coarser:
        others = [prior_logp(other.latent) + other.change.mean(1) for other in solution.coarser]
        solver_error = (torch.stack(others) - log_prob).abs().sum(0)
    to_bits = 1 / (field.dimensions * math.log(2))
    return Likelihood(
        log_prob=log_prob,
        standard_error=error,
        bits_per_dim=-(log_prob * to_bits + math.log2(bin_width)),
        bits_standard_error=error * to_bits,
        log_probs=log_probs,
        latent=solution.latent.to(dtype),
        nfe=field.nfe,
        solver_error=solver_error,
    )


def check_samples(x: Tensor) -> None:
    if x.ndim < 2 or not x.is_floating_point():
        raise InputError(
            f"x must be a floating-point tensor of shape (B, *shape), got {tuple(x.shape)} of {x.dtype}"
        )
    if not x.isfinite().all():
        raise InputError("x must be finite, it holds NaN or infinite values: check the data")


def log_likelihood(
    sde: SDE,
    score: ScoreFunction,
    x: Tensor,
    *,
    divergence: str = "hutchinson",
    probe: str = "rademacher",
    n_probes: int = 4,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: DensitySolver | None = None,
    eps: float = 1e-5,
    bin_width: float = 1.0,
    prior_logp: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    first: int = 0,
) -> Likelihood:
    """Log-likelihood of samples by the probability-flow ODE from eps to T (Song et al., 2021, eq. 39).

    Args:
        sde: The SDE; its prior is the density at T.
        score: The score function, differentiable in x; called in the dtype of the data.
        x: Data, shape (B, *shape), floating point, finite.
        divergence: "hutchinson" (n_probes vector-Jacobian products per evaluation), "hutch++" (three times as
            many), or "exact" (D).
        probe: "rademacher", "gaussian" or "sphere", the law of the probes v.
        n_probes: Number of probes; the score is evaluated once for all of them.
        method: An adaptive method with steps of its own for each sample: dopri5, bosh3 or adaptive_heun.
        rtol: Relative tolerance of the solver, met by every sample.
        atol: Absolute tolerance of the solver, met by every sample.
        solver: What solves the ODE, in place of method, rtol and atol, such as
            `samplers.ExponentialAdams(steps=96)`; None for the adaptive method.
        eps: Start time. The result is the log density of p_eps, which tends to the data's as σ(eps) -> 0.
        bin_width: Width of the bins of dequantized data, for bits_per_dim: 2/255 for 8-bit images in [-1, 1].
            1 for densities.
        prior_logp: Log density of x_T, (B, *shape) -> (B,); None for that of the SDE's prior, which
            approximates the true p_T: VE's is off by v/(2 σ_max²) |z² - 1| nats per dimension for data of
            variance v.
        seed: Seed of the probes; those of sample k depend only on (seed, first + k).
        first: Index of the first sample.

    Returns:
        Log-likelihood, bits/dim, their standard errors over the probes, the codes, and the number of
        evaluations.

    Raises:
        InputError: If x is not a finite floating-point tensor (B, *shape), or an option is unknown.
    """
    check_samples(x)
    probes, sketch = _draw_probes(x, divergence, probe, n_probes, seed, first)
    field = DensityField(score, x, probes, sketch)
    solve = AdaptiveSolver(method, rtol, atol) if solver is None else solver
    solution = solve(sde, field, x, eps)
    return _likelihood(solution, field, probes is None, x.dtype, prior_logp or sde.prior_logp, bin_width)
