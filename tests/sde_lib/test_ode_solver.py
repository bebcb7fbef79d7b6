"""The adaptive solver: its pairs are SciPy's, and it solves exactly known equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate

from score_diffusion.sde_lib import InputError
from score_diffusion.sde_lib.ode_solver import PAIRS, solve_each


@pytest.mark.parametrize(("name", "theirs"), [("dopri5", integrate.RK45), ("bosh3", integrate.RK23)])
def test_pairs_are_scipys(name, theirs):
    pair = PAIRS[name]
    np.testing.assert_allclose(pair.tableau.c, theirs.C, rtol=1e-15)
    np.testing.assert_allclose(pair.tableau.b, theirs.B, rtol=1e-15)
    for i, row in enumerate(pair.tableau.a, start=1):
        np.testing.assert_allclose(row, theirs.A[i, : len(row)], rtol=1e-15)
    error = np.array((*pair.tableau.b, 0.0)) - pair.companion
    np.testing.assert_allclose(np.abs(error), np.abs(theirs.E), rtol=1e-12, atol=1e-16)


@pytest.mark.slow
@pytest.mark.parametrize("method", PAIRS)
def test_a_linear_system_is_solved_at_every_time(method):
    """dx/dt = -a x with a rate of its own for each sample, forwards and backwards; at inner times too."""
    tolerance = 1e-5 if method == "adaptive_heun" else 1e-6
    rates, x = torch.tensor([0.1, 1.0, 3.0]).double(), torch.tensor([[1.0], [2.0], [-3.0]]).double()
    done = []
    for times in (torch.linspace(0, 1, 9), torch.linspace(1, 0, 9)):
        times = times.double()
        states = solve_each(
            lambda x, t, index: -rates[index, None] * x, x, times, method, tolerance, tolerance, done.append
        )
        exact = x * (-rates[None, :, None] * (times - times[0])[:, None, None]).exp()
        # between steps the cubic interpolant is less accurate than a method of order 5
        torch.testing.assert_close(states, exact, rtol=1e-3 if method == "dopri5" else 1e-4, atol=1e-4)
        torch.testing.assert_close(states[-1], exact[-1], rtol=1e-4, atol=1e-4)
        assert done == sorted(done) and done.pop() == 1
        done.clear()


def test_no_evaluation_beyond_the_last_time():
    seen = []

    def dynamics(x: torch.Tensor, t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        seen.extend(t.tolist())
        return x

    solve_each(dynamics, torch.ones(1, 1).double(), torch.tensor([0.0, 0.7]).double(), "dopri5", 1e-4, 1e-4)
    assert 0 <= min(seen) and max(seen) <= 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("rk4", 1e-3, 1e-3), "method must be one of adaptive_heun, bosh3, dopri5"),
        (("dopri5", 0.0, 1e-3), "rtol and atol must be above 0"),
        (("dopri5", 1e-5, 1e-5), "found no step that meets rtol=1e-05"),
    ],
)
def test_errors(options, message):
    times = torch.tensor([0.0, 1.0]).double()
    with pytest.raises(InputError, match=message):
        solve_each(lambda x, t, i: x / (0.5 - t[:, None]) ** 3, torch.ones(1, 1).double(), times, *options)
