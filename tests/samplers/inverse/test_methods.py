"""Samplers with a step of their own, and all methods by name: seeds, costs, bits, refusals."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import ancestral, clock_grid
from score_diffusion.samplers.inverse import (
    METHODS,
    DDRMSampler,
    Downsample,
    InverseProblem,
    Mask,
    MatrixOperator,
    PhaseRetrieval,
    RandomProjection,
    RePaintSampler,
    diffpir_steps,
    noised_guide,
    restorer,
    times_from,
)
from score_diffusion.sde_lib import VESDE, VPSDE, Gaussian, tweedie
from tests.problems import SDES, carry, exact_moments, gaussian, images, moments, sliced_wasserstein

DOUBLE = {"dtype": torch.float64}
every_method = pytest.mark.parametrize("name", METHODS)
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())


def elementwise_score(sde, std=0.7):
    """The score of N(0, std² I), in which no sum mixes elements: bits depend on the sample only."""

    def score(x, t):
        variance = (sde.alpha(t) * std).square() + sde.sigma(t).square()
        return -x / variance.to(x).reshape(-1, *(1,) * (x.ndim - 1))

    return score


def problem(sde, sigma_y=0.1):
    operator = Mask(torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5)
    y = operator.measure(torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(2)), sigma_y)[0]
    return InverseProblem(sde, operator, y, sigma_y, data_std=0.7)


@every_method
@every_sde
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_sample_k_depends_on_seed_and_k_only(name, sde, sigma_y):
    """Two calls for a part of the samples each draw the same bits as one for all."""
    options = {"particles": 6, "draws": 3} if name == "twisted" else {}
    method, score = restorer(name, problem(sde, sigma_y), 21, options), elementwise_score(sde)
    whole = method(score, (7, 1, 4, 4), seed=3).samples
    assert torch.equal(whole[:2], method(score, (2, 1, 4, 4), seed=3).samples)
    assert torch.equal(whole[2:], method(score, (5, 1, 4, 4), seed=3, first=2).samples)
    assert not torch.equal(whole, method(score, (7, 1, 4, 4), seed=4).samples)


@every_method
def test_cost_is_what_the_meter_counts(name):
    """At most the evaluations asked for, and as many as the prior's score sees."""
    rows = 0

    def counted(x, t):
        nonlocal rows
        rows += len(x)
        return elementwise_score(VPSDE())(x, t)

    options = {"particles": 4, "draws": 2} if name == "twisted" else {}
    p = problem(VPSDE(), 0.0 if name == "repaint" else 0.1)  # with noise it goes back less often
    result = restorer(name, p, 31, options)(counted, (4, 1, 4, 4), seed=0)
    assert rows == 4 * result.nfe and result.nfe_each.tolist() == [result.nfe] * 4
    assert result.nfe == (62 if name == "twisted" else 31)


@every_method
def test_noiseless_measurements_are_met(name):
    """Without noise A x = y: to rounding where the method replaces or projects, else to the noise of eps."""
    exact = {"replacement", "repaint", "diffpir", "ddrm"}
    p = problem(VPSDE(), 0.0)
    samples = restorer(name, p, 101)(elementwise_score(VPSDE()), (4, 1, 4, 4), seed=0).samples
    error = (p.operator(samples) - p.y).abs().max().item()
    assert error < (3e-6 if name in exact else 0.02)


@every_sde
@pytest.mark.parametrize("sigma_y", [0.0, 0.05, 0.4])
def test_ddrm_has_the_marginals_of_the_diffusion(sde, sigma_y):
    """Proposition 3.1: if x̂_0 is x_0, then x_s ~ N(α_s x_0, σ_s² I) over the measurement's noise."""
    operator = MatrixOperator(torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, -0.2]]))
    x_0 = torch.tensor([0.5, -1.0, 2.0], **DOUBLE)
    times, n = clock_grid(sde, 8), 4_000
    y = operator.measure(x_0.expand(n, 3), sigma_y, seed=1)

    def score(x, t):
        return (sde.alpha(t)[:, None] * x_0 - x) / sde.sigma(t).square()[:, None]

    sampler = DDRMSampler(sde, times, operator=operator, y=y, sigma_y=sigma_y, denoise=False)
    path = sampler(score, (n, 3), seed=2, trajectory=True, **DOUBLE).trajectory[1:]
    for t, x in zip(times[1:], path, strict=True):
        z = (x - sde.alpha(t) * x_0) / sde.sigma(t)
        assert z.mean(0).abs().max() < 5 / n**0.5
        assert (z.T @ z / n - torch.eye(3)).abs().max() < 7 / n**0.5


def test_ddrm_is_its_equations_coordinate_by_coordinate():
    """Eqs. 7-8 with a loop over singular values, noisy, clean and missing ones."""
    sde, law = VPSDE(), gaussian(4)
    s = torch.tensor([2.0, 0.5, 0.02])
    operator = MatrixOperator(torch.cat([s.diag(), torch.zeros(3, 1)], 1))  # V is the identity
    sigma_y, eta, eta_b = 0.1, 0.6, 0.7
    y = torch.tensor([1.0, -0.4, 0.05], **DOUBLE)
    times = clock_grid(sde, 5)
    z = [torch.randn(2, 4, generator=torch.Generator().manual_seed(k), **DOUBLE) for k in range(6)]
    sampler = DDRMSampler(
        sde, times, operator=operator, y=y, sigma_y=sigma_y, eta=eta, eta_b=eta_b, denoise=False
    )
    path = carry(sampler, law.score(sde), z[0] * sde.prior_std, z[1:])
    level = (sde.sigma(times) / sde.alpha(times)).tolist()
    x = torch.empty(2, 4, **DOUBLE)
    for i in range(4):
        noise = sigma_y / s[i].item() if i < 3 else float("inf")
        known = y[i] / s[i] if i < 3 else 0.0
        variance = level[0] ** 2 - noise**2
        x[:, i] = known + variance**0.5 * z[0][:, i] if variance > 0 else level[0] * z[0][:, i]
    for k in range(5):
        t, alpha = times[k], sde.alpha(times[k])
        x_0 = tweedie(sde, law.score(sde), alpha * x, t.expand(2))
        following = torch.empty_like(x)
        for i in range(4):
            noise = sigma_y / s[i].item() if i < 3 else float("inf")
            c, n = x_0[:, i], z[k + 1][:, i]
            if i == 3:
                mean = c + (1 - eta**2) ** 0.5 * level[k + 1] * (x[:, i] - c) / level[k]
                following[:, i] = mean + eta * level[k + 1] * n
            elif level[k + 1] < noise:
                mean = c + (1 - eta**2) ** 0.5 * level[k + 1] * (y[i] / s[i] - c) / noise
                following[:, i] = mean + eta * level[k + 1] * n
            else:
                mean = (1 - eta_b) * c + eta_b * y[i] / s[i]
                following[:, i] = mean + (level[k + 1] ** 2 - (eta_b * noise) ** 2) ** 0.5 * n
        x = following
        torch.testing.assert_close(path[k + 1], sde.alpha(times[k + 1]) * x, rtol=1e-6, atol=1e-7)


def test_diffpir_steps_are_algorithm_1():
    """x_s = α_s x̂_0 + σ_s (√(1 - ζ) ε̂ + √ζ z); for ζ = 0 that is DDIM."""
    sde, law, zeta = VESDE(), gaussian(3), 0.3
    times = clock_grid(sde, 4)
    z = [torch.randn(2, 3, generator=torch.Generator().manual_seed(k), **DOUBLE) for k in range(5)]
    x = z[0] * sde.prior_std
    path = carry(diffpir_steps(sde, times, zeta=zeta), law.score(sde), x, z[1:])
    for k in range(4):
        t, s = times[k], times[k + 1]
        x_0 = law.denoiser(sde)(x, t.expand(2))
        noise = (x - sde.alpha(t) * x_0) / sde.sigma(t)
        x = sde.alpha(s) * x_0 + sde.sigma(s) * ((1 - zeta) ** 0.5 * noise + zeta**0.5 * z[k + 1])
        torch.testing.assert_close(path[k + 1], x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("resamplings", "jump"), [(1, 1), (3, 1), (2, 4)])
def test_repaint_goes_over_each_block_again(resamplings, jump):
    """Where what is measured says nothing of the rest, the rest keeps the prior's law, and costs count."""
    sde = VPSDE()
    law = Gaussian(torch.linspace(-1, 1, 3), torch.diag(torch.tensor([0.5, 1.0, 0.2])))
    operator, y = Mask(torch.tensor([True, False, False])), torch.tensor([0.3])
    sampler = RePaintSampler(
        sde, clock_grid(sde, 150), operator=operator, y=y, resamplings=resamplings, jump_length=jump
    )
    mean, covariance = exact_moments(sampler, law)
    torch.testing.assert_close(mean, torch.tensor([0.3, 0.0, 1.0], **DOUBLE), rtol=0, atol=0.03)
    torch.testing.assert_close(
        covariance, torch.diag(torch.tensor([0.0, 1.0, 0.2], **DOUBLE)), rtol=0.1, atol=1e-3
    )
    assert sampler(law.score(sde), (1, 3)).nfe == 150 * resamplings + 1


@pytest.mark.parametrize("sigma_y", [0.1, 0.5])
@pytest.mark.parametrize("resamplings", [1, 3, 10])
def test_repaint_keeps_a_noisy_measurement(resamplings, sigma_y):
    """Going back below the noise of the measurement would forget it, and end in the prior's law."""
    sde, v = VPSDE(), 0.5
    law, y = Gaussian(torch.zeros(1), torch.tensor([[v]])), torch.tensor([1.5])
    operator, options = Mask(torch.tensor([True])), {"sigma_y": sigma_y, "resamplings": resamplings}
    sampler = RePaintSampler(sde, clock_grid(sde, 240), operator=operator, y=y, **options)
    mean, covariance = exact_moments(sampler, law)
    shrink = v / (v + sigma_y**2)
    assert mean.item() == pytest.approx(1.5 * shrink, rel=0.03)
    assert covariance.item() == pytest.approx(shrink * sigma_y**2, rel=0.15)


def test_repaint_brings_unknown_and_known_parts_together():
    """The conditional mean of an element with correlation 0.9: two thirds of it without resampling, nearly
    all with ten.
    """
    sde, law = VPSDE(), Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    operator, means = Mask(torch.tensor([True, False])), []
    for resamplings in (1, 3, 10):
        sampler = RePaintSampler(
            sde, clock_grid(sde, 40), operator=operator, y=torch.ones(1), resamplings=resamplings
        )
        means.append(exact_moments(sampler, law)[0][1].item())
    assert means[0] < means[1] < means[2] and 0.5 < means[0] < 0.7 and 0.86 < means[2] < 0.9


@every_sde
def test_sdedit_of_data_is_a_sampler_of_the_data(sde):
    """Guides from the data's own law are noised and denoised to the same law; little noise changes little."""
    law = gaussian(2)
    guide = law.sample(4000, 1)
    start = 0.5 * sde.T
    times = times_from(sde, clock_grid(sde, 100), start)
    assert times[0] == start and (times.diff() < 0).all()
    x_T = noised_guide(sde, guide, start, seed=2)
    samples = ancestral(sde, times, denoise=True)(law.score(sde), (4000, 2), seed=3, x_T=x_T).samples
    mean, covariance = moments(law)
    assert (samples.mean(0) - mean).norm() < 0.07
    assert (samples.T.cov() - covariance).norm() < 0.12 * covariance.norm()
    near = noised_guide(sde, guide, 1e-6, seed=2)
    assert (near - guide).abs().max() < 0.1
    assert torch.equal(noised_guide(sde, guide[5:9], start, seed=2, first=5), x_T[5:9])


def test_sdedit_refuses_bad_times():
    sde = VPSDE()
    with pytest.raises(ValueError, match=r"start must lie in \(0\.001, 1\.0\]"):
        times_from(sde, clock_grid(sde, 5), 0.0)
    with pytest.raises(ValueError, match=r"start must lie in \(0, 1\.0\]"):
        noised_guide(sde, torch.zeros(1, 2), 1.5)


MASK = Mask(torch.tensor([True, False]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: restorer("map", p, 50), "method must be one of .*dps, pigdm"),
        (lambda p: restorer("dps", p, 1), "nfe must be at least 2"),
        (lambda p: restorer("repaint", p, 3), "nfe must be at least 4"),
        (lambda p: DDRMSampler(p.sde, operator=MASK, y=torch.zeros(1), eta=2.0), r"must lie in \[0, 1\]"),
        (lambda p: DDRMSampler(p.sde, operator=MASK, y=torch.zeros(3)), "y must have the shape"),
        (
            lambda p: DDRMSampler(p.sde, operator=PhaseRetrieval((1, 2)), y=torch.zeros(1, 4)),
            "DDRMSampler needs a linear operator",
        ),
        (lambda p: diffpir_steps(p.sde, zeta=1.5), r"zeta must lie in \[0, 1\]"),
        (lambda p: RePaintSampler(p.sde, operator=MASK, y=torch.zeros(1), resamplings=0), "must be positive"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(InverseProblem(VPSDE(), MASK, torch.zeros(1)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "twisted"])
@pytest.mark.parametrize(
    ("law", "operator"),
    [
        (gaussian(2), MatrixOperator(torch.tensor([[1.0, 0.5]]))),
        (gaussian(64), RandomProjection((64,), 16)),
        (images(), Downsample((1, 8, 8), 2)),
    ],
    ids=["2-D", "64-D", "1x8x8"],
)
def test_samples_are_nearer_to_the_posterior_than_the_prior(name, law, operator):
    """Sliced W2 to the exact posterior, against that of the prior."""
    sde, sigma_y = VPSDE(), 0.3
    y = operator.measure(law.sample(1, 11), sigma_y, seed=3)[0]
    posterior = law.posterior(operator.matrix(), y, sigma_y)
    method = restorer(name, InverseProblem(sde, operator, y, sigma_y, data_std=0.7), 51)
    samples = method(law.score(sde), (200, *law.shape), seed=0, **DOUBLE).samples
    truth = posterior.sample(200, 1)
    distances = [sliced_wasserstein(x, truth) for x in (samples, law.sample(200, 5))]
    assert distances[0] < 0.8 * distances[1]
