"""DDPM's variational bound, in bits per dimension, and the objectives made of its terms.

On times T = t_N > ... > t_0 = 0 (a chain's own, or a subsequence) -log p(x_0) <= E[L_N + ... + L_0] with

    L_N       = KL(q(x_T | x_0) ‖ p(x_T))                                        the prior's term, L_T
    L_k       = KL(q(x_{t_k} | x_{t_{k+1}}, x_0) ‖ p(x_{t_k} | x_{t_{k+1}}))     k = N-1..1
    L_0       = -log p(x_0 | x_{t_1})           the decoder                           (Ho et al., 2020, eq. 5)

p(x_s | x_t) is `reverse_transition`. For n grey levels the decoder is its Gaussian integrated over the
level's bin, of width 2/(n - 1) around 2k/(n - 1) - 1, with the two outer bins open (Ho et al., 2020, eq. 13);
for continuous data it is the density. Its variance has β̃ of the step before, because its own β̃ is 0 (Ho et
al.; Nichol & Dhariwal).

    L_vlb     = N L_k at a random k, unbiased for L_{N-1} + ... + L_0
    L_hybrid  = L_simple + λ L_vlb, where L_vlb trains only the variance    (Nichol & Dhariwal, 2021, eq. 16)

and k may be drawn with probability ∝ √E[L_k²], from the last losses seen at each k (Section 3.3).

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239: eqs. 5-13.
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021),
        https://arxiv.org/abs/2102.09672: Section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from score_diffusion.sde_lib.ddpm import chain_times, check_variance, reverse_transition
from score_diffusion.sde_lib.errors import InputError
from score_diffusion.sde_lib.likelihood import dequantize
from score_diffusion.sde_lib.losses import denoising_score_matching
from score_diffusion.sde_lib.random_streams import SampleNoise
from score_diffusion.sde_lib.score_wrapper import in_dtype, score_and_fraction
from score_diffusion.sde_lib.sde import SDE, ScoreFunction, expand

_FAR = 1e30  # standard deviations: an open bin's end, finite so that its gradient is 0 and not NaN


def _bits_per_dim(nats: Tensor) -> Tensor:
    """(B, *shape), nats of each dimension -> (B,), float64."""
    return nats.double().flatten(1).mean(1) / math.log(2)


def gaussian_kl(mean_1: Tensor, var_1: Tensor, mean_2: Tensor, var_2: Tensor) -> Tensor:
    """KL(N(mean_1, var_1) ‖ N(mean_2, var_2)) in nats for each dimension; the arguments broadcast."""
    return 0.5 * ((var_2 / var_1).log() + (var_1 + (mean_1 - mean_2).square()) / var_2 - 1)


def decoder_log_prob(x_0: Tensor, mean: Tensor, var: Tensor, n_levels: int | None) -> Tensor:
    """log p(x_0 | x_1) in nats for each dimension: a Gaussian over bins (Ho et al., 2020, eq. 13).

    Args:
        x_0: Data, pixel values 2k/(n_levels - 1) - 1 for grey levels, any shape.
        mean: Mean of the Gaussian, like x_0.
        var: Its variance, broadcasting to x_0.
        n_levels: Number of grey levels, at least 2; None for continuous data, whose density is returned.

    Returns:
        Log probabilities (or densities), like x_0, float64.
    """
    x_0, mean, std = x_0.double(), mean.double(), var.double().sqrt()
    if n_levels is None:
        return -0.5 * ((x_0 - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    half_bin, half_range = 1 / (n_levels - 1), 1 - 0.5 / (n_levels - 1)
    upper = torch.where(x_0 > half_range, _FAR, (x_0 + half_bin - mean) / std)
    lower = torch.where(x_0 < -half_range, -_FAR, (x_0 - half_bin - mean) / std)
    # log(Φ(upper) - Φ(lower)), in the tail where Φ is small and its logarithm exact
    upper, lower = torch.where(lower > 0, -lower, upper), torch.where(lower > 0, -upper, lower)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + (-torch.expm1(torch.special.log_ndtr(lower) - log_upper)).log()


def vlb_terms(
    sde: SDE,
    score: ScoreFunction,
    x_0: Tensor,
    times: Tensor,
    k: Tensor,
    noise: Tensor,
    n_levels: int | None,
    variance: str = "small",
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """The terms L_k of the bound, k = 0..N-1, one for each sample, at one draw of x_t.

    Args:
        sde: The SDE.
        score: The score function; for a learned variance one with `score_and_fraction`.
        x_0: Data, shape (B, *shape); pixel values where they have grey levels.
        times: Decreasing times that end where σ = 0, shape (N + 1,), float64, such as `chain_times(sde)`.
        k: Indices of the terms, shape (B,): L_k is that of the step from t_{k+1} to t_k.
        noise: Standard normal noise of x_t, shape (B, *shape).
        n_levels: Number of grey levels; None for continuous data.
        variance: "small", "large" or "learned".
        clip: Bounds of x̂_0; None for none.

    Returns:
        Bits per dimension, shape (B,), float64.
    """
    upwards = times.to(x_0.device).flip(0)
    s, t = upwards[k], upwards[k + 1]
    x_t = sde.perturb(x_0, t, noise)
    first = upwards[1:3] if len(upwards) > 2 else upwards[[0, 1]]
    last_variance = _last_variance(sde, *first).expand(len(x_0))
    mean, var = reverse_transition(sde, score, x_t, s, t, variance, clip, last_variance)
    q_mean, q_var = sde.posterior(x_t, x_0, s, t)
    is_decoder = expand(k == 0, x_0) > 0
    if variance == "large" and n_levels is not None:
        var = torch.where(is_decoder, expand(last_variance, x_0), var)
    # the branch not taken must be finite too, or its gradient is NaN
    kl = gaussian_kl(
        q_mean.double(), expand(torch.where(k == 0, 1.0, q_var), x_t.double()), mean.double(), var.double()
    )
    return _bits_per_dim(torch.where(is_decoder, -decoder_log_prob(x_0, mean, var, n_levels), kl))


def _last_variance(sde: SDE, t_1: Tensor, t_2: Tensor) -> Tensor:
    """β̃ of the step from t_2 to t_1; β itself in a chain of one step, where t_1 = 0."""
    var_ts = sde.transition(t_1, t_2)[1]
    ratio = (sde.sigma(t_1) / sde.sigma(t_2)).square()
    return torch.where(ratio > 0, var_ts * ratio, var_ts)


class _Evaluated:
    """The output of a score model at one point, as a score function that is called only there."""

    def __init__(self, score: Tensor, fraction: Tensor) -> None:
        self._score, self._fraction = score, fraction

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._score

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._score, self._fraction


def hybrid_loss(
    sde: SDE,
    score: ScoreFunction,
    x_0: Tensor,
    times: Tensor,
    k: Tensor,
    noise: Tensor,
    n_levels: int | None,
    vlb_weight: float = 1e-3,
) -> Tensor:
    """L_hybrid = L_simple + λ L_vlb of each sample (Nichol & Dhariwal, 2021, eq. 16), by one evaluation.

    The gradient of L_vlb stops at the score: the score learns from L_simple and the variance from L_vlb.
    L_vlb is N L_k in bits per dimension, as in the authors' code.

    Args:
        sde: The SDE.
        score: A score with `score_and_fraction`, `ScoreModel(..., learned_variance=True)`.
        x_0: Data, shape (B, *shape).
        times: Decreasing times that end where σ = 0, shape (N + 1,), float64.
        k: Indices of the terms, shape (B,), uniform in 0..N-1 (or reweighted, `ImportanceTimes`).
        noise: Standard normal noise, shape (B, *shape).
        n_levels: Number of grey levels; None for continuous data.
        vlb_weight: λ.

    Returns:
        Losses, shape (B,), in the dtype of x_0.
    """
    t = times.to(x_0.device).flip(0)[k + 1]
    x_t = sde.perturb(x_0, t, noise)
    value, fraction = score_and_fraction(score, x_t, t)
    simple = denoising_score_matching(sde, _Evaluated(value, fraction), x_0, t, noise)
    vlb = vlb_terms(sde, _Evaluated(value.detach(), fraction), x_0, times, k, noise, n_levels, "learned")
    return simple + vlb_weight * (len(times) - 1) * vlb.to(simple)


@dataclass(frozen=True)
class VariationalBound:
    """What `variational_bound` returns, in bits per dimension, float64; B samples, N steps."""

    terms: Tensor
    """L_N (the prior's, L_T), L_{N-1}, ..., L_0, shape (B, N + 1), means over draws; NaN where not drawn."""
    total: Tensor
    """The estimate of the bound, shape (B,)."""
    standard_error: Tensor
    """Standard error of the total over the draws, shape (B,); NaN for a single draw."""
    nfe: int
    """Number of evaluations of the score, per sample."""


def variational_bound(
    sde: SDE,
    score: ScoreFunction,
    x: Tensor,
    n_levels: int | None,
    *,
    times: Tensor | None = None,
    variance: str = "small",
    clip: tuple[float, float] | None = None,
    n_terms: int | None = None,
    n_draws: int = 1,
    seed: int = 0,
    first: int = 0,
) -> VariationalBound:
    """The variational bound on -log₂ p(x) per dimension, term by term.

    Args:
        sde: The SDE.
        score: The score function; for a learned variance one with `score_and_fraction`.
        x: Integer grey levels in 0..n_levels-1, shape (B, *shape); floating-point data where n_levels is
            None.
        n_levels: Number of grey levels; None for continuous data, whose density is bounded.
        times: Decreasing times that end where σ = 0, shape (N + 1,); None for `chain_times(sde)`, all steps.
        variance: "small", "large" or "learned".
        clip: Bounds of x̂_0, as (-1, 1) for images; None for none.
        n_terms: None to evaluate every term, N evaluations per draw. Else the number of terms to draw at
            random for each sample, stratified, large terms with a higher probability: n_terms evaluations per
            draw, and an unbiased total with a larger standard error.
        n_draws: Number of repetitions, each with its own noise.
        seed: Seed of noise and terms; those of sample k depend only on (seed, first + k).
        first: Index of the first sample.

    Returns:
        The terms, their total, its standard error and the number of evaluations.

    Raises:
        InputError: If x is not of the type that n_levels asks for, the times do not end without noise, or an
            option is unknown.
    """
    check_variance(variance)
    times = _check_times(sde, chain_times(sde) if times is None else times)
    x_0 = _check_data(x, n_levels)
    if n_draws < 1 or (n_terms is not None and n_terms < 1):
        raise InputError(f"n_terms (or None) and n_draws must be at least 1, got {n_terms} and {n_draws}")
    score = in_dtype(score, x_0.dtype)
    z = SampleNoise(seed, first, x_0.shape, x_0.device, x_0.dtype, purpose="bound")

    @torch.no_grad()
    def term(k: Tensor) -> Tensor:
        return vlb_terms(sde, score, x_0, times, k, z.normal(), n_levels, variance, clip)

    if n_terms is None:
        terms, estimates = _every_term(term, len(x_0), len(times) - 1, n_draws, x_0.device)
        return _bound(sde, x_0, times, terms, estimates, n_draws * (len(times) - 1))
    shape = (len(x_0), n_draws * n_terms)
    u = SampleNoise(seed, first, shape, x_0.device, torch.float64, purpose="terms").normal()
    p = _term_probabilities(sde, times).to(u.device)
    terms, estimates = _drawn_terms(term, torch.special.ndtr(u), p)
    return _bound(sde, x_0, times, terms, estimates, n_draws * n_terms)


def _bound(
    sde: SDE, x_0: Tensor, times: Tensor, terms: Tensor, estimates: Tensor, nfe: int
) -> VariationalBound:
    """The bound of terms L_0..L_{N-1}, (B, N), and of estimates of their sum, (B, J)."""
    prior = _prior_term(sde, x_0, times[0])
    J = estimates.shape[1]
    return VariationalBound(
        terms=torch.cat([prior[:, None], terms.flip(1)], 1),
        total=prior + estimates.mean(1),
        standard_error=estimates.std(1) / math.sqrt(J) if J > 1 else torch.full_like(prior, math.nan),
        nfe=nfe,
    )


def _check_times(sde: SDE, times: Tensor) -> Tensor:
    times = torch.as_tensor(times, dtype=torch.float64)
    if times.ndim != 1 or len(times) < 2 or not (times.diff() < 0).all() or sde.sigma(times[-1]) != 0:
        raise InputError(
            "times must decrease to one where sigma is 0, as chain_times of a VPSDE or DDPM do; they do not "
            f"for {sde}"
        )
    return times


def _check_data(x: Tensor, n_levels: int | None) -> Tensor:
    """x_0: x itself, or the pixel values of grey levels."""
    if n_levels is None:
        if x.ndim < 2 or not x.is_floating_point() or not x.isfinite().all():
            raise InputError(
                "x must be finite, floating point and (B, *shape) if n_levels is None, got "
                f"{tuple(x.shape)} of {x.dtype}"
            )
        return x
    lowest, highest = x.min().item(), x.max().item()  # as Python's numbers: 256 is 0 for uint8
    if x.ndim < 2 or x.is_floating_point() or n_levels < 2 or lowest < 0 or highest >= n_levels:
        raise InputError(
            f"x must be integers in 0..{n_levels - 1} of shape (B, *shape), got {tuple(x.shape)} {x.dtype} "
            f"in [{lowest:.4g}, {highest:.4g}]; `quantize` turns pixel values into levels"
        )
    return dequantize(x, n_levels, torch.full(x.shape, 0.5, device=x.device))


def _prior_term(sde: SDE, x_0: Tensor, T: Tensor) -> Tensor:
    """KL(q(x_T | x_0) ‖ N(0, prior_std²)), shape (B,)."""
    mean = sde.alpha(T).item() * x_0.double()
    var, prior_var = sde.sigma(T).square().to(mean), torch.tensor(sde.prior_std**2).to(mean)
    return _bits_per_dim(gaussian_kl(mean, var, torch.zeros_like(mean), prior_var))


def _every_term(
    term: Callable, batch: int, N: int, n_draws: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean terms (B, N) and total of each draw (B, n_draws)."""
    steps = [torch.full((batch,), k, device=device) for k in range(N)]
    terms = torch.stack([torch.stack([term(k) for k in steps], 1) for _ in range(n_draws)])
    return terms.mean(0), terms.sum(2).T


def _drawn_terms(term: Callable, u: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Mean terms (B, N), NaN where there are none, and the estimates L_k/p_k (B, J) for uniform u (B, J)."""
    strata = (torch.arange(u.shape[1], device=u.device) + u) / u.shape[1]
    k = torch.searchsorted(p.cumsum(0), strata).clamp_max(len(p) - 1)  # (B, J)
    values = torch.stack([term(column) for column in k.unbind(1)], 1)
    sums, counts = (
        torch.zeros(len(u), len(p)).to(values).scatter_add(1, k, v) for v in (values, torch.ones_like(values))
    )
    return sums / counts, values / p[k]


def _term_probabilities(sde: SDE, times: Tensor) -> Tensor:
    """The probability of drawing each of L_0..L_{N-1}, shape (N,), ∝ the terms of data from N(0, I).

    There L_k is about ½ log((1 + SNR(s))/(1 + SNR(t))) nats; L_0 counts as one nat, and a tenth is shared
    evenly.
    """
    log_snr = sde.log_snr(times[:-1].flip(0))  # of t_1..t_N
    weights = torch.cat([log_snr.new_ones(1), -0.5 * F.softplus(log_snr).diff()])
    return 0.9 * weights / weights.sum() + 0.1 / len(weights)
