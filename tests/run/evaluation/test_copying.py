from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from score_diffusion.run.evaluation.copying import (
    NearestNeighbours,
    nearest_neighbours,
    probability_of_being_nearer,
)
from tests.run.evaluation.gaussians import RNG


def test_nearest_neighbours_of_samples_that_come_in_chunks():
    queries, samples = RNG.normal(size=(600, 2, 3)), RNG.normal(size=(1300, 2, 3))
    apart = np.sqrt(((queries[:, None] - samples) ** 2).sum((2, 3)))
    nearest = NearestNeighbours(queries)
    for chunk in np.split(samples, [1, 700]):
        nearest.add(chunk)
    np.testing.assert_allclose(nearest.distances, apart.min(1), rtol=1e-9)
    np.testing.assert_array_equal(nearest.indices, apart.argmin(1))
    itself = nearest_neighbours(queries, queries)
    np.testing.assert_allclose(itself.distances, 0, atol=1e-6)
    np.testing.assert_array_equal(itself.indices, np.arange(600))


def test_the_probability_of_being_nearer_is_the_statistic_of_mann_and_whitney():
    a, b = RNG.normal(size=80).round(1), RNG.normal(0.3, size=50).round(1)
    expected = mannwhitneyu(b, a).statistic / (80 * 50)
    assert probability_of_being_nearer(a, b).value == pytest.approx(expected, rel=1e-12)
    assert probability_of_being_nearer(np.zeros(3), np.ones(4)).value == 1


def test_the_standard_error_is_the_deviation_between_draws():
    rng = np.random.default_rng(0)
    draws = [probability_of_being_nearer(rng.gamma(2, size=60), rng.gamma(3, size=90)) for _ in range(400)]
    spread = np.std([draw.value for draw in draws])
    assert np.mean([draw.standard_error for draw in draws]) == pytest.approx(spread, rel=0.1)


def test_copies_are_told_from_new_samples():
    train, new, samples = RNG.normal(size=(3, 400, 6))
    of_new = nearest_neighbours(new, train).distances
    honest = probability_of_being_nearer(nearest_neighbours(samples, train).distances, of_new)
    assert abs(honest.value - 0.5) < 3 * honest.standard_error
    copies = train + 0.01 * RNG.normal(size=train.shape)
    assert probability_of_being_nearer(nearest_neighbours(copies, train).distances, of_new).value > 0.99
