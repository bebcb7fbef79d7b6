"""The adaptive solver against exact solutions."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.sde_lib import InputError
from score_diffusion.sde_lib.ode_solver import ADAPTIVE_METHODS, solve_adaptively, worst_sample_norm


@pytest.mark.slow
@pytest.mark.parametrize("method", ADAPTIVE_METHODS)
def test_tolerances_are_met_by_every_sample(method):
    """dx/dt = -λ x for samples with different λ, in both directions of time, at all asked times."""
    rates, times = torch.tensor([[0.1], [1.0], [5.0]]).double(), torch.linspace(0, 1, 4).double()
    start = torch.ones(3, 1).double()
    for grid, y in ((times, start), (times.flip(0), (-rates).exp())):
        states = solve_adaptively(lambda t, x: -rates * x, y, grid, method, 1e-5, 1e-7)
        exact = (-rates * grid[:, None, None]).exp()  # (4, 3, 1)
        torch.testing.assert_close(states, exact, rtol=1e-2, atol=5e-4)


def test_no_evaluation_beyond_the_last_time():
    seen = []

    def dynamics(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        seen.append(t.item())
        return x

    solve_adaptively(
        dynamics, torch.ones(1, 1).double(), torch.tensor([0.0, 0.7]).double(), "dopri5", 1e-4, 1e-4
    )
    assert 0 <= min(seen) and max(seen) <= 0.7


def test_the_norm_is_that_of_the_worst_sample():
    y = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert worst_sample_norm(y).item() == pytest.approx((12.5) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("rk4", 1e-3, 1e-3), "method must be one of dopri5"),
        (("dopri5", 0.0, 1e-3), "rtol and atol must be above 0"),
        (("dopri5", 1e-5, 1e-5), "found no step that meets rtol=1e-05"),
    ],
)
def test_errors(options, message):
    with pytest.raises(InputError, match=message):
        times = torch.tensor([0.0, 1.0]).double()
        solve_adaptively(lambda t, x: x / (0.5 - t) ** 3, torch.ones(1, 1).double(), times, *options)
