"""The table of metrics, and measuring a set of samples with all of them.

A metric is a function of two feature sets, samples and reference, to figures by their names; none where the
sets lack what it needs, such as classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.class_scores import classifier_score, transferred_accuracy
from score_diffusion.run.evaluation.feature_set import FeatureSet
from score_diffusion.run.evaluation.frechet import distance_of_fits, fit_gaussian, frechet_distance
from score_diffusion.run.evaluation.kernel_distance import kernel_distance
from score_diffusion.run.evaluation.manifolds import K_DENSITY, manifold_scores
from score_diffusion.run.evaluation.resampling import HALVES, Estimate, estimate
from score_diffusion.run.evaluation.wasserstein import exact_wasserstein, sliced_wasserstein

Figures = dict[str, float]
Metric = Callable[[FeatureSet, FeatureSet], Figures]

MOST_MATCHED = 1000  # samples that the exact Wasserstein distance matches


def _frechet(samples: FeatureSet, reference: FeatureSet) -> Figures:
    if samples.fit is None and reference.fit is None:
        return {"frechet_distance": frechet_distance(samples.rows, reference.rows)}
    fits = (x.fit or fit_gaussian(x.rows) for x in (samples, reference))
    return {"frechet_distance": distance_of_fits(*fits)}


def _kernel(samples: FeatureSet, reference: FeatureSet) -> Figures:
    return {"kernel_distance": kernel_distance(samples.rows, reference.rows)}


def _manifolds(samples: FeatureSet, reference: FeatureSet) -> Figures:
    if min(len(samples), len(reference)) <= K_DENSITY:
        return {}
    return manifold_scores(samples.rows, reference.rows)


def _sliced(samples: FeatureSet, reference: FeatureSet) -> Figures:
    return {"sliced_wasserstein": sliced_wasserstein(samples.rows, reference.rows)}


def _exact(samples: FeatureSet, reference: FeatureSet) -> Figures:
    sets = (x.rows[:MOST_MATCHED] for x in (samples, reference))
    return {"exact_wasserstein": exact_wasserstein(*sets)}


def _classes(samples: FeatureSet, reference: FeatureSet) -> Figures:
    if samples.probabilities is None:
        return {}
    return {"classifier_score": classifier_score(samples.probabilities)}


def _accuracies(samples: FeatureSet, reference: FeatureSet) -> Figures:
    if samples.labels is None or reference.labels is None:
        return {}
    if min(len(np.unique(labels)) for labels in (samples.labels, reference.labels)) < 2:
        return {}
    a, b = (samples.rows, samples.labels), (reference.rows, reference.labels)
    return {
        "accuracy_on_samples": transferred_accuracy(*b, *a),
        "accuracy_from_samples": transferred_accuracy(*a, *b),
    }


METRICS: tuple[Metric, ...] = (_frechet, _kernel, _manifolds, _sliced, _exact, _classes, _accuracies)
"""In the order in which `--mode evaluate` reports them."""

FIGURES = (
    *("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"),
    *("sliced_wasserstein", "exact_wasserstein", "classifier_score"),
    *("accuracy_on_samples", "accuracy_from_samples"),
)
"""The names of all figures."""

STEPS = len(METRICS) * (HALVES + 1)
"""Calls of `on_step` in `measure`, at most."""


def measure(
    samples: FeatureSet, reference: FeatureSet, on_step: Callable[[], object] = lambda: None
) -> dict[str, Estimate]:
    """All figures of samples, each with its standard error.

    The Fréchet distance is that of all samples; its error is measured on the kept rows and scaled as 1/√n, by
    the set of which the larger part was kept, so that it is overstated rather than understated. All other
    figures are those of the kept rows.

    Args:
        samples: Features of the samples.
        reference: Features of what they are compared with.
        on_step: Called after each computation, for progress bars.

    Raises:
        UserError: If the features of the two are not of one size, or a set has fewer than 2 samples.
    """
    if samples.rows.shape[1] != reference.rows.shape[1]:
        raise UserError(
            f"the samples have {samples.rows.shape[1]} features and the reference {reference.rows.shape[1]}: "
            "statistics must be of the same features"
        )
    only_moments = not len(reference)
    estimates: dict[str, Estimate] = {}
    for metric in METRICS[:1] if only_moments else METRICS:
        estimates |= estimate(metric, samples.kept(), reference.kept(), on_step)
    part = max(len(x) / x.count for x in (samples, reference) if len(x))
    of_kept = estimates["frechet_distance"]
    if part < 1:
        value = _frechet(samples, reference)["frechet_distance"]
        error, change = of_kept.standard_error, of_kept.change_on_halving
        estimates["frechet_distance"] = Estimate(
            value, None if error is None else error * part**0.5, None if change is None else change * part
        )
    return estimates
