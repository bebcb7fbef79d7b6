"""The probability-flow ODE: orders, tolerances, laws, and codes that decode to the data."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import (
    DDIMSampler,
    Grid,
    ODESampler,
    chain_grid,
    interpolate,
    make_sampler,
    reconstruction_error,
    uniform_grid,
)
from score_diffusion.sde_lib import DDPM, VPSDE, Gaussian, InputError, linear_betas
from tests.problems import SDES, gaussian, images, ring, sampling_floor, sliced_wasserstein

every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())


@pytest.mark.slow
@every_sde
@pytest.mark.parametrize("law", [ring(), images()], ids=["ring", "images"])
def test_mixtures_are_sampled_at_the_floor(sde, law):
    """Within twice the distance between two true sample sets."""
    n = 400 if law.shape == (2,) else 100
    samples = ODESampler(sde)(law.score(sde), (n, *law.shape), seed=1).samples
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


def test_trajectory_of_the_adaptive_ode():
    sde = SDES["vp"]
    result = ODESampler(sde, uniform_grid(sde, 8))(ring().score(sde), (3, 2), trajectory=True)
    assert result.trajectory.shape == (9, 3, 2)
    torch.testing.assert_close(result.trajectory[-1], result.samples)


def exact_code(sde, law, x, t):
    """x_T of states x at time t by the flow of a Gaussian, which scales the deviations along its axes."""
    mean, axes, values = law._means[0], law._bases[0], law._variances[0]
    ends = torch.tensor([t, sde.T], dtype=torch.float64)
    alpha = sde.alpha(ends)
    std = (alpha[:, None] ** 2 * values + sde.sigma(ends)[:, None] ** 2).sqrt()  # (2, D)
    return alpha[1] * mean + (x - alpha[0] * mean) @ axes * (std[1] / std[0]) @ axes.mT


@pytest.mark.slow
@every_sde
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_codes_are_those_of_the_exact_flow_and_decode_to_the_data(sde, method):
    law = gaussian(2)
    sampler = ODESampler(sde, Grid("clock", 200), method=method, rtol=1e-8, atol=1e-8)
    end = sampler.times[-1].item()
    x, score = law.marginal(sde, end).sample(20), law.score(sde)
    code = sampler.encode(score, x)
    torch.testing.assert_close(code, exact_code(sde, law, x, end), rtol=1e-4, atol=1e-4 * sde.prior_std)
    error = reconstruction_error(sampler, score, x)
    assert error.shape == (20,) and error.max() < 1e-4


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_encoding_says_how_far_it_is(method: str):
    sde, law, heard = VPSDE(), gaussian(), []
    sampler = ODESampler(sde, Grid("clock", 10), method=method)
    x = law.sample(3)
    codes = sampler.encode(law.score(sde), x, on_step=lambda i, n: heard.append((i, n)))
    assert torch.equal(codes, sampler.encode(law.score(sde), x))
    steps, (total,) = [i for i, _ in heard], {n for _, n in heard}
    assert steps == sorted(steps) and steps[-1] == total == (100 if method == "dopri5" else 10)


def test_reconstruction_error_is_that_of_each_sample():
    """The root-mean-square difference, sample by sample; DDIM's codes are off by its steps."""
    sde, law = DDPM(linear_betas(50)), gaussian(3)
    sampler, x = DDIMSampler(sde, chain_grid(sde)), law.sample(6)
    decoded = sampler(law.score(sde), (6, 3), x_T=sampler.encode(law.score(sde), x)).samples
    expected = ((decoded - x) ** 2).mean(1).sqrt()
    torch.testing.assert_close(reconstruction_error(sampler, law.score(sde), x), expected)
    assert (expected > 1e-4).all()


def test_interpolation_is_spherical():
    """Between codes of one norm it keeps the norm, at equal angles; between equal codes it is constant."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    a, b = (v / v.flatten(1).norm(dim=1)[:, None, None] for v in (a, b))
    w = torch.linspace(0, 1, 5)
    path = interpolate(a, b, w).flatten(2)  # (5, 4, 15)
    torch.testing.assert_close(path.norm(dim=2), torch.ones(5, 4).double())
    torch.testing.assert_close((path[0], path[-1]), (a.flatten(1), b.flatten(1)))
    angles = (path[1:] * path[:-1]).sum(2).arccos()
    torch.testing.assert_close(angles, (a * b).flatten(1).sum(1).arccos().expand(4, 4) / 4)
    torch.testing.assert_close(interpolate(a, a, w), a.expand(5, *a.shape))
    with pytest.raises(InputError, match=r"a and b must have the same shape, got \(4, 3, 5\)"):
        interpolate(a, b[:2], w)


def test_fixed_step_methods_take_a_number_of_evaluations():
    sde, law = VPSDE(), gaussian(2)
    sampler = make_sampler("ode", sde, 41, options={"method": "rk4"})
    assert len(sampler.times) == 11 and sampler(law.score(sde), (2, 2)).nfe == 40
    with pytest.raises(InputError, match="an adaptive method chooses its own steps"):
        make_sampler("ode", sde, 41)


def test_a_tight_tolerance_is_met_for_float32_samples():
    """The states are float64 while the solver works, and float32 when they come back."""
    sde, law = VPSDE(), Gaussian(torch.zeros(2), torch.eye(2))
    x_T = torch.linspace(-2, 2, 10)[:, None].expand(10, 2)  # N(0, I) stays as it is on VP, and so does x
    result = ODESampler(sde, rtol=1e-10, atol=1e-10)(law.score(sde), (10, 2), x_T=x_T)
    assert result.samples.dtype == torch.float32
    torch.testing.assert_close(result.samples, x_T, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rk45"}, "method must be one of 8 names, such as rk4, got"),
        ({"rtol": 0.0}, "rtol and atol must be above 0"),
    ],
)
def test_mistakes_are_explained(options, message):
    with pytest.raises(InputError, match=message):
        ODESampler(VPSDE(), **options)
