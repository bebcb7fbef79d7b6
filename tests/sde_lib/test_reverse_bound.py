"""The reverse SDE's bound: an equality for exact scores, above the likelihood for others."""

from __future__ import annotations

import math

import pytest
import torch

from score_diffusion.sde_lib import VPSDE, InputError, reverse_sde_bound, reverse_sde_estimate
from tests.problems import ALL_SDES, gaussian, images, ring

EPS = 1e-3


@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
@pytest.mark.parametrize("law", [gaussian(4), ring(2.0)], ids=["gaussian", "ring"])
def test_it_is_the_exact_value_for_the_exact_score(sde, law):
    """The mean over samples of bound and truth agree within 4 standard errors, which are small."""
    x = law.sample(400, seed=1)
    last = law.marginal(sde, sde.T).log_prob
    found = reverse_sde_bound(sde, law.score(sde), x, n_times=24, eps=EPS, prior_logp=last)
    difference = found.nats + law.marginal(sde, EPS).log_prob(x)
    error = difference.std() / math.sqrt(len(x))
    assert difference.mean().abs() < 4 * error and error < 0.15 * len(x[0])


def test_a_worse_score_has_a_larger_bound():
    law, sde = images(), VPSDE()
    x, score = law.sample(40, seed=2), law.score(sde)

    def off(x_t, t):
        return 0.8 * score(x_t, t)

    bounds = [reverse_sde_bound(sde, s, x, n_times=16, eps=EPS).nats for s in (score, off)]
    difference = bounds[1] - bounds[0]  # at the same noise
    assert difference.mean() > 5 * difference.std() / math.sqrt(len(x))


def test_a_sample_does_not_depend_on_its_batch_and_draws_are_averaged():
    law, sde = ring(), VPSDE()
    x, score = law.sample(5, seed=3), law.score(sde)
    whole = reverse_sde_bound(sde, score, x, n_times=4, n_draws=3, seed=7)
    part = reverse_sde_bound(sde, score, x[2:4], n_times=4, n_draws=3, seed=7, first=2)
    torch.testing.assert_close(part.estimates, whole.estimates[2:4])
    assert whole.estimates.shape == (5, 3) and whole.nfe == 24
    torch.testing.assert_close(whole.nats, whole.estimates.mean(1))
    torch.testing.assert_close(whole.bits_per_dim, whole.nats / (2 * math.log(2)))
    assert reverse_sde_bound(sde, score, x, n_times=1).standard_error.isnan().all()


def test_the_variance_shrinks_and_the_mean_stays_with_the_detail():
    law, sde = images(), VPSDE()
    x, score = law.sample(2, seed=4).repeat(60, 1, 1, 1), law.score(sde)
    known, unknown = (reverse_sde_bound(sde, score, x, n_times=8, detail=c).nats for c in (0.3, 1e6))
    difference = known - unknown
    assert difference.mean().abs() < 4 * difference.std() / math.sqrt(len(x))
    assert known[::2].var() < 0.5 * unknown[::2].var()


def test_the_gradient_of_an_estimate_is_that_of_the_log_density():
    """On average over times and noise, for a Gaussian, with the exact p_T: the score's negative."""
    law, sde = gaussian(2), VPSDE()
    n = 40_000
    x = law.sample(1, seed=5).repeat(n, 1).requires_grad_()
    source = torch.Generator().manual_seed(0)
    place = (torch.arange(n) + torch.rand(n, generator=source)) / n
    noise = torch.randn(n, 2, generator=source, dtype=torch.float64)
    last = law.marginal(sde, sde.T).log_prob
    total = reverse_sde_estimate(sde, law.score(sde), x, place, noise, EPS, last).sum()
    (gradient,) = torch.autograd.grad(total, x)
    exact = -law.score(sde)(x[:1].detach(), torch.tensor([EPS]))[0]
    error = gradient.std(0) / math.sqrt(n)
    assert ((gradient.mean(0) - exact).abs() < 4 * error).all() and (error < 0.2).all()


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="n_times and n_draws must be at least 1, got 0 and 1"):
        reverse_sde_bound(VPSDE(), ring().score(VPSDE()), torch.zeros(2, 2), n_times=0)
    with pytest.raises(InputError, match="x must be finite"):
        reverse_sde_bound(VPSDE(), ring().score(VPSDE()), torch.full((2, 2), math.nan))
    with pytest.raises(InputError, match="a bound is not finite"):
        reverse_sde_bound(VPSDE(), lambda x, t: x / 0, torch.ones(2, 2), n_times=1)
