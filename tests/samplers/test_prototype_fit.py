"""Prototype laws are what they claim to be; coefficients fitted to them serve other laws too."""

from __future__ import annotations

import math

import pytest
import torch

from score_diffusion.samplers import Grid, ODESampler, eabm, early_grid
from score_diffusion.samplers.linear import GridCoefficients
from score_diffusion.samplers.prototype_fit import PrototypeFit
from score_diffusion.samplers.prototypes import Prototypes, prototypes
from score_diffusion.samplers.table_fit import Row, rows_of
from score_diffusion.sde_lib import EDMSDE, VPSDE, GaussianMixture
from tests.problems import ALL_SDES, carry, flow, images, line, ring

LEVELS = torch.tensor([20.0, 1.5, 0.1], dtype=torch.float64)
LINE = ([-2.0, 0.5, 1.5], [0.2**0.5, 0.05**0.5, 0.5**0.5], [0.2, 0.5, 0.3])  # `line()`


def test_paths_are_those_of_the_probability_flow():
    """For x̃ = x: EDM's α is 1."""
    laws = Prototypes([([0.0], [1.0], [1.0]), LINE], torch.linspace(-2, 2, 7))
    x = laws.flow(LEVELS)
    torch.testing.assert_close(
        x[:, :7], torch.linspace(-2, 2, 7).double() * (1 + LEVELS.square())[:, None].sqrt()
    )
    for k in (1, 2):
        expected = flow(EDMSDE(), line(), x[0, 7:, None], LEVELS[0].item(), LEVELS[k].item())
        torch.testing.assert_close(x[k, 7:, None], expected, rtol=1e-6, atol=1e-6)


def test_denoised_samples_are_the_exact_ones_with_their_derivative():
    laws = Prototypes([([0.0], [1.0], [1.0]), LINE], torch.linspace(-2, 2, 7))
    x = laws.flow(LEVELS)[1].requires_grad_()
    mean, slope = laws.denoised(x, LEVELS[1])
    exact = line().denoiser(EDMSDE())(x[7:, None], LEVELS[1].expand(7))
    torch.testing.assert_close(mean[7:, None], exact)
    torch.testing.assert_close(slope, torch.autograd.grad(mean.sum(), x)[0])


def test_derivative_of_the_errors():
    """By finite differences, in every coordinate."""
    rows = [Row((0.1 * i, 1.0), 0.4, (0.5, 0.2)[: min(i + 1, 2)]) for i in range(3)]
    fit = PrototypeFit(
        Prototypes([LINE], torch.linspace(-1, 1, 5)), torch.tensor([8.0, 2.0, 0.5, 0.1]).double(), rows
    )
    size, h = len(fit.coordinates.zero()), 1e-6
    z = 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(0)).double()
    J = fit.jacobian(z)
    for column, direction in enumerate(torch.eye(size, dtype=torch.float64)):
        difference = fit.errors(z + h * direction) - fit.errors(z - h * direction)
        torch.testing.assert_close(J[:, column], difference / (2 * h), rtol=1e-6, atol=1e-8)
    assert J.shape[1] == 1 + 2 + 2


@pytest.mark.parametrize("steps", [6, 20])
@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
def test_samples_move_with_the_data(sde, steps):
    """Data x_0 + c from x_T + α_T c give samples + α c at every time, whatever the number of steps."""
    sampler, shift = eabm(sde, Grid("early", steps)), torch.tensor([2.0, -1.0], dtype=torch.float64)
    law = ring()
    moved = GaussianMixture(law._means + shift, law._variances[:, 0])
    x = sde.prior_std * torch.tensor([[0.3, -1.2], [1.0, 0.1]], dtype=torch.float64)
    alpha = sde.alpha(sampler.times)[:, None, None]
    there = carry(sampler, moved.score(sde), x + alpha[0] * shift)
    torch.testing.assert_close(
        torch.stack(there), torch.stack(carry(sampler, law.score(sde), x)) + alpha * shift
    )


@pytest.mark.slow
@pytest.mark.parametrize("steps", [5, 8])
@pytest.mark.parametrize("make", [ring, images, line])
def test_fitting_lowers_the_error_on_other_laws(make, steps):
    """Against the same method without the fit, on the same grid, which has the corrector and its order."""
    law, sde = make(), VPSDE()
    score, times = law.score(sde), early_grid(sde, steps)
    x_T = torch.randn(32, *law.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    exact = ODESampler(sde, times[[0, -1]], rtol=1e-8, atol=1e-9)(score, x_T.shape, x_T=x_T).samples
    error = {}
    for fitted in (True, False):
        samples = eabm(sde, times, prototypes=fitted)(score, x_T.shape, x_T=x_T).samples
        error[fitted] = (samples - exact).flatten(1).norm(dim=1).median().item()
    assert error[True] < 0.8 * error[False], error


def test_an_anchor_holds_the_fit_to_the_coefficients_it_starts_from():
    """The more the stronger it is; without one the errors on the prototypes are smallest."""
    sde = VPSDE()
    plain = eabm(sde, Grid("spread", 20), prototypes=False)
    at = GridCoefficients(sde, plain.times)
    fit = PrototypeFit(prototypes(), at.noise_level, rows_of(at, plain.stages))
    moved, errors = [], []
    for anchor in (0.0, 1e-3, 1.0, 1e6):
        rows = fit.solve(anchor)
        moved.append(sum(math.dist(a.weights, b.weights) for a, b in zip(rows, fit.rows, strict=True)))
        held = PrototypeFit(prototypes(), at.noise_level, rows)
        errors.append(held.per_law(held.errors(held.coordinates.zero())).log().mean().item())
    assert moved == sorted(moved, reverse=True) and moved[3] < 0.01 * moved[1]
    assert errors == sorted(errors)


def test_many_steps_are_those_of_the_method_itself():
    assert (
        eabm(VPSDE(), Grid("early", 65)).stages == eabm(VPSDE(), Grid("early", 65), prototypes=False).stages
    )
    assert eabm(VPSDE(), Grid("early", 9)).stages != eabm(VPSDE(), Grid("early", 9), prototypes=False).stages


def test_there_are_prototypes_of_every_scale():
    laws = prototypes()
    widths = laws.flow(torch.tensor([1e-3], dtype=torch.float64))[0].reshape(laws.laws, -1).std(1)
    assert widths.min() < 0.02 and widths.max() > 3
    assert laws.flow(GridCoefficients(VPSDE(), [1.0]).noise_level).isfinite().all()
