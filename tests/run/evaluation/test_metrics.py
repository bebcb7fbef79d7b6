from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.extractors import RawValues
from score_diffusion.run.evaluation.feature_set import FeatureSet, collect
from score_diffusion.run.evaluation.frechet import GaussianFit, frechet_distance
from score_diffusion.run.evaluation.metrics import FIGURES, METRICS, STEPS, measure
from score_diffusion.run.evaluation.resampling import Estimate
from tests.run.evaluation.gaussians import RNG, closed_form


def features(n: int, shift: float = 0.0, classes: bool = False) -> FeatureSet:
    labels = np.arange(n) % 3
    rows = RNG.normal(size=(n, 4)) + shift + 3 * np.eye(4)[labels]
    probabilities = np.eye(3)[labels] if classes else None
    return FeatureSet(n, rows, None, labels if classes else None, probabilities)


def test_all_figures_are_measured_with_standard_errors_and_progress():
    steps: list[int] = []
    figures = measure(features(80, classes=True), features(90, classes=True), lambda: steps.append(1))
    assert len(steps) == STEPS and tuple(figures) == FIGURES
    assert all(figure.standard_error is not None for figure in figures.values())
    assert figures["classifier_score"].value == pytest.approx(3, rel=1e-3)
    assert figures["accuracy_on_samples"].value > 0.8 and figures["accuracy_from_samples"].value > 0.8


def test_without_classes_there_are_no_figures_of_classes():
    figures = measure(features(20), features(20, classes=True))
    assert len(figures) == 8 and figures["frechet_distance"].standard_error is None
    one_class = replace(features(20, classes=True), labels=np.zeros(20, int))
    assert "accuracy_on_samples" not in measure(one_class, features(20, classes=True))


@pytest.mark.parametrize("metric", METRICS)
def test_every_distance_of_a_set_to_itself_is_zero(metric):
    same = features(40)
    figures = metric(same, same)
    assert all(value == pytest.approx(0, abs=1e-6) for name, value in figures.items() if "wasser" in name)
    assert figures.get("frechet_distance", 0) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_is_that_of_all_samples_where_only_a_part_is_kept():
    a, b = RNG.normal(size=(600, 3)), RNG.normal(size=(450, 3)) + 0.3
    kept, whole = (
        [
            collect([x], len(x), lambda x: (x, None), kept)  # type: ignore[arg-type]
            for x in (a, b)
        ]
        for kept in (120, 600)
    )
    of_part, of_all = measure(*kept), measure(*whole)
    assert len(kept[0]) == 120 and kept[0].count == 600
    assert of_part["frechet_distance"].value == pytest.approx(frechet_distance(a, b), rel=1e-9)
    ratio = of_part["frechet_distance"].standard_error / of_all["frechet_distance"].standard_error
    assert 0.5 < ratio < 2
    assert of_part["frechet_distance"].change_on_halving < 0.05


def test_statistics_of_a_reference_give_the_frechet_distance_only():
    mean, covariance = np.array([1.0, 0]), np.diag([4.0, 1])
    reference = FeatureSet(0, np.empty((0, 2)), GaussianFit(mean, covariance))
    samples = RNG.normal(size=(5000, 2))
    figures = measure(FeatureSet(len(samples), samples, None), reference)
    assert list(figures) == ["frechet_distance"]
    truth = closed_form(np.zeros(2), np.eye(2), mean, covariance)
    assert (
        abs(figures["frechet_distance"].value - truth) < 4 * figures["frechet_distance"].standard_error < 0.4
    )
    with pytest.raises(UserError, match="3 features and the reference 2"):
        measure(FeatureSet(9, RNG.normal(size=(9, 3)), None), reference)


@pytest.mark.slow
def test_real_digits_are_at_the_distances_that_samples_are_compared_with():
    digits = load_digits()
    pixels = RawValues(digits.scaling)
    train, held_out = (
        collect([digits.scaling.stored_to_user(x).numpy()], len(x), pixels, 2000)
        for x in (digits.train, digits.test)
    )
    distance = measure(train, held_out)["frechet_distance"]
    assert isinstance(distance, Estimate)
    assert distance.value == pytest.approx(frechet_distance(train.rows, held_out.rows), rel=1e-6)
