"""One-step methods: their formulas, their laws on Gaussian data, the discrete chains of the papers."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import (
    Ancestral,
    EulerMaruyama,
    LinearSampler,
    ReverseDiffusion,
    ancestral,
    euler_maruyama,
    log_snr_grid,
    reverse_diffusion,
    uniform_grid,
)
from score_diffusion.samplers.predictors import NoPredictor
from score_diffusion.sde_lib import VESDE, VPSDE, InputError
from tests.problems import SDES, carry, exact_moments, gaussian, moments, ring

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
    """On Gaussian data mean and covariance converge at weak order one or better: twice the steps, half the
    error. (Euler-Maruyama on VE with geometric levels loses its leading error term.)
    """
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


@every_sde
@pytest.mark.parametrize("name", ["euler_maruyama", "reverse_diffusion", "ancestral"])
def test_samplers_of_the_table_are_the_formulas(name, sde):
    """Over two steps with given noise, at η = 0.6 where there is one."""
    eta, score = 0.6, ring().score(sde)
    times = torch.tensor([0.8, 0.5, 0.4], dtype=torch.float64)
    make = {
        "euler_maruyama": lambda: euler_maruyama(sde, times, stochasticity=eta),
        "reverse_diffusion": lambda: reverse_diffusion(sde, times, stochasticity=eta),
        "ancestral": lambda: ancestral(sde, times),
    }[name]
    generator = torch.Generator().manual_seed(0)
    x, *noise = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    ours = carry(make(), score, x, noise)
    for i, z in enumerate(noise):
        t, s = times[i], times[i + 1]
        gradient, g2 = score(x, t.expand(4)), sde.g2(t)
        alpha_ts, var_ts = sde.transition(s, t)
        if name == "euler_maruyama":
            drift = sde.dlog_alpha(t) * x - (1 + eta**2) / 2 * g2 * gradient
            x = x - drift * (t - s) + eta * (g2 * (t - s)).sqrt() * z
        elif name == "reverse_diffusion":
            x = (2 - alpha_ts) * x + (1 + eta**2) / 2 * var_ts * gradient + eta * var_ts.sqrt() * z
        else:
            alpha_s, var_s, var_t = sde.alpha(s), sde.sigma(s) ** 2, sde.sigma(t) ** 2
            x_0 = (x + var_t * gradient) / sde.alpha(t)
            mean = alpha_ts * var_s / var_t * x + alpha_s * var_ts / var_t * x_0
            x = mean + (var_ts * var_s / var_t).sqrt() * z
        torch.testing.assert_close(ours[i + 1], x, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("predictor", [EulerMaruyama, ReverseDiffusion])
def test_stochasticity_may_be_a_function_of_time(predictor):
    """Each step has that of its start; none may be negative."""
    sde, times = VPSDE(), uniform_grid(VPSDE(), 4)
    varying = predictor(lambda t: t.square()).stages(sde, times)
    for i, t in enumerate(times[:-1].tolist()):
        assert varying[i] == predictor(t**2).stages(sde, times)[i]
    with pytest.raises(InputError, match="stochasticity must be >= 0 .*, got -1"):
        predictor(lambda t: -t).stages(sde, times)


def test_no_predictor_leaves_the_states():
    x = torch.randn(4, 2, dtype=torch.float64)
    times = uniform_grid(VPSDE(), 3)
    states = carry(LinearSampler(VPSDE(), times, NoPredictor().stages), lambda x, t: x, x)
    assert len(states) == 4 and all(torch.equal(state, x) for state in states)
