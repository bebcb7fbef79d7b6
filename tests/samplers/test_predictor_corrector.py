"""Correctors leave the law of their time invariant; predictor-corrector sampling draws from the law."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import (
    AnnealedLangevin,
    Langevin,
    PCSampler,
    ancestral,
    log_snr_grid,
    uniform_grid,
)
from score_diffusion.samplers.base import CountedScore
from score_diffusion.sde_lib import VESDE, VPSDE, GaussianMixture, InputError, SampleNoise
from tests.problems import (
    SDES,
    GivenNoise,
    carry,
    gaussian,
    images,
    ring,
    sampling_floor,
    sliced_wasserstein,
)

every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())


def correct(corrector, sde, t, score, x):
    """The states after a corrector's steps at time t."""
    time = torch.tensor(t, dtype=torch.float64)
    point = (t, sde.alpha(time).item(), sde.sigma(time).item())
    noise = SampleNoise(0, 0, x.shape, dtype=torch.float64)
    return corrector.step(CountedScore(score, len(x)), x, point, noise, torch.ones(len(x), 1).double())[0]


@pytest.mark.slow
@every_sde
@pytest.mark.parametrize(
    "corrector", [Langevin(0.1, 1000), AnnealedLangevin(0.1, 1000)], ids=["langevin", "ald"]
)
def test_correctors_leave_the_marginal_invariant(sde, corrector):
    """A thousand Langevin steps at a fixed time keep the law p_t, up to the bias 1/(1 - snr²) in variance of
    their step size.
    """
    law, n = gaussian(2), 1000
    marginal = law.marginal(sde, 0.3)
    x = correct(corrector, sde, 0.3, law.score(sde), marginal.sample(n, seed=5))
    assert sliced_wasserstein(x, marginal.sample(n)) < 1.5 * sampling_floor(marginal, n)


def test_langevin_does_not_freeze_outliers_or_explode_on_zero_scores():
    """A far outlier has a large score and must still come back; a score of zero must not make an infinite
    step.
    """
    sde, law = VESDE(), gaussian(2)
    start = torch.tensor([[500.0, -500.0]], dtype=torch.float64)
    x = correct(Langevin(0.16, 200), sde, 0.9, law.score(sde), start)
    assert x.abs().max() < 5 * sde.sigma(torch.tensor(0.9)).item()
    assert correct(Langevin(0.16, 50), sde, 0.9, lambda x, t: 0 * x, start).isfinite().all()


@pytest.mark.slow
@every_sde
@pytest.mark.parametrize("law", [ring(), images()], ids=["ring", "images"])
def test_mixtures_are_sampled_at_the_floor(sde, law):
    """1,000 steps: within twice the distance between two true sample sets."""
    n = 400 if law.shape == (2,) else 100
    samples = PCSampler(sde, uniform_grid(sde, 1000))(law.score(sde), (n, *law.shape), seed=1).samples
    assert sliced_wasserstein(samples, law.sample(n, seed=77)) < 2 * sampling_floor(law, n)


def test_denoising_removes_the_last_noise():
    """Corrector-only sampling honours `denoise`, which the ancestor ignores: point masses are met exactly."""
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    law, sde = GaussianMixture(points, torch.zeros(2)), VPSDE()
    distances = {}
    for denoise in (True, False):
        sampler = PCSampler(sde, log_snr_grid(sde, 300), predictor="none", corrector="ald", denoise=denoise)
        samples = sampler(law.score(sde), (50, 2), seed=3).samples
        distances[denoise] = torch.cdist(samples, points).amin(1).median().item()
    assert distances[True] < 1e-4 < 1e-3 < distances[False]


@every_sde
def test_a_corrector_step_is_the_formula_of_the_paper(sde):
    """x + ε score + √(2ε) z with ε = 2 α² (r σ)² in "ald", 2 α² r² D/‖score‖² in "langevin"."""
    t, r, generator = 0.4, 0.2, torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 5, 2000, generator=generator, dtype=torch.float64)
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = sde.alpha(time).item(), sde.sigma(time).item()

    def score(x, t):
        return -0.9 * x / sigma

    for corrector, epsilon in (
        (AnnealedLangevin(r, 1), 2 * (alpha * r * sigma) ** 2),
        (Langevin(r, 1), 2 * alpha**2 * r**2 / score(x, t).square().mean(1, keepdim=True)),
    ):
        ratio = torch.ones(5, 1, dtype=torch.float64)
        out, _ = corrector.step(CountedScore(score, 5), x, (t, alpha, sigma), GivenNoise([z]), ratio)
        epsilon = torch.as_tensor(epsilon, dtype=torch.float64)
        torch.testing.assert_close(out, x + epsilon * score(x, t) + (2 * epsilon).sqrt() * z)


def test_each_step_is_the_predictor_and_then_the_corrector():
    """With the noise in that order; the corrector acts at the time reached."""
    sde, law = VPSDE(), gaussian(2)
    times = uniform_grid(sde, 2)
    noise = list(torch.randn(6, 3, 2, dtype=torch.float64))
    sampler = PCSampler(sde, times, predictor="ancestral", corrector="ald", snr=0.3, n_corrector_steps=2)
    x = torch.randn(3, 2, dtype=torch.float64)
    ours = carry(sampler, law.score(sde), x, noise)
    for k in range(2):
        z, *rest = noise[3 * k : 3 * k + 3]
        x = carry(ancestral(sde, times[k : k + 2]), law.score(sde), x, [z])[-1]
        t = times[k + 1]
        epsilon = 2 * (sde.alpha(t) * 0.3 * sde.sigma(t)) ** 2
        for z in rest:
            x = x + epsilon * law.score(sde)(x, t.expand(3)) + (2 * epsilon).sqrt() * z
        torch.testing.assert_close(ours[k + 1], x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictor": "heun"}, "predictor must be one of euler_maruyama, .*, got 'heun'"),
        ({"corrector": "mala"}, "corrector must be one of langevin, ald, none, got 'mala'"),
        ({"predictor": "none", "corrector": "none"}, "nothing would move: choose at least one"),
        ({"snr": 0.0}, "a corrector needs snr > 0 and n_steps >= 1, got snr=0.0"),
        ({"n_corrector_steps": 0}, "n_steps=0"),
    ],
)
def test_mistakes_are_explained(options, message):
    with pytest.raises(InputError, match=message):
        PCSampler(VPSDE(), **options)
