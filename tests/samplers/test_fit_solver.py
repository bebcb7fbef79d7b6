"""Fitted solvers beat the default on noise they were not fitted on, whatever the score is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from score_diffusion.samplers import GRIDS, ODESampler, eabm, fit_solver, spread_grid
from score_diffusion.samplers.fit_solver import _Memory, respaced
from score_diffusion.sde_lib import VESDE, VPSDE, InputError
from tests.problems import images, line, ring


def median_error(sampler, law, sde, start=77):
    generator = torch.Generator().manual_seed(start)
    x_T = sde.prior_std * torch.randn(64, *law.shape, generator=generator, dtype=torch.float64)
    exact = ODESampler(sde, sampler.times[[0, -1]], rtol=1e-9, atol=1e-10)(law.score(sde), x_T.shape, x_T=x_T)
    found = sampler(law.score(sde), x_T.shape, x_T=x_T).samples
    return (found - exact.samples).flatten(1).norm(dim=1).median().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "sde", "nfe"), [(ring, VPSDE(), 6), (ring, VESDE(), 12), (images, VPSDE(), 8)]
)
def test_fitting_halves_the_error(make, sde, nfe):
    law = make()
    fit = fit_solver(law.score(sde), sde, nfe, law.shape, evaluations=50_000)
    assert len(fit.sampler.stages) == nfe and not fit.is_default
    assert fit.sampler.times[0] == sde.T and fit.sampler.times[-1] == sde.sampling_eps
    error, default = (median_error(s, law, sde) for s in (fit.sampler, eabm(sde, spread_grid(sde, nfe))))
    assert error < 0.5 * default, (error, default)


@pytest.mark.slow
def test_each_sample_is_fitted_under_its_condition():
    """Data moved by another shift for each sample: one shift for all is that shift in every row."""
    law, sde = line(), VPSDE()
    shifts = torch.linspace(-1, 1, 24).double()[:, None]

    class Shifted:
        any_dtype = True

        def __call__(self, x, t, cond=None):
            return law.score(sde)(x - sde.alpha(t)[:, None] * cond, t)

    fits = [
        fit_solver(Shifted(), sde, 4, (1,), cond=cond, batch=24, evaluations=8_000)
        for cond in (shifts, shifts[:1], shifts[:1].expand(24, 1))
    ]
    assert fits[1].sampler.stages == fits[2].sampler.stages != fits[0].sampler.stages


def test_the_same_arguments_give_the_same_solver():
    law, sde = ring(), VPSDE()
    first, again = (fit_solver(law.score(sde), sde, 3, (2,), batch=12, evaluations=4_000) for _ in range(2))
    assert first.sampler.stages == again.sampler.stages and first.error == again.error <= first.default_error


def test_the_seed_is_any_integer():
    law, sde = ring(), VPSDE()
    large, small, array = (
        fit_solver(law.score(sde), sde, 3, (2,), seed=seed, batch=12, evaluations=4_000).default_error
        for seed in (2**64 + 5, 5, np.int64(5))
    )
    assert small == array != large


def test_without_evaluations_it_is_the_default():
    law, sde = ring(), VPSDE()
    fit = fit_solver(law.score(sde), sde, 3, (2,), batch=12, evaluations=0)
    assert fit.is_default and fit.sampler.stages == eabm(sde, spread_grid(sde, 3)).stages


def test_lbfgs_solves_a_quadratic_problem():
    """From a wrong first Hessian, with exact steps along its directions."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    H, x = A @ A.T + torch.eye(6), torch.ones(6, dtype=torch.float64)
    memory = _Memory(2 * torch.eye(6, dtype=torch.float64))
    for _ in range(6):
        direction = memory.direction(H @ x)
        step = -(direction @ H @ x) / (direction @ H @ direction) * direction
        memory.add(step, H @ step)
        x = x + step
    assert x.norm() < 1e-9


def test_a_grid_is_changed_between_its_ends():
    sde = VPSDE()
    times = GRIDS["spread"](sde, 9)
    torch.testing.assert_close(respaced(sde, times, torch.zeros(4).double()), times, rtol=1e-6, atol=1e-9)
    moved = respaced(sde, times, torch.tensor([1.0, 0, 0, 0]).double())
    assert moved[0] == times[0] and moved[-1] == times[-1] and (moved.diff() < 0).all()
    assert moved[0] - moved[1] > times[0] - times[1]


def test_mistakes_are_explained():
    for arguments in (dict(nfe=0), dict(nfe=5, batch=4)):
        with pytest.raises(InputError, match="nfe >= 1 and a batch of at least 8"):
            fit_solver(ring().score(VPSDE()), VPSDE(), shape=(2,), **arguments)
