"""The laws that samplers draw from: exactly, for Gaussian data, and by distance to true samples, for
mixtures.
"""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import (
    Ancestral,
    AnnealedLangevin,
    AnnealedLangevinSampler,
    EulerMaruyama,
    Langevin,
    LinearSampler,
    ODESampler,
    PCSampler,
    ReverseDiffusion,
    log_snr_grid,
    uniform_grid,
)
from score_diffusion.samplers.base import CountedScore
from score_diffusion.sde_lib import VESDE, VPSDE, GaussianMixture, SampleNoise
from tests.problems import (
    SDES,
    carry,
    exact_moments,
    gaussian,
    images,
    moments,
    ring,
    sampling_floor,
    sliced_wasserstein,
)

every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())


def one_step(predictor, sde, t, s):
    """The sampler that takes a predictor's step from t to s."""
    times = torch.tensor([t, s], dtype=torch.float64)
    return LinearSampler(sde, times, predictor.stages)


@pytest.mark.slow
@every_sde
@pytest.mark.parametrize(
    "predictor", [EulerMaruyama(), EulerMaruyama(0.0), ReverseDiffusion(), ReverseDiffusion(0.5), Ancestral()]
)
def test_predictors_converge_in_law(sde, predictor):
    """Mean and covariance of the samples of Gaussian data converge to the data's at weak order one or better:
    twice the steps, half the
    error. (Euler-Maruyama on VE with geometric levels loses its leading error term.)"""
    law = gaussian(2)
    target_mean, target_cov = moments(law.marginal(sde, 0.05))
    errors = []
    for steps in (200, 400):
        times = log_snr_grid(sde, steps, eps=0.05)
        mean, cov = exact_moments(LinearSampler(sde, times, predictor.stages), law)
        errors.append(((mean - target_mean).square().sum() + (cov - target_cov).square().sum()).sqrt().item())
    assert errors[1] < 0.05 and errors[0] / errors[1] > 1.85


def test_predictors_are_the_papers_on_the_discrete_chains():
    """On adjacent times of NCSN's chain the steps are the formulas of Song et al. (2021), Algorithms 2 and
    eq. 47.
    """
    sde = VESDE()
    sigma = sde.discrete_sigmas.double()
    k = 600
    x, z, g = (torch.randn(2, 3, dtype=torch.float64) for _ in range(3))
    difference = sigma[k] ** 2 - sigma[k - 1] ** 2
    reverse_diffusion = x + difference * g + difference.sqrt() * z
    ancestral = x + difference * g + (sigma[k - 1] ** 2 * difference / sigma[k] ** 2).sqrt() * z
    for predictor, expected in ((ReverseDiffusion(), reverse_diffusion), (Ancestral(), ancestral)):
        out = carry(one_step(predictor, sde, k / 999, (k - 1) / 999), lambda x, t: g, x, [z])[-1]
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_ancestral_step_is_ddpms_posterior():
    """Its mean and variance are Bayes' rule, p(x_s | x_t, x_0) ∝ p(x_t | x_s) p(x_s | x_0), at the estimated
    x_0.
    """
    sde, t, s = VPSDE(), torch.tensor([0.6]), torch.tensor([0.5])
    law = gaussian(1)
    x = torch.tensor([[0.7]], dtype=torch.float64)
    x_0 = law.denoiser(sde)(x, t)
    a_ts, v_ts = sde.transition(s, t)
    a_s, v_s = sde.alpha(s.double()), sde.sigma(s.double()) ** 2
    precision = a_ts**2 / v_ts + 1 / v_s
    mean = (a_ts * x / v_ts + a_s * x_0 / v_s) / precision
    for z in (0.0, 1.0):
        step = one_step(Ancestral(), sde, t.double().item(), s.double().item())
        out = carry(step, law.score(sde), x, [torch.full_like(x, z)])[-1]
        torch.testing.assert_close(out, mean + z / precision.sqrt(), rtol=1e-5, atol=1e-6)


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
@pytest.mark.parametrize("kind", ["pc", "ode", "ald"])
def test_mixtures_are_sampled_at_the_floor(sde, law, kind):
    """1,000 steps (PC), dopri5 (ODE), 200 levels of 5 steps (ALD): within twice the distance between true
    sample sets.
    """
    n = 400 if law.shape == (2,) else 100
    make = {
        "pc": lambda: PCSampler(sde, uniform_grid(sde, 1000)),
        "ode": lambda: ODESampler(sde),
        "ald": lambda: AnnealedLangevinSampler(sde),
    }
    sampler = make[kind]()
    samples = sampler(law.score(sde), (n, *law.shape), seed=1).samples
    assert sliced_wasserstein(samples, law.sample(n, seed=77)) < 2 * sampling_floor(law, n)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("midpoint", 2), ("heun2", 2), ("heun3", 3), ("rk4", 4)]
)
@every_sde
def test_ode_order(sde, method, order):
    """The error against the exact flow of a Gaussian falls at the method's order."""
    law, eps = gaussian(1), 0.1
    m, v = law._means.item(), law._variances.item()
    ends = torch.tensor([sde.T, eps], dtype=torch.float64)
    alpha, std = sde.alpha(ends), (sde.alpha(ends) ** 2 * v + sde.sigma(ends) ** 2).sqrt()
    x_T = sde.prior_std * torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    exact = alpha[1] * m + std[1] / std[0] * (x_T - alpha[0] * m)
    errors = []
    for steps in (64, 128):
        sampler = ODESampler(sde, uniform_grid(sde, steps, eps), method=method)
        errors.append((sampler(law.score(sde), x_T.shape, x_T=x_T).samples - exact).abs().max().item())
    assert torch.tensor(errors[0] / errors[1]).log2().item() == pytest.approx(order, abs=0.25)


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
