"""Exponential multistep methods: exact where their polynomial is, and the papers' formulas by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from score_diffusion.samplers import (
    Grid,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
    eab_sde,
    eabm,
    unipc,
)
from score_diffusion.samplers.adams_table import VARIABLES, _gauss_legendre
from score_diffusion.sde_lib import VPSDE, Gaussian, InputError
from tests.problems import ALL_SDES, carry, exact_moments, line, moments

POINT = torch.tensor([0.7, -1.0], dtype=torch.float64)
every_sde = pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
ODE = {
    "eabm": partial(eabm, data_std=0.0, prototypes=False),
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unipc bh1": partial(unipc, variant="bh1"),
    "unipc bh2": unipc,
}
SDE = {"dpmpp_sde": dpmpp_sde, "dpmpp_2m_sde": dpmpp_2m_sde, "dpmpp_3m_sde": dpmpp_3m_sde}


@every_sde
@pytest.mark.parametrize("name", ODE)
def test_a_constant_denoiser_is_solved_exactly(name, sde):
    """For data at one point, at every time: x_s - α_s x_0 = σ_s/σ_t (x_t - α_t x_0)."""
    sampler = ODE[name](sde, Grid("log_snr", 6))
    score = Gaussian(POINT, torch.zeros(())).score(sde)
    x = sde.prior_std * torch.tensor([[1.0, 2.0], [-0.5, 0.3]], dtype=torch.float64)
    alpha, sigma = (v[:, None, None] for v in (sde.alpha(sampler.times), sde.sigma(sampler.times)))
    exact = alpha * POINT + sigma / sigma[0] * (x - alpha[0] * POINT)
    torch.testing.assert_close(torch.stack(carry(sampler, score, x)), exact, rtol=1e-8, atol=1e-8)


@every_sde
@pytest.mark.parametrize("name", SDE)
def test_the_sde_of_a_point_keeps_its_law_exactly(name, sde):
    """For data at one point the law at each time is N(α x_0, σ²), whatever the steps."""
    law = Gaussian(POINT, torch.zeros(2, 2))
    for stochasticity in (0.0, 0.5, 1.0):
        sampler = SDE[name](sde, Grid("log_snr", 5), stochasticity=stochasticity)
        mean, cov = exact_moments(sampler, law)
        expected = moments(law.marginal(sde, sampler.times[-1].item()))
        torch.testing.assert_close((mean, cov), expected, rtol=1e-7, atol=1e-9)


@every_sde
@pytest.mark.parametrize(("s", "data_std"), [(0.0, 0.0), (0.45, 0.45), (3.0, 3.0)])
def test_eab_sde_keeps_the_law_of_gaussian_data_of_its_deviation_exactly(s, data_std, sde):
    """With s that of the data nothing is left to interpolate, at any stochasticity and in few steps."""
    law = Gaussian(torch.zeros(2, dtype=torch.float64), s**2 * torch.eye(2, dtype=torch.float64))
    for stochasticity in (0.0, 0.5, 1.0, lambda t: t):
        sampler = eab_sde(
            sde, Grid("clock", 5), data_std=data_std, stochasticity=stochasticity, gaussians=False
        )
        expected = moments(law.marginal(sde, sampler.times[-1].item()))
        torch.testing.assert_close(exact_moments(sampler, law), expected, rtol=1e-6, atol=1e-9)


def test_eab_sde_of_infinite_width_is_eulers_method_for_the_noise_estimate():
    """One step: x̃_s = x̃_t + κ ε̂ (σ̃_s - σ̃_t) + η √(σ̃_t² - σ̃_s²) z, for a constant ε̂."""
    sde, eta, z = VPSDE(), 0.7, torch.tensor([[0.4]], dtype=torch.float64)
    sampler = eab_sde(sde, Grid("clock", 1), data_std=math.inf, stochasticity=eta, gaussians=False)
    x = torch.tensor([[0.3]], dtype=torch.float64)
    found = carry(sampler, lambda x, t: -1.3 / sde.sigma(t)[:, None] * torch.ones_like(x), x, [z])[-1]
    (a, b), level = sde.alpha(sampler.times).tolist(), sde.log_noise_level(sampler.times).exp()
    noise = eta * (level[0] ** 2 - level[1] ** 2).sqrt() * z
    exact = b * (x / a + (1 + eta**2) * 1.3 * (level[1] - level[0]) + noise)
    torch.testing.assert_close(found, exact)


@every_sde
@pytest.mark.parametrize("order", [1, 4])
def test_eabm_solves_gaussian_data_of_its_deviation_exactly(order, sde):
    """With s that of the data nothing is left to interpolate: x_s = x_t H_s α_s/(H_t α_t)."""
    s = 0.45
    sampler = eabm(sde, Grid("clock", 5), data_std=s, order=order, prototypes=False)
    score = Gaussian(torch.zeros(2), torch.tensor(s**2)).score(sde)
    x = sde.prior_std * torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    scale = (sde.alpha(sampler.times) ** 2 * s**2 + sde.sigma(sampler.times) ** 2).sqrt()[:, None, None]
    torch.testing.assert_close(
        torch.stack(carry(sampler, score, x)), x * scale / scale[0], rtol=1e-6, atol=1e-9
    )


def polynomial(variable, coefficients):
    """Denoised samples as a polynomial in a variable, as a function of λ, and the score that gives them."""
    sde = VPSDE()

    def denoised(lam):
        u = VARIABLES[variable](sde, torch.as_tensor(lam, dtype=torch.float64), 0.0)
        return sum(a * u**k for k, a in enumerate(coefficients))

    def score(x, t):
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return (alpha * denoised(sde.log_snr(t) / 2)[:, None] - x) / sigma**2

    return denoised, score


def exact_step(x, denoised, sde, t, s):
    """x_s = σ_s/σ_t x_t + α_s ∫ e^{λ - λ_s} x̂_0 dλ, the integral by SciPy."""
    lam_t, lam_s = (sde.log_snr(v).item() / 2 for v in (t, s))
    integral = quad(lambda lam: math.exp(lam - lam_s) * denoised(lam).item(), lam_t, lam_s)[0]
    return (sde.sigma(s) / sde.sigma(t)).item() * x + sde.alpha(s).item() * integral


@pytest.mark.parametrize("variable", VARIABLES)
def test_four_values_integrate_a_cubic_polynomial_exactly(variable):
    """Each step is exact once there are four values, and none before."""
    denoised, score = polynomial(variable, (1.0, 0.3, -0.2, 0.1))
    sampler = eabm(
        VPSDE(), Grid("clock", 7), data_std=0.0, variable=variable, corrector=False, prototypes=False
    )
    found = [x.item() for x in carry(sampler, score, torch.tensor([[0.3]], dtype=torch.float64))]
    for i, (t, s) in enumerate(zip(sampler.times[:-1], sampler.times[1:], strict=True)):
        error = abs(found[i + 1] - exact_step(found[i], denoised, VPSDE(), t, s))
        assert (error < 1e-9) == (i >= 3), (i, error)


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_corrector_makes_up_for_the_value_that_the_first_step_lacks(variable):
    """A linear polynomial is integrated exactly from the start; without the corrector it is not."""
    denoised, score = polynomial(variable, (1.0, 0.3))
    ends = {}
    for corrector in (True, False):
        sampler = eabm(
            VPSDE(),
            Grid("clock", 4),
            data_std=0.0,
            variable=variable,
            corrector=corrector,
            prototypes=False,
        )
        ends[corrector] = carry(sampler, score, torch.tensor([[0.3]], dtype=torch.float64))[-1].item()
    exact = exact_step(0.3, denoised, VPSDE(), *sampler.times[[0, -1]])
    assert abs(ends[True] - exact) < 1e-9 < 1e-4 < abs(ends[False] - exact)


def test_dpmpp_3m_integrates_a_parabola_in_lambda_exactly():
    """With its square term at full weight; 2M integrates it to second order only."""
    denoised, score = polynomial("log_snr", (1.0, 0.3, -0.02))
    for make, exact_from in ((dpmpp_3m, 2), (dpmpp_2m, 99)):
        sampler = make(VPSDE(), Grid("log_snr", 6))
        found = [x.item() for x in carry(sampler, score, torch.tensor([[0.3]], dtype=torch.float64))]
        for i, (t, s) in enumerate(zip(sampler.times[:-1], sampler.times[1:], strict=True)):
            error = abs(found[i + 1] - exact_step(found[i], denoised, VPSDE(), t, s))
            assert (error < 1e-9) == (i >= exact_from), (make, i, error)


def test_deis_integrates_a_cubic_noise_estimate_in_t_exactly():
    """ε̂ as a polynomial in t: x_s/α_s = x_t/α_t + ∫ ε̂ dσ̃, by SciPy."""
    sde = VPSDE()

    def epsilon(t):
        return 0.5 + t * (1.0 + t * (-2.0 + t))

    def score(x, t):
        return (-epsilon(t) / sde.sigma(t))[:, None].expand_as(x)

    sampler = deis(sde, Grid("quadratic", 7))
    found = [x.item() for x in carry(sampler, score, torch.tensor([[0.3]], dtype=torch.float64))]
    for i, (t, s) in enumerate(zip(sampler.times[:-1], sampler.times[1:], strict=True)):
        levels = [sde.log_noise_level(v).exp().item() for v in (t, s)]

        def of_level(level):
            return epsilon(sde.time_at_log_noise_level(torch.tensor(math.log(level)).double())).item()

        exact = sde.alpha(s).item() * (found[i] / sde.alpha(t).item() + quad(of_level, *levels)[0])
        assert (abs(found[i + 1] - exact) < 1e-8) == (i >= 3), i


def test_dpmpp_2m_is_algorithm_2():
    """Lu et al. (2022, DPM-Solver++): D = (1 + 1/2r) x̂_0(t) - 1/2r x̂_0(r), r = h_before/h."""
    sde, sampler = VPSDE(), dpmpp_2m(VPSDE(), Grid("quadratic", 6))
    denoiser, x = line().denoiser(sde), torch.tensor([[0.3], [-1.0]], dtype=torch.float64)
    ours, t = carry(sampler, line().score(sde), x), sampler.times
    lam, before = sde.log_snr(t) / 2, None
    for i in range(6):
        h, now = lam[i + 1] - lam[i], denoiser(x, t[i].expand(2))
        r = (lam[i] - lam[i - 1]) / h
        D = now if i == 0 else (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
        x = sde.sigma(t[i + 1]) / sde.sigma(t[i]) * x - sde.alpha(t[i + 1]) * torch.expm1(-h) * D
        torch.testing.assert_close(ours[i + 1], x, rtol=1e-7, atol=1e-7)
        before = now


def test_gauss_legendre_is_numpys():
    x, w = np.polynomial.legendre.leggauss(32)
    for ours, theirs in zip(_gauss_legendre(32), ((x + 1) / 2, w / 2), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: eabm(VPSDE(), order=0), "needs order >= 1, got 0"),
        (lambda: eabm(VPSDE(), data_std=-1.0), "needs data_std >= 0, got -1.0"),
        (lambda: eabm(VPSDE(), variable="x"), "variable must be one of clock, log_snr, t, got 'x'"),
        (lambda: deis(VPSDE(), order=0), "needs order >= 1"),
        (lambda: unipc(VPSDE(), order=0), "the order of UniPC must be at least 1, got 0"),
        (lambda: unipc(VPSDE(), variant="bh3"), "variant must be one of bh1, bh2, got 'bh3'"),
        (lambda: dpmpp_sde(VPSDE(), stochasticity=-1.0), "stochasticity must be >= 0"),
        (lambda: eab_sde(VPSDE(), stochasticity=-1.0), "stochasticity must be >= 0"),
        (lambda: dpmpp_2m(VPSDE(), Grid("chain", 5)), r"log\(α/σ\) must be finite at all times of the grid"),
    ],
)
def test_mistakes_are_explained(act, message):
    with pytest.raises(InputError, match=message):
        act()
