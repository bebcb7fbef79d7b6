from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import t

from score_diffusion.run.evaluation.feature_set import FeatureSet
from score_diffusion.run.evaluation.frechet import frechet_distance
from score_diffusion.run.evaluation.kernel_distance import kernel_distance
from score_diffusion.run.evaluation.resampling import HALVES, Estimate, estimate, half_samples
from tests.run.evaluation.gaussians import closed_form
from tests.run.evaluation.test_kernel_distance import mmd_of_normals


def features(x: np.ndarray) -> FeatureSet:
    return FeatureSet(len(x), x, None)


@pytest.mark.parametrize("n", [32, 100])
def test_half_samples_are_balanced(n: int):
    halves = half_samples(n)
    assert halves.shape == (HALVES, n) and abs(halves.sum(1) / n - 0.5).max() < 0.03
    assert (halves.sum(0) == HALVES // 2).all()
    together = halves.T.astype(int) @ halves
    different = np.arange(n)[:, None] % 16 != np.arange(n) % 16
    assert len(np.unique(together[different])) == 1


def test_the_standard_error_of_a_mean_is_that_of_its_groups():
    x, y = np.random.default_rng(0).normal(size=(2, 160, 1))

    def difference(a: FeatureSet, b: FeatureSet) -> dict[str, float]:
        return {"difference": float(a.rows.mean() - b.rows.mean())}

    steps: list[int] = []
    measured = estimate(difference, features(x), features(y), lambda: steps.append(1))["difference"]
    groups = np.array([x[k::16].mean() - y[k::16].mean() for k in range(16)])
    assert measured.standard_error == pytest.approx(groups.std(ddof=1) / 4, rel=1e-9)
    assert measured.change_on_halving == pytest.approx(0, abs=1e-12)
    assert len(steps) == HALVES + 1


def test_small_sets_have_no_standard_error():
    few = features(np.random.default_rng(0).normal(size=(31, 2)))
    assert estimate(lambda a, b: {"size": float(len(a))}, few, few)["size"] == Estimate(31.0)


def covered(draw: Callable[[np.random.Generator], Estimate], truth: float, repeats: int) -> int:
    """How often the truth is in the 95 % interval around an estimate without its bias of order 1/n."""
    count = 0
    for seed in range(repeats):
        measured = draw(np.random.default_rng(seed))
        centre = measured.value - measured.change_on_halving
        count += abs(centre - truth) <= t.ppf(0.975, 15) * measured.standard_error
    return count


def frechet(a: FeatureSet, b: FeatureSet) -> dict[str, float]:
    return {"distance": frechet_distance(a.rows, b.rows)}


def kernel(a: FeatureSet, b: FeatureSet) -> dict[str, float]:
    return {"distance": kernel_distance(a.rows, b.rows)}


@pytest.mark.slow
def test_intervals_of_the_frechet_distance_cover_the_closed_form():
    mean, covariance = np.array([0.5, 0.0]), np.diag([2.0, 1.0])

    def draw(rng: np.random.Generator) -> Estimate:
        a = rng.normal(size=(400, 2)) @ np.sqrt(covariance) + mean
        return estimate(frechet, features(a), features(rng.normal(size=(300, 2))))["distance"]

    truth = closed_form(mean, covariance, np.zeros(2), np.eye(2))
    assert 88 <= covered(draw, truth, 100) <= 100


@pytest.mark.slow
def test_intervals_of_the_kernel_distance_cover_the_closed_form():
    def draw(rng: np.random.Generator) -> Estimate:
        a, b = rng.normal(0.5, size=(400, 1)), rng.normal(size=(400, 1))
        return estimate(kernel, features(a), features(b))["distance"]

    assert 88 <= covered(draw, mmd_of_normals(0, 0.5), 100) <= 100
