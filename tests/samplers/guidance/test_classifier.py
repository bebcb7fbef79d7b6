"""Classifier guidance by the exact p(y | x_t) samples the exact conditional; Dhariwal & Nichol's algorithms
are the score form in their limits.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from score_diffusion.samplers import DDIMSampler, FixedBatches, chain_grid, clock_grid, make_sampler
from score_diffusion.samplers.base import CountedScore
from score_diffusion.samplers.chain import AncestralSampler
from score_diffusion.samplers.guidance import (
    ClassifierGuidance,
    ClassLogProbability,
    MeanShiftSampler,
    WithoutCondition,
)
from score_diffusion.sde_lib import VPSDE, InputError, ScoreModel
from tests.problems import (
    ALL_SDES,
    GivenNoise,
    carry,
    distance_to_floor,
    exact_moments,
    gaussian,
    labelled_images,
    labelled_ring,
    labelled_vectors,
    moments,
    observed_orders,
)

every_sde = pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
DOUBLE = {"dtype": torch.float64}


def exactly_guided(problem, sde, scale=1.0):
    """The unconditional score guided by the exact p(y | x_t)."""
    classifier = ClassLogProbability(problem.logits(sde))
    return ClassifierGuidance(WithoutCondition(problem.score(sde)), classifier, scale=scale)


@every_sde
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_the_exact_classifier_gives_bayes_rule(sde, scale):
    """Equal to classifier-free guidance by exact scores at every scale."""
    problem = labelled_ring()
    t = torch.linspace(0.05, 0.95, 4, **DOUBLE) * sde.T
    x = sde.prior_std * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), **DOUBLE)
    label = torch.arange(4)
    plain, given = problem.score(sde)(x, t), problem.score(sde)(x, t, label)
    guided = exactly_guided(problem, sde, scale)(x, t, {"label": label})
    torch.testing.assert_close(guided, plain + scale * (given - plain), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "problem", [labelled_ring(), labelled_vectors(), labelled_images()], ids=["2-D", "64-D", "1x8x8"]
)
def test_the_samples_are_those_of_the_exact_conditional(problem):
    sde, law = VPSDE(), problem.of_class[1]
    sampler = make_sampler("eabm", sde, 30, denoise=True)
    samples = sampler(exactly_guided(problem, sde), (900, *law.shape), cond=torch.tensor([1])).samples
    assert distance_to_floor(samples, law) < 1.3


def test_a_measurement_is_a_condition_too():
    """log p(y | x_t) of a linear measurement of Gaussian data, any function of x and t: the posterior."""
    sde, law, y, noise = VPSDE(), gaussian(3), torch.tensor([0.4], **DOUBLE), 0.3
    A = torch.tensor([[1.0, -0.5, 2.0]], **DOUBLE)
    mean, covariance = moments(law)
    denoiser = law.denoiser(sde)

    def log_prob(x, t):
        """N(y; A E[x_0 | x_t], A V[x_0 | x_t] Aᵀ + noise²) up to a constant, exact for Gaussians."""
        alpha, sigma = sde.alpha(t)[0], sde.sigma(t)[0]
        gain = alpha * covariance @ (alpha**2 * covariance + sigma**2 * torch.eye(3)).inverse()
        variance = (A @ (covariance - alpha * gain @ covariance) @ A.T).item() + noise**2
        return -((y - denoiser(x, t) @ A.T) ** 2)[:, 0] / (2 * variance)

    guided = ClassifierGuidance(law.score(sde), log_prob)
    sampler = make_sampler("eabm", sde, grid=clock_grid(sde, 60, eps=1e-3))
    found = exact_moments(sampler, law, guided)
    truth = moments(law.posterior(A, y, noise).marginal(sde, sampler.times[-1].item()))
    assert (found[0] - truth[0]).norm() < 0.02 and (found[1] - truth[1]).norm() < 0.02


def states(sde, n=3, seed=1):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), **DOUBLE)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_algorithm_2_is_ddim_with_the_guided_score(eta):
    """ε̂ - √(1 - ᾱ) w ∇ log p(y | x_t) in place of ε̂ (Dhariwal & Nichol, 2021, Algorithm 2), exactly."""
    problem, sde, w = labelled_ring(), VPSDE(N=20), 1.5
    label, log_prob = torch.tensor([0, 1, 2]), ClassLogProbability(problem.logits(sde))
    times, x = chain_grid(sde), states(sde)
    noise = [states(sde, seed=k) for k in range(len(times))]
    sampler = DDIMSampler(sde, times, eta=eta)
    guided = exactly_guided(problem, sde, w)
    counted = CountedScore(guided, 3, label)
    found = sampler.integrate(counted, x, GivenNoise(noise), None, lambda i, n: None)
    alpha_bar, draws = sde.alpha(times).square(), iter(noise)
    for k in range(len(times) - 1):
        t, (a, b) = times[k].expand(3), alpha_bar[k : k + 2]
        z = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(log_prob(z, t, label).sum(), z)
        epsilon = -(1 - a).sqrt() * problem.law.score(sde)(x, t) - (1 - a).sqrt() * w * gradient
        x_0 = (x - (1 - a).sqrt() * epsilon) / a.sqrt()
        std = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
        x = b.sqrt() * x_0 + (1 - b - std**2).clamp_min(0).sqrt() * epsilon
        x = x + std * next(draws) if std > 0 else x
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_algorithm_1_approaches_ancestral_sampling_with_the_guided_score(variance):
    """The mean shift w Σ ∇ log p(y | x_t): both laws differ by an error of first order in the step."""
    law, w = gaussian(2), 1.5

    def log_prob(x, t):
        return -(x - 1.0).square().sum(1) * (0.3 + t)

    errors = []
    for steps in (50, 100, 200):
        sde = VPSDE()
        grid = clock_grid(sde, steps, eps=1e-2)
        shifted = MeanShiftSampler(sde, grid, log_prob, scale=w, variance=variance)
        ancestral = AncestralSampler(sde, grid, variance=variance)
        score = law.score(sde)
        a = exact_moments(shifted, law, score)
        b = exact_moments(ancestral, law, ClassifierGuidance(score, log_prob, scale=w))
        errors.append(sum((p - q).norm().item() for p, q in zip(a, b, strict=True)))
    assert errors[-1] < 0.05 and all(0.8 < order < 1.3 for order in observed_orders(errors)), errors


def test_algorithm_1_is_its_formula():
    """One step, to the letter, with a class for each sample and a network without conditions."""
    problem, sde, label = labelled_ring(), VPSDE(N=10), torch.tensor([0, 1, 2])
    log_prob = ClassLogProbability(problem.logits(sde))
    times, x, z = chain_grid(sde)[2:4], states(sde), states(sde, seed=7)
    sampler = MeanShiftSampler(sde, times, log_prob, scale=2.0, variance="large")
    counted = CountedScore(WithoutCondition(problem.score(sde)), 3, label)
    found = sampler.step(counted, x, 0, GivenNoise([z]), None)[0]
    plain = AncestralSampler(sde, times, variance="large")
    before = carry(plain, problem.law.score(sde), x, [z])[1]
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_prob(y, times[:1].expand(3), label).sum(), y)
    beta = 1 - (sde.alpha(times[0]) / sde.alpha(times[1])) ** 2
    torch.testing.assert_close(found, before + 2 * beta * gradient)


@pytest.mark.parametrize("name", ["eabm", "pc", "ode"])
def test_a_sample_depends_on_its_seed_and_index_only(name):
    """In a batch of five and in a batch of two, with networks whose sums depend on the batch's size."""
    torch.manual_seed(0)
    sde = VPSDE()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.Tanh(), nn.Linear(300, 64))
    head = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.Tanh(), nn.Linear(300, 4))
    model = FixedBatches(ScoreModel(lambda x, noise: net(x).view_as(x), sde), 4)
    classifier = ClassLogProbability(FixedBatches(lambda x, t: head(x), 4))
    guided = ClassifierGuidance(WithoutCondition(model), classifier, scale=3.0)
    options = {"rtol": 1e-2, "atol": 1e-2} if name == "ode" else None
    sampler = make_sampler(name, sde, None if name == "ode" else 12, options=options)
    labels = torch.tensor([2, 0, 1, 3, 2])
    whole = sampler(guided, (5, 1, 8, 8), seed=1, cond={"label": labels})
    part = sampler(guided, (2, 1, 8, 8), seed=1, first=3, cond={"label": labels[3:]})
    assert torch.equal(whole.samples[3:], part.samples)


def test_the_meter_counts_the_score_and_scale_zero_asks_no_classifier():
    def refuse(x, t):
        raise AssertionError

    sde = VPSDE()
    score = gaussian(2).score(sde)
    unguided = make_sampler("eabm", sde, 10)(ClassifierGuidance(score, refuse, scale=0.0), (2, 2))
    torch.testing.assert_close(unguided.samples, make_sampler("eabm", sde, 10)(score, (2, 2)).samples)
    guided = ClassifierGuidance(score, lambda x, t: x.sum(1))
    assert make_sampler("eabm", sde, 10)(guided, (2, 2)).nfe == unguided.nfe == 10


def test_a_float32_classifier_guides_samplers_that_compute_in_float64():
    head, sde = nn.Linear(2, 3), VPSDE()
    classifier = ClassLogProbability(lambda x, t: head(x))
    guided = ClassifierGuidance(WithoutCondition(gaussian(2).score(sde)), classifier)
    result = make_sampler("ode", sde)(guided, (3, 2), cond=torch.tensor([1]))
    assert result.samples.dtype == torch.float32 and result.samples.isfinite().all()


def test_bad_input_is_refused():
    sde = VPSDE()
    score, x, t = gaussian(2).score(sde), torch.zeros(3, 2), torch.full((3,), 0.5)
    with pytest.raises(InputError, match="scale must be a number of at least 0 .* got -0.5"):
        ClassifierGuidance(score, lambda x, t: x.sum(1), scale=-0.5)
    with pytest.raises(
        InputError, match=r"a number for each of the 3 samples, shape \(3,\).*got shape \(3, 2\)"
    ):
        ClassifierGuidance(score, lambda x, t: x)(x, t)
    with pytest.raises(InputError, match="without a gradient"):
        ClassifierGuidance(score, lambda x, t: t)(x, t)
    with pytest.raises(InputError, match="classifier guidance needs a class"):
        ClassifierGuidance(score, ClassLogProbability(lambda x, t: x))(x, t)
