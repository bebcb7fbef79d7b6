"""The variational bound against exact likelihoods, its decoder, and the objectives made of its terms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from score_diffusion.sde_lib import (
    DDPM,
    VESDE,
    VPSDE,
    Gaussian,
    GaussianMixture,
    ScoreModel,
    chain_times,
    cosine_betas,
    decoder_log_prob,
    denoising_score_matching,
    dequantize,
    hybrid_loss,
    linear_betas,
    variational_bound,
    vlb_terms,
)
from tests.problems import line

LEVELS = 6
PMF = torch.tensor([0.05, 0.3, 0.1, 0.25, 0.25, 0.05], dtype=torch.float64)
VALUES = dequantize(torch.arange(LEVELS), LEVELS, torch.full((LEVELS,), 0.5).double())[:, None]
GREY = GaussianMixture(VALUES, torch.zeros(LEVELS), PMF)  # points on the grey levels: its denoiser is exact
ENTROPY = -(PMF * PMF.log2()).sum().item()


def expected_bound(sde, score, values, weights, n_levels, variance="small", nodes=57) -> float:
    """E[bound] over weighted values (V, 1), and over the noise of every term by quadrature."""
    times = chain_times(sde)
    z = torch.linspace(-7, 7, nodes, dtype=torch.float64)  # trapezoidal rule, exact for smooth functions
    density = (-0.5 * z**2).exp() / (-0.5 * z**2).exp().sum()
    x_0, noise = values.repeat_interleave(nodes, 0), z.repeat(len(values))[:, None]
    total = variational_bound(sde, score, values, None).terms[:, 0]  # L_T has no noise
    for k in range(len(times) - 1):
        term = vlb_terms(sde, score, x_0, times, torch.full((len(x_0),), k), noise, n_levels, variance)
        total = total + term.view(len(values), nodes) @ density
    return (weights * total).sum().item()


# The bound.


@pytest.mark.slow
def test_bound_of_grey_levels_approaches_their_entropy():
    """With the exact denoiser of a law on grey levels E[bound] is above its entropy, the true E[-log₂ p], and
    falls to it as N grows. The small variance is right for points; with the large one the bound stays above.
    """
    gaps, large = [], []
    for N in (25, 50, 100, 200):
        sde = DDPM(cosine_betas(N))
        gaps.append(expected_bound(sde, GREY.score(sde), VALUES, PMF, LEVELS, nodes=141) - ENTROPY)
        if N in (50, 100):
            large.append(
                expected_bound(sde, GREY.score(sde), VALUES, PMF, LEVELS, "large", nodes=141) - ENTROPY
            )
    assert min(gaps) > 0 and min(large) > 0.4, (gaps, large)
    assert all(a / b > 1.5 for a, b in zip(gaps, gaps[1:], strict=False)), gaps
    assert gaps[-1] < 0.15, gaps


@pytest.mark.slow
def test_bound_of_a_density_approaches_its_negative_logarithm():
    """The same for a mixture of Gaussians, whose decoder is a density; here the large variance is right."""
    law = line()
    x = torch.linspace(-5, 5, 61, dtype=torch.float64)[:, None]
    weights = law.log_prob(x).exp()
    weights = weights / weights.sum()
    truth = -(weights * law.log_prob(x)).sum().item() / math.log(2)
    gaps = []
    for N in (50, 100, 200):
        sde = DDPM(linear_betas(N))
        gaps.append(expected_bound(sde, law.score(sde), x, weights, None, "large") - truth)
    assert min(gaps) > 0 and gaps[2] < 0.03, gaps
    assert all(a / b == pytest.approx(2, abs=0.1) for a, b in zip(gaps, gaps[1:], strict=False)), gaps


def test_bound_of_a_vp_sde_and_of_a_respaced_chain():
    """Any SDE without noise at t = 0 and any subsequence of its times has a bound; fewer steps are looser."""
    levels = torch.multinomial(PMF, 300, replacement=True, generator=torch.Generator().manual_seed(0))[
        :, None
    ]
    sde = VPSDE(N=101)
    times = chain_times(sde)
    full, respaced = (
        variational_bound(sde, GREY.score(sde), levels, LEVELS, times=g) for g in (None, times[::5])
    )
    assert full.terms.shape == (300, 101) and full.nfe == 100 and respaced.nfe == 20
    truth = -PMF.log2()[levels[:, 0]]
    for bound in (full, respaced):
        torch.testing.assert_close(bound.total, bound.terms.sum(1))
        gap = bound.total - truth
        assert gap.mean() > -3 * gap.std() / math.sqrt(300)
    assert (respaced.total - full.total).mean() > 0.02


def test_bound_is_that_of_a_gaussian_chain():
    """For data from N(0, 1) the terms of the large variance are known in closed form."""
    sde, law = DDPM(linear_betas(40)), Gaussian(torch.zeros(1), torch.ones(1))
    betas = linear_betas(40)
    alpha_bar = (1 - betas).cumprod(0)
    q = betas[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    # mean difference: c x_0-coefficient times (x_0 - E[x_0 | x_t]), whose variance is 1 - ᾱ_t
    c = alpha_bar[:-1].sqrt() * betas[1:] / (1 - alpha_bar[1:])
    exact = 0.5 * ((betas[1:] / q).log() + (q + c**2 * (1 - alpha_bar[1:])) / betas[1:] - 1) / math.log(2)
    x = law.sample(4000)
    terms = variational_bound(sde, law.score(sde), x, None, variance="large").terms.flip(1)  # L_0 first
    error = terms[:, 1:-1].std(0) / math.sqrt(4000)
    assert ((terms[:, 1:-1].mean(0) - exact) / error).abs().max() < 4.5
    a = alpha_bar[-1]
    prior = 0.5 * ((1 - a) + a * x[:, 0] ** 2 - 1 - (1 - a).log()) / math.log(2)
    torch.testing.assert_close(terms[:, -1], prior, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"n_draws": 8}, {"n_terms": 60}, {"n_terms": 15, "n_draws": 4}])
def test_draws_are_unbiased_and_their_standard_error_honest(options):
    """Against quadrature: the mean is within its error, the deviations are of the size reported."""
    sde, n = DDPM(cosine_betas(30)), 600
    score = GREY.score(sde)
    exact = expected_bound(sde, score, VALUES[2:3], torch.ones(1), LEVELS)
    bound = variational_bound(sde, score, torch.full((n, 1), 2), LEVELS, seed=3, **options)
    assert bound.nfe == options.get("n_terms", 30) * options.get("n_draws", 1)
    error = bound.total.std().item()
    assert abs(bound.total.mean().item() - exact) < 4 * error / math.sqrt(n)
    reported = bound.standard_error.square().mean().sqrt().item()
    assert 0.9 < reported / error < 1.6  # strata make the drawn terms' a little too large, never too small


def test_bound_belongs_to_the_sample_not_to_the_batch():
    sde, levels = DDPM(cosine_betas(10)), torch.arange(LEVELS)[:, None]
    score = GREY.score(sde)
    for options in ({}, {"n_terms": 4}):
        full = variational_bound(sde, score, levels, LEVELS, seed=1, **options)
        rest = variational_bound(sde, score, levels[4:], LEVELS, seed=1, first=4, **options)
        torch.testing.assert_close(full.total[4:], rest.total)
    assert full.standard_error.isfinite().all() and full.terms.isnan().any()
    assert variational_bound(sde, score, levels, LEVELS).standard_error.isnan().all()


class Spread(nn.Module):
    """A zero noise estimate and the same v everywhere."""

    def __init__(self, v: float) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(2 * v - 1.0).double())

    def forward(self, x, noise, cond=None):
        return torch.cat([0 * x, self.raw.expand_as(x)], dim=1)


def test_learned_variance_between_the_fixed_ones():
    """v = 0 gives the bound of the small variance; v = 1 that of the large one, but for the decoder."""
    sde, levels = DDPM(cosine_betas(12)), torch.randint(0, 256, (3, 2, 4, 4))
    small, large = (
        variational_bound(
            sde, ScoreModel(Spread(0.0), sde, learned_variance=True), levels, 256, variance=v
        ).terms
        for v in ("small", "large")
    )
    for v, expected in ((0.0, small), (1.0, large)):
        score = ScoreModel(Spread(v), sde, learned_variance=True)
        terms = variational_bound(sde, score, levels, 256, variance="learned").terms
        torch.testing.assert_close(terms[:, :-1], expected[:, :-1], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(small[:, -1], large[:, -1])  # Ho et al.'s decoder variance is that of both


def test_bound_refuses_what_it_cannot_bound():
    sde, levels = DDPM(cosine_betas(10)), torch.zeros(1, 1).long()
    score = GREY.score(sde)
    with pytest.raises(ValueError, match="x must be integers in 0..5"):
        variational_bound(sde, score, levels + 6, LEVELS)
    with pytest.raises(ValueError, match="`quantize` turns pixel values into levels"):
        variational_bound(sde, score, levels.float(), LEVELS)
    with pytest.raises(ValueError, match="floating point"):
        variational_bound(sde, score, levels, None)
    with pytest.raises(ValueError, match="times must decrease to one where sigma is 0"):
        variational_bound(sde, score, levels, LEVELS, times=torch.tensor([1.0, 0.1]))
    with pytest.raises(ValueError, match="times must decrease to one where sigma is 0"):
        variational_bound(VESDE(), score, levels, LEVELS)
    with pytest.raises(ValueError, match="variance must be one of small, large, learned"):
        variational_bound(sde, score, levels, LEVELS, variance="medium")
    with pytest.raises(ValueError, match="at least 1, got 0 and 1"):
        variational_bound(sde, score, levels, LEVELS, n_terms=0)


# The decoder.


@pytest.mark.parametrize("n_levels", [2, 17, 256])
@pytest.mark.parametrize("std", [1e-3, 0.05, 3.0])
def test_decoder_is_a_law_on_the_grey_levels(n_levels, std):
    """Probabilities of all levels sum to 1, wherever the mean is."""
    x = dequantize(torch.arange(n_levels), n_levels, torch.full((n_levels,), 0.5).double())
    for mean in (-1.4, -1.0, 0.123, 1.0, 7.0):
        log_p = decoder_log_prob(x, torch.full_like(x, mean), torch.tensor(std**2), n_levels)
        assert log_p.isfinite().all()
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_decoder_in_the_tails_and_its_gradient():
    """Where probabilities underflow the logarithm is exact, and so is its gradient, at open bins too."""
    x = torch.tensor([-1.0, 0.2, 1.0]).double()
    mean = torch.tensor([0.9, -0.8, -0.9], dtype=torch.float64, requires_grad=True)
    log_var = torch.full((3,), math.log(1e-4), dtype=torch.float64, requires_grad=True)

    def f(mean, log_var):
        return decoder_log_prob(x, mean, log_var.exp(), 11)

    values = f(mean, log_var)
    d = (0.9 - 0.1) / 0.01  # the near edge of the last bin of 11 levels is at 0.9, here seen from 0.1
    assert f(torch.tensor([0.9, 0.2, 0.1]).double(), log_var)[2].item() == pytest.approx(
        -0.5 * d**2 - math.log(d * math.sqrt(2 * math.pi)) - 1 / d**2, rel=1e-6
    )
    assert (values < -1000).all()
    assert torch.autograd.gradcheck(f, (mean, log_var))


# Objectives.


class Net(nn.Module):
    """A small network of two outputs per channel with parameters of their own for score and variance."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.2))

    def forward(self, x, noise, cond=None):
        return torch.cat([self.a * x, self.b * x.tanh()], dim=1)


def test_hybrid_loss():
    """L_simple + λ N L_k; the score's gradient is that of L_simple alone, the variance's that of L_vlb."""
    sde, net = DDPM(cosine_betas(20)), Net()
    model, times = ScoreModel(net, sde, learned_variance=True), chain_times(sde)
    x_0 = dequantize(torch.randint(0, 16, (20, 1, 4, 4)), 16, torch.full((20, 1, 4, 4), 0.5))
    k, noise = torch.arange(20), torch.randn(20, 1, 4, 4)
    t = times.flip(0)[k + 1]
    simple = denoising_score_matching(sde, model, x_0, t, noise)
    vlb = vlb_terms(sde, model, x_0, times, k, noise, 16, "learned")
    loss = hybrid_loss(sde, model, x_0, times, k, noise, 16, vlb_weight=0.01)
    torch.testing.assert_close(loss, simple + 0.01 * 20 * vlb.float())
    grads = torch.autograd.grad(loss.sum(), (net.a, net.b))
    torch.testing.assert_close(grads[0], torch.autograd.grad(simple.sum(), net.a, retain_graph=True)[0])
    assert vlb[0].isfinite() and all(g.isfinite() and g != 0 for g in grads)
    expected = 0.2 * torch.autograd.grad(vlb.float().sum(), net.b)[0]
    torch.testing.assert_close(grads[1], expected, rtol=1e-4, atol=1e-6)
