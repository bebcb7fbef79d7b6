"""Dynamic thresholding (Saharia et al., 2022, Section 2.3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from score_diffusion.samplers import make_sampler
from score_diffusion.samplers.guidance import ClassifierFreeGuidance, DynamicThresholding
from score_diffusion.sde_lib import VPSDE, GaussianMixture, InputError, ScoreModel, tweedie
from tests.problems import ALL_SDES, gaussian, labelled_ring

every_sde = pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
DOUBLE = {"dtype": torch.float64}


def within_range() -> GaussianMixture:
    """A law of 4 dimensions inside of [-1, 1], so that its denoised samples are there, too."""
    means = 0.4 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0), **DOUBLE).clamp(-2, 2)
    return GaussianMixture(
        means, 1e-4 * torch.eye(4, **DOUBLE).expand(3, 4, 4), torch.full((3,), 1 / 3, **DOUBLE)
    )


@every_sde
@pytest.mark.parametrize("largest", [1.0, 0.3])
def test_denoised_samples_are_those_of_the_formula(sde, largest):
    """x̂_0 of the new score is what Section 2.3 says of x̂_0 of the old one, sample by sample in NumPy."""
    score = gaussian(50).score(sde)
    t = torch.linspace(0.05, 0.95, 5, **DOUBLE) * sde.T
    x = 3 * sde.prior_std * torch.randn(5, 50, generator=torch.Generator().manual_seed(0), **DOUBLE)
    old = tweedie(sde, score, x, t).numpy()
    new = tweedie(sde, DynamicThresholding(score, sde, quantile=0.9, largest=largest), x, t).numpy()
    changed = 0
    for before, after in zip(old, new, strict=True):
        s = max(np.quantile(np.abs(before), 0.9), largest)
        np.testing.assert_allclose(after, np.clip(before, -s, s) * largest / s, atol=1e-5 * largest)
        changed += s > largest
    assert changed >= 2


def test_samples_of_a_law_within_the_range_stay_the_same():
    law, sde = within_range(), VPSDE()
    score = law.score(sde)
    for name in ("eabm", "euler_maruyama"):
        sampler = make_sampler(name, sde, 12)
        plain, bounded = (
            sampler(s, (20, 4), seed=0).samples for s in (score, DynamicThresholding(score, sde))
        )
        torch.testing.assert_close(bounded, plain)


def test_strong_guidance_leaves_the_range_and_thresholding_stays_in_it():
    problem, sde = labelled_ring(), VPSDE()
    guided = ClassifierFreeGuidance(problem.score(sde), sde, scale=8.0)
    label = torch.arange(40) % 4
    sampler = make_sampler("eabm", sde, 20, denoise=True)
    radius = 1.2  # of what the law itself reaches in each coordinate, roughly
    plain, bounded = (
        sampler(score, (40, 2), seed=0, cond=label).samples
        for score in (guided, DynamicThresholding(guided, sde, quantile=1.0, largest=radius))
    )
    assert plain.abs().max() > 1.1 * radius and bounded.abs().max() <= radius + 1e-4


def test_the_fraction_of_a_learned_variance_is_passed_on():
    sde = VPSDE()
    model = ScoreModel(lambda x, noise: torch.cat([x, x.sin()], 1), sde, learned_variance=True)
    x, t = 5 * torch.randn(3, 2, 4, 4), torch.full((3,), 0.5)
    bounded = DynamicThresholding(model, sde)
    score, fraction = bounded.score_and_fraction(x, t)
    assert torch.equal(fraction, model.score_and_fraction(x, t)[1]) and torch.equal(score, bounded(x, t))
    assert (score - model(x, t)).abs().max() > 1e-3


def test_arguments_out_of_range():
    score = gaussian(2).score(VPSDE())
    for arguments in (dict(quantile=0.0), dict(quantile=1.1), dict(largest=0.0)):
        with pytest.raises(InputError, match="must"):
            DynamicThresholding(score, VPSDE(), **arguments)
