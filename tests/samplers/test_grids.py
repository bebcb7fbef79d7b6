"""Time grids: their ends and sizes on every SDE, and each against its closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from score_diffusion.samplers import (
    GRIDS,
    Grid,
    PCSampler,
    chain_grid,
    clock_grid,
    early_grid,
    karras_grid,
    log_snr_grid,
    make_sampler,
    quadratic_grid,
    spread_grid,
    uniform_grid,
)
from score_diffusion.samplers.grids import clock, clock_times
from score_diffusion.sde_lib import DDPM, EDMSDE, VESDE, VPSDE, InputError, linear_betas
from tests.problems import ALL_SDES, SDES


def test_grids():
    for name, grid in GRIDS.items():
        for sde in ALL_SDES.values():
            times = grid(sde, 10)
            assert len(times) == 11 and times.dtype == torch.float64 and (times.diff() < 0).all()
            assert times[0] == sde.T and times[-1] == (0 if name == "chain" else sde.sampling_eps)
    listed = torch.tensor([1.0, 0.4, 0.01])
    assert make_sampler("eabm", VPSDE(), grid=listed).times.tolist() == listed.double().tolist()


def test_uniform_and_geometric_grids():
    for sde in SDES.values():
        for grid in (uniform_grid, log_snr_grid):
            times = grid(sde, 10)
            assert (
                times[0] == sde.T
                and times[-1] == sde.sampling_eps
                and (times.diff() < 0).all()
                and len(times) == 11
            )
        steps = sde.log_snr(log_snr_grid(sde, 10)).diff()
        torch.testing.assert_close(steps, steps[:1].expand(10), rtol=1e-6, atol=0)
        torch.testing.assert_close(
            uniform_grid(sde, 4).diff(), torch.full((4,), -(1 - sde.sampling_eps) / 4).double()
        )


def test_chain_grid():
    """All steps, or evenly spaced ones from the last to the first (Nichol & Dhariwal, Section 4), then 0."""
    sde = DDPM(linear_betas(1000))
    assert chain_grid(sde).tolist() == [*(k / 1000 for k in range(1000, -1, -1))]
    assert (chain_grid(sde, 4) * 1000).round().tolist() == [1000, 667, 334, 1, 0]
    assert chain_grid(sde, 1).tolist() == [1.0, 0.0]
    for steps in (2, 17, 250, 999):
        grid = chain_grid(sde, steps)
        assert len(grid) == steps + 1 and (grid.diff() < 0).all() and grid.dtype == torch.float64
        assert set(grid.tolist()) <= set(chain_grid(sde).tolist())
    assert chain_grid(VESDE(N=5)).tolist() == [1, 0.75, 0.5, 0.25, 0]
    for steps in (0, 1001, 2.0):
        with pytest.raises(
            ValueError, match=r"steps must be an integer from 1 to 1000, the steps of the chain"
        ):
            chain_grid(sde, steps)


def test_karras_grid_is_equation_5():
    """On EDM's own path, where the time is σ."""
    sde, steps, rho = EDMSDE(), 17, 7
    first, last = sde.T ** (1 / rho), sde.sampling_eps ** (1 / rho)
    expected = (first + np.arange(steps + 1) / steps * (last - first)) ** rho
    np.testing.assert_allclose(karras_grid(sde, steps), expected, rtol=1e-9)


def test_quadratic_grid_has_uniform_square_roots():
    roots = quadratic_grid(VPSDE(), 12, eps=0.04).sqrt()
    torch.testing.assert_close(roots, torch.linspace(1, 0.2, 13, dtype=torch.float64))


def test_the_clock_is_the_time_of_vp_and_its_grid_the_quadratic_one():
    """With β_0 = 0 τ = t √(β_1/2) exactly; on another SDE the grid has the same noise levels."""
    sde, t = VPSDE(beta_min=0.0, beta_max=18.0), torch.linspace(0.1, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(clock(sde.log_noise_level(t)), 3 * t, rtol=1e-9, atol=0)
    torch.testing.assert_close(clock_times(sde, 3 * t), t, rtol=1e-7, atol=0)
    torch.testing.assert_close(clock_grid(sde, 9, 0.01), quadratic_grid(sde, 9, 0.01), rtol=1e-6, atol=0)
    first, last = sde.log_noise_level(torch.tensor([1.0, 0.01], dtype=torch.float64)).exp().tolist()
    edm = EDMSDE(sigma_min=last, sigma_max=first)
    torch.testing.assert_close(clock_grid(edm, 9).log(), sde.log_noise_level(clock_grid(sde, 9, 0.01)))


@pytest.mark.parametrize(
    ("steps", "scale", "power"),
    [
        (5, 1, 0.4),
        (8, 1, 0.4),
        (15, (15 / 8) ** 0.5, 0.4),
        (16, 2**0.5, 0.3),
        (18, 1.5, 0.3),
        (100, 1.5, 0.3),
    ],
)
def test_the_scale_of_the_spread_grid_grows_with_the_steps(steps, scale, power):
    """log(1 + (σ̃/scale)²)^(power/2) is uniform; with few steps it is the early grid."""
    for sde in ALL_SDES.values():
        levels = sde.log_noise_level(spread_grid(sde, steps)).exp()
        uniform = torch.log1p((levels / scale).square()).pow(power / 2).diff()
        torch.testing.assert_close(uniform, uniform[:1].expand(steps), rtol=1e-5, atol=0)
        if scale == 1:
            assert torch.equal(spread_grid(sde, steps), early_grid(sde, steps))


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_by_name(name):
    """For every SDE the function of that name; without a number of steps as many as the chain has."""
    for sde in ALL_SDES.values():
        assert torch.equal(Grid(name, 10).times(sde), GRIDS[name](sde, 10))
    sde = VPSDE(N=30)
    assert torch.equal(Grid(name).times(sde), GRIDS[name](sde, 29))
    assert torch.equal(PCSampler(sde, Grid(name, 5)).times, PCSampler(sde, GRIDS[name](sde, 5)).times)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: Grid("magic", 10),
            "grid must be one of 8 names, such as clock, early, spread, uniform, quadratic, got 'magic'",
        ),
        (lambda: uniform_grid(VPSDE(), 0), "steps must be a positive integer"),
        (lambda: uniform_grid(VPSDE(), 5, eps=1.0), r"eps must lie in \[0, T\) = \[0, 1.0\), got 1.0"),
        (lambda: log_snr_grid(VPSDE(), 5, eps=0), "must be finite at both ends"),
    ],
)
def test_mistakes_are_explained(act, message):
    with pytest.raises(InputError, match=message):
        act()
