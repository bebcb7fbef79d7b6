"""Importance-weighted bounds, and the order of bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from score_diffusion.run.inference.reverse_bounds import importance_weighted, orders_violated
from score_diffusion.run.inference.scoring import Scores


def test_importance_weighted_bounds_fall_to_the_exact_value():
    """Weights exp(s z - s²/2) have mean 1, so that the exact value is 0: each bound is above, and falls."""
    s, unit = 1.2, 3.0
    z = np.random.default_rng(0).standard_normal((2000, 64, 1))
    estimates = -(s * z - s**2 / 2) / unit
    scores = Scores(estimates.mean((1, 2)), 7, estimates=estimates)
    found = importance_weighted(scores, unit)
    assert list(found) == [2, 4, 8, 16, 32, 64]
    means = [scores.mean, *(bound.mean for bound in found.values())]
    assert all(a > b for a, b in zip(means[:-1], means[1:], strict=True))
    assert scores.mean * unit == pytest.approx(s**2 / 2, abs=0.01)
    assert 0 < means[-1] * unit < 0.05
    weights = np.exp(s * z[:, :2, 0] - s**2 / 2)  # K = 2, written out, of the first of its groups
    one = importance_weighted(Scores(estimates[:, :2].mean((1, 2)), 7, estimates=estimates[:, :2]), unit)[2]
    np.testing.assert_allclose(one.values * unit, -np.log(weights.mean(1)))


def test_only_bounds_below_beyond_the_errors_are_named():
    noise = np.random.default_rng(1).standard_normal(100)
    ode = Scores(2 + noise, 1, solver_error=0.01)
    below = Scores(1.9 + noise + 0.01 * np.sin(np.arange(100)), 1)
    above = Scores(2.1 + noise, 1)
    assert orders_violated({"ode": ode, "reverse_sde": above, "bound": above}, True) == []
    (sentence,) = orders_violated({"ode": ode, "reverse_sde": below}, False)
    assert "the reverse SDE's bound is 0.1000 ± " in sentence and "train longer" in sentence
    assert orders_violated({"ode": ode, "bound": below}, False) == []
    assert "the chain's variational bound" in orders_violated({"ode": ode, "bound": below}, True)[0]
    assert orders_violated({"reverse_sde": below}, True) == []
    noisy = Scores(1.9 + noise[::-1], 1)  # 0.1 below, with a standard error of about 0.14
    assert orders_violated({"ode": ode, "reverse_sde": noisy}, False) == []
    assert math.isclose(below.less(ode).mean, -0.1, abs_tol=1e-2)
