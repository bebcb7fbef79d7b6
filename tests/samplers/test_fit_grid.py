"""A fitted grid has a smaller error than the grid that the search starts from."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import ODESampler, clock_grid, fit_grid, make_sampler
from score_diffusion.sde_lib import VPSDE
from tests.problems import ring


@pytest.mark.slow
@pytest.mark.parametrize("nfe", [8, 20])
def test_fitted_grid_halves_the_error(nfe):
    """On samples that it was not fitted on."""
    law, sde = ring(), VPSDE()
    score = law.score(sde)

    def make(times):
        return make_sampler("eabm", sde, grid=times)

    start = clock_grid(sde, nfe)
    fitted = fit_grid(make, score, sde, start, (2,), seed=0)
    assert len(fitted) == nfe + 1 and fitted[0] == sde.T and fitted[-1] == start[-1]
    x_T = torch.randn(100, 2, generator=torch.Generator().manual_seed(77), dtype=torch.float64)
    exact = ODESampler(sde, start[[0, -1]], rtol=1e-9, atol=1e-10)(score, (100, 2), x_T=x_T).samples
    error = {
        key: (make(times)(score, (100, 2), x_T=x_T).samples - exact).norm(dim=1).median().item()
        for key, times in (("start", start), ("fitted", fitted))
    }
    assert error["fitted"] < 0.5 * error["start"], error


def test_one_step_has_nothing_to_fit():
    sde = VPSDE()
    grid = clock_grid(sde, 1)
    fitted = fit_grid(
        lambda t: make_sampler("eabm", sde, grid=t), ring().score(sde), sde, grid, (2,), batch=4
    )
    assert torch.equal(fitted, grid)
