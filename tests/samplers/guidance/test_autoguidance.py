"""Autoguidance by a second score."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import make_sampler
from score_diffusion.samplers.guidance import Autoguidance, ClassifierFreeGuidance
from score_diffusion.sde_lib import VPSDE, Gaussian, InputError, ScoreModel
from tests.problems import ALL_SDES, exact_moments, gaussian, labelled_ring, moments

every_sde = pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
DOUBLE = {"dtype": torch.float64}


def wider(law):
    """A worse model of a law: the same with twice the covariance."""
    mean, covariance = moments(law)
    return Gaussian(mean, 2 * covariance)


@every_sde
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_the_score_is_extrapolated(sde, scale):
    law = gaussian(3)
    t = torch.linspace(0.05, 0.95, 5, **DOUBLE) * sde.T
    x = sde.prior_std * torch.randn(5, 3, generator=torch.Generator().manual_seed(0), **DOUBLE)
    good, bad = law.score(sde), wider(law).score(sde)
    for interval, inside in ((None, torch.ones(5, dtype=torch.bool)), ((0.1, 1.0), None)):
        guided = Autoguidance(good, sde, bad, scale=scale, interval=interval)
        level = sde.log_noise_level(t).exp()
        inside = (level > 0.1) & (level <= 1) if inside is None else inside
        expected = torch.where(inside[:, None], bad(x, t) + scale * (good(x, t) - bad(x, t)), good(x, t))
        torch.testing.assert_close(guided(x, t), expected)


def test_it_narrows_what_the_worse_model_widens():
    """For Gaussians the guided law is Gaussian: narrower than the good model's, with the same mean."""
    sde, law = VPSDE(), gaussian(2)
    sampler = make_sampler("eabm", sde, 40)
    guided = exact_moments(sampler, law, Autoguidance(law.score(sde), sde, wider(law).score(sde), scale=2.0))
    plain = exact_moments(sampler, law)
    assert (torch.linalg.eigvalsh(guided[1]) < 0.8 * torch.linalg.eigvalsh(plain[1])).all()
    assert (guided[0] - plain[0]).norm() < 0.1


def test_conditions_reach_both_models():
    """With class scores in both places: p(x | y)² / p'(x | y)."""
    problem, sde = labelled_ring(), VPSDE()
    x, t, label = torch.randn(4, 2).double(), torch.linspace(0.1, 0.9, 4, **DOUBLE), torch.arange(4)
    score = problem.score(sde)
    guided = Autoguidance(score, sde, ClassifierFreeGuidance(score, sde, scale=0.5), scale=2.0)
    given, half = score(x, t, label), 0.5 * (score(x, t) + score(x, t, label))
    torch.testing.assert_close(guided(x, t, label), 2 * given - half)


@pytest.mark.parametrize(
    ("scale", "interval", "nfe"), [(1.0, None, 10), (2.0, None, 20), (2.0, (1e-9, 1e-8), 10)]
)
def test_both_models_are_counted_where_both_are_evaluated(scale, interval, nfe):
    sde, law, calls = VPSDE(), gaussian(2), []

    def worse(x, t):
        calls.append(len(x))
        return wider(law).score(sde)(x, t)

    guided = Autoguidance(law.score(sde), sde, worse, scale=scale, interval=interval)
    assert make_sampler("eabm", sde, 10)(guided, (3, 2)).nfe == nfe
    assert len(calls) == nfe - 10


def test_the_learned_variance_is_the_better_models():
    sde = VPSDE()
    model = ScoreModel(lambda x, noise: torch.cat([x, 0.5 + 0 * x], 1), sde, learned_variance=True)
    x, t = torch.randn(3, 2), torch.full((3,), 0.5)
    fraction = Autoguidance(model, sde, gaussian(2).score(sde)).score_and_fraction(x, t)[1]
    assert (fraction == 0.75).all()


def test_bad_input_is_refused():
    sde = VPSDE()
    score = gaussian(2).score(sde)
    with pytest.raises(InputError, match="scale must be a number of at least 0 .* got -1"):
        Autoguidance(score, sde, score, scale=-1)
    with pytest.raises(InputError, match=r"interval must be two increasing.*got \(2, 1\)"):
        Autoguidance(score, sde, score, interval=(2, 1))
