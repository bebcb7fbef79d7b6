from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize

from score_diffusion.run.evaluation.wasserstein import exact_wasserstein, sliced_wasserstein
from tests.run.evaluation.gaussians import RNG


def test_sliced_wasserstein_of_a_shift_is_its_projection():
    x, shift = RNG.normal(size=(40, 3)), np.array([1.0, -2.0, 0.5])
    directions = np.random.default_rng(5).standard_normal((500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = np.sqrt(np.mean((directions @ shift) ** 2))
    assert sliced_wasserstein(x, x + shift, seed=5) == pytest.approx(expected, rel=1e-12)
    assert sliced_wasserstein(x, x[::-1]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 4), (1, 5), (7, 3)])
def test_sliced_wasserstein_in_one_dimension_is_optimal_transport(n: int, m: int):
    a, b = RNG.normal(size=(n, 1)), RNG.normal(size=(m, 1))
    repeated_a, repeated_b = (
        np.repeat(a, m, axis=0),
        np.repeat(b, n, axis=0),
    )  # equal weights: an assignment problem
    cost = (repeated_a - repeated_b.T) ** 2
    expected = np.sqrt(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
    assert sliced_wasserstein(a, b, n_directions=3) == pytest.approx(expected, rel=1e-12)


def test_exact_wasserstein_of_a_shift_and_a_scale():
    """Both are optimal maps, gradients of convex functions."""
    x = RNG.normal(size=(60, 3))
    assert exact_wasserstein(x + [3.0, 0, 4], x[::-1]) == pytest.approx(5, rel=1e-9)
    assert exact_wasserstein(3 * x, x) == pytest.approx(2 * np.sqrt((x**2).sum(1).mean()), rel=1e-9)
    assert exact_wasserstein(x, np.concatenate([x[::-1], x])[:100]) == pytest.approx(0, abs=1e-6)


def test_the_sliced_distance_in_one_dimension_is_the_exact_one():
    a, b = RNG.normal(size=(80, 1)), RNG.gumbel(size=(80, 1))
    assert sliced_wasserstein(a, b, 3) == pytest.approx(exact_wasserstein(a, b), rel=1e-9)
