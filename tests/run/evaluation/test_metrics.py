from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.metrics import (
    METRICS,
    frechet_distance,
    nearest_neighbour_distances,
    sliced_wasserstein,
)

RNG = np.random.default_rng(0)


def with_moments(mean: np.ndarray, covariance: np.ndarray, n: int = 50) -> np.ndarray:
    """Samples whose empirical mean and covariance are exactly these."""
    x = RNG.normal(size=(n, len(mean)))
    x -= x.mean(0)
    whiten = scipy.linalg.inv(scipy.linalg.sqrtm(np.cov(x.T)).real)
    return x @ whiten @ scipy.linalg.sqrtm(covariance).real + mean


def random_covariance(dimension: int) -> np.ndarray:
    root = RNG.normal(size=(dimension, dimension))
    return root @ root.T + 0.1 * np.eye(dimension)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    mean_a, mean_b, cov_a, cov_b = (
        RNG.normal(size=4),
        RNG.normal(size=4),
        random_covariance(4),
        random_covariance(4),
    )
    cross = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * cross)
    measured = frechet_distance(with_moments(mean_a, cov_a), with_moments(mean_b, cov_b, n=70))
    assert measured == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_commuting_and_singular_covariances():
    mean = np.zeros(3)
    a, b = with_moments(mean, np.diag([1.0, 4.0, 1.0])), with_moments(mean, np.diag([9.0, 1.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (2 - 1) ** 2, rel=1e-9)
    a[:, 2] = b[:, 2] = 0.5  # a pixel that never changes
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (2 - 1) ** 2, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


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


def test_nearest_neighbour_distances():
    samples, reference = RNG.normal(size=(600, 2, 3)), RNG.normal(size=(30, 2, 3))
    expected = np.sqrt(((samples[:, None] - reference) ** 2).sum((2, 3))).min(1)
    np.testing.assert_allclose(nearest_neighbour_distances(samples, reference), expected, rtol=1e-9)
    np.testing.assert_allclose(nearest_neighbour_distances(reference, reference), 0, atol=1e-6)


def test_real_digits_are_at_the_distances_that_samples_are_compared_with():
    digits = load_digits()
    train, held_out = map(digits.scaling.stored_to_user, (digits.train, digits.test))
    assert frechet_distance(train, held_out) == pytest.approx(0.29, abs=0.005)
    assert sliced_wasserstein(train, held_out) == pytest.approx(0.043, abs=0.001)
    assert np.median(nearest_neighbour_distances(held_out, train)) == pytest.approx(2.2, abs=0.01)


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match="one size"):
        sliced_wasserstein(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(UserError, match="at least 2"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)))


def embedded(x: np.ndarray, dimension: int) -> np.ndarray:
    """The same set in more dimensions, turned by a reflection: all distances stay."""
    padded = np.concatenate([x, np.zeros((len(x), dimension - x.shape[1]))], axis=1)
    normal = np.random.default_rng(1).normal(size=dimension)
    return padded - 2 * np.outer(padded @ normal, normal) / (normal @ normal)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (30, 9), (600, 1300), (5, 1200)])
def test_frechet_distance_of_few_samples_of_many_dimensions(n: int, m: int):
    """From n x m matrices as from D x D ones: in 12 dimensions, and in 1500 that hold the same sets."""
    a, b = RNG.normal(size=(n, 12)) @ random_covariance(12), RNG.normal(size=(m, 12)) + 0.3
    expected = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) + ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected -= 2 * np.sqrt(np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real.clip(0)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(embedded(a, 1500), embedded(b, 1500)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_frechet_distance_of_large_images_needs_little_memory():
    """Of 256x256 colour images a D x D matrix takes 288 GiB."""
    steps = []
    a, b = (RNG.integers(0, 256, (count, 3, 256, 256), dtype=np.uint8) for count in (6, 8))
    tracemalloc.start()
    distance = frechet_distance(a, b, on_step=lambda i, n: steps.append((i, n)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    flat = [x.reshape(len(x), -1).astype(float) for x in (a, b)]
    centred = [x - x.mean(0) for x in flat]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / np.sqrt(5 * 7)
    traces = (centred[0] ** 2).sum() / 5 + (centred[1] ** 2).sum() / 7
    expected = ((flat[0].mean(0) - flat[1].mean(0)) ** 2).sum() + traces - 2 * cross
    assert distance == pytest.approx(expected, rel=1e-9)
    assert steps == [(8, 8)] and peak < 10 * (a.nbytes + b.nbytes) * 8


def test_distances_report_their_progress_to_the_end():
    a, b = RNG.normal(size=(1100, 3)), RNG.normal(size=(700, 3))
    for metric in (sliced_wasserstein, nearest_neighbour_distances):
        steps = []
        metric(a, b, on_step=lambda i, n, steps=steps: steps.append((i, n)))
        assert steps and steps[-1][0] == steps[-1][1] and steps == sorted(steps)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_a_symmetric_distance(name: str):
    a, b = RNG.normal(size=(30, 2, 3)), RNG.normal(size=(20, 2, 3)) + 1
    steps: list[tuple[int, int]] = []
    distance = METRICS[name](a, b, on_step=lambda i, n: steps.append((i, n)))
    assert distance > 0.1 and METRICS[name](b, a) == pytest.approx(distance)
    assert METRICS[name](a, a) == pytest.approx(0, abs=1e-6)
    assert all(0 < i <= n for i, n in steps)
