"""Measuring samples against the data of a run: features, reference, cache, and the check for copies.

reference    what samples are compared with: held-out data, the training set, or a file of statistics
real         data of the other kind in the place of the samples, as many of them: what perfect samples get
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.console import progress_bar
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.evaluation.copying import NearestNeighbours, probability_of_being_nearer
from score_diffusion.run.evaluation.extractors import Extractor, RawValues, digest_of
from score_diffusion.run.evaluation.feature_set import (
    FeatureSet,
    array_chunks,
    cached,
    collect,
    read_statistics,
    user_chunks,
)
from score_diffusion.run.evaluation.metrics import STEPS, measure
from score_diffusion.run.evaluation.resampling import Estimate

HELD_OUT, TRAIN = "held_out", "train"
VERSION = 1  # of what a digest stands for: to be raised when features or metrics change their meaning
MOST_QUERIES = 1000  # samples whose nearest training samples are searched
MOST_QUERY_BYTES = 2**28


@dataclass(frozen=True)
class Copies:
    """How near samples are to their nearest training samples, by one kind of features."""

    probability: Estimate
    """Of a sample being nearer than new data."""
    median: float
    """Median distance of the samples."""
    median_of_new_data: float
    """Median distance of held-out data."""
    samples: np.ndarray
    """Indices of the samples that were looked at, the nearest first."""
    neighbours: np.ndarray
    """Indices of their nearest training samples."""


class Evaluator:
    """Measures samples against one data set by one kind of features.

    Args:
        dataset: The data.
        extractor: Computes the features.
        reference: "held_out", "train", or the path of an .npz of FID statistics.
        kept: Samples whose features are kept.
        folder: Where feature sets of the data are cached.
    """

    def __init__(
        self, dataset: Dataset, extractor: Extractor, reference: str, kept: int, folder: Path
    ) -> None:
        self._dataset, self.extractor, self._kept, self._folder = dataset, extractor, kept, folder
        self._name = reference
        self._statistics = None if reference in (HELD_OUT, TRAIN) else read_statistics(Path(reference))

    @cached_property
    def digest(self) -> str:
        """Of everything but the samples that decides a result."""
        if self._statistics is not None:
            fit = self._statistics.fit
            assert fit is not None
            data = hashlib.sha256(fit.mean.tobytes() + fit.covariance.tobytes()).hexdigest()
        else:
            data = self._dataset.content
        return digest_of(VERSION, data, self._name in (HELD_OUT, TRAIN) and self._name, *self._settings)

    @property
    def reference_in_words(self) -> str:
        """What samples are compared with."""
        words = {HELD_OUT: "held-out data", TRAIN: "training data"}
        return words.get(self._name, f"the statistics {Path(self._name).name}")

    @property
    def _settings(self) -> tuple[object, ...]:
        return (self.extractor.digest, repr(self._dataset.scaling), self._kept)

    @cached_property
    def reference(self) -> FeatureSet:
        """Features of the reference."""
        return self._part(self._name) if self._statistics is None else self._statistics

    def real(self, count: int) -> FeatureSet:
        """Features of as many real data as samples are measured, or of all there are if they are fewer."""
        return self._part(HELD_OUT if self._name == TRAIN else TRAIN, count)

    def _part(self, name: str, count: int | None = None) -> FeatureSet:
        """Features of the training or the test set, or of a random part of it; cached."""
        samples, labels = {
            HELD_OUT: (self._dataset.test, self._dataset.test_labels),
            TRAIN: (self._dataset.train, self._dataset.labels),
        }[name]
        if count is not None and count < len(samples):
            chosen = _random_part(len(samples), count)
            samples = samples[chosen] if isinstance(samples, Tensor) else samples.select(chosen)
            labels = None if labels is None else labels[chosen]
        digest = digest_of(VERSION, self._dataset.content, name, len(samples), *self._settings)

        def make() -> FeatureSet:
            return self._collect(
                user_chunks(samples, self._dataset.scaling), len(samples), labels, name.replace("_", "-")
            )

        return cached(self._folder / f"{digest}.npz", make)

    def features_of(self, samples: np.ndarray, labels: np.ndarray | None = None) -> FeatureSet:
        """Features of samples in the user's units, shape (n, *shape), with classes (n,), -1 for none."""
        labels = labels if labels is not None and (labels >= 0).all() else None
        return self._collect(array_chunks(samples), len(samples), labels, "samples")

    def _collect(
        self, chunks: Iterable[np.ndarray], count: int, labels: Tensor | np.ndarray | None, title: str
    ) -> FeatureSet:
        with progress_bar(count, f"features of {title}", "sample", delay=1.0, leave=False) as bar:
            return collect(
                chunks,
                count,
                self.extractor,
                self._kept,
                None if labels is None else np.asarray(labels),
                bar.update,
            )

    def measure(self, features: FeatureSet, title: str = "samples") -> dict[str, Estimate]:
        """All figures of samples, or of real data, compared with the reference."""
        with progress_bar(STEPS, f"metrics of {title}", "step", delay=1.0, leave=False) as bar:
            return measure(features, self.reference, lambda: bar.update(1))

    def check_for_copies(self, samples: np.ndarray) -> dict[str, Copies]:
        """How near samples are to training samples compared with held-out data, in one pass over those.

        By raw values, and by the features if they are others.

        Args:
            samples: In the user's units, shape (n, *shape), of which at most 1,000 are looked at.
        """
        raw = RawValues(self._dataset.scaling)
        extractors = {extractor.words: extractor for extractor in (raw, self.extractor)}
        chosen = _some(len(samples), self._dataset.shape).numpy()
        test = self._dataset.test[_some(len(self._dataset.test), self._dataset.shape)]
        queries, new_data = samples[chosen], self._dataset.scaling.stored_to_user(test).numpy()
        searches = {
            words: [NearestNeighbours(extractor(x)[0]) for x in (queries, new_data)]
            for words, extractor in extractors.items()
        }
        train = self._dataset.train
        with progress_bar(len(train), "nearest training samples", "sample", delay=1.0, leave=False) as bar:
            for chunk in user_chunks(train, self._dataset.scaling):
                for words, extractor in extractors.items():
                    features, _ = extractor(chunk)
                    for search in searches[words]:
                        search.add(features)
                bar.update(len(chunk))
        return {words: _copies(chosen, *pair) for words, pair in searches.items()}


def _some(count: int, shape: tuple[int, ...]) -> Tensor:
    """Indices of a random part of so many samples of a shape, not too large for a search; ascending."""
    most = min(MOST_QUERIES, max(2, MOST_QUERY_BYTES // (4 * math.prod(shape))))
    return _random_part(count, most)


def _random_part(count: int, most: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


def _copies(chosen: np.ndarray, samples: NearestNeighbours, new_data: NearestNeighbours) -> Copies:
    order = np.argsort(samples.distances)
    return Copies(
        probability_of_being_nearer(samples.distances, new_data.distances),
        float(np.median(samples.distances)),
        float(np.median(new_data.distances)),
        chosen[order],
        samples.indices[order],
    )
