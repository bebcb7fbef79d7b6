"""Features of a set of samples: what one pass over the samples leaves for the metrics.

    moments     mean and covariance of all samples, for the Fréchet distance
    rows        the features of a random part of the samples, in random order, for everything else

so that the memory does not grow with the number of samples. The pass is streamed: samples come in chunks.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.sources import Samples, chunks
from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.extractors import Extractor
from score_diffusion.run.evaluation.frechet import GaussianFit, Moments
from score_diffusion.run.files import write_atomic

MOST_DIMENSIONS = 4096  # of features whose covariance is held
MOST_BYTES = 2**30  # that the rows take
CHUNK_BYTES = 2**24


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of samples."""

    count: int
    """How many samples there are."""
    rows: np.ndarray
    """Features of k of the samples, in random order, float32 (k, F); k is 0 where only moments are known."""
    fit: GaussianFit | None
    """Moments of all samples; None for fewer than 2 and where F is too large, and of a part of the rows."""
    labels: np.ndarray | None = None
    """Classes of the rows, int64 (k,)."""
    probabilities: np.ndarray | None = None
    """Probabilities of classes given each row, (k, K), from extractors that are classifiers."""

    def __len__(self) -> int:
        return len(self.rows)

    def kept(self) -> FeatureSet:
        """The rows as a set of their own."""
        return self if len(self) == self.count else self.subset(np.ones(len(self), bool))

    def subset(self, chosen: np.ndarray) -> FeatureSet:
        """The rows for which `chosen`, bool (k,), is true; a set without rows stays as it is."""
        if not len(self):
            return self
        labels, probabilities = (None if x is None else x[chosen] for x in (self.labels, self.probabilities))
        return FeatureSet(int(chosen.sum()), self.rows[chosen], None, labels, probabilities)


class Collector:
    """Gathers a feature set in one pass.

    Args:
        count: The number of samples that will come.
        kept: Of how many the features are kept, at most.
        labels: Their classes, shape (count,); None for none.
    """

    def __init__(self, count: int, kept: int, labels: np.ndarray | None = None) -> None:
        self._order = np.random.default_rng(0).permutation(count)
        self._labels, self._count, self._kept = labels, count, min(kept, count)
        self._rank = np.argsort(self._order)  # where each sample stands in that order
        self._seen, self._moments = 0, Moments()
        self._rows: np.ndarray | None = None
        self._probabilities: np.ndarray | None = None

    def add(self, features: np.ndarray, probabilities: np.ndarray | None) -> None:
        """Takes the features of the next samples, (n, F), and of a classifier its probabilities (n, K)."""
        if self._rows is None:
            self._kept = min(self._kept, max(1, MOST_BYTES // (4 * features.shape[1])))
            self._rows = np.empty((self._kept, features.shape[1]), np.float32)
            if probabilities is not None:
                self._probabilities = np.empty((self._kept, probabilities.shape[1]), np.float32)
        ranks = self._rank[self._seen : self._seen + len(features)]
        kept = ranks < self._kept
        self._rows[ranks[kept]] = features[kept]
        if self._probabilities is not None and probabilities is not None:
            self._probabilities[ranks[kept]] = probabilities[kept]
        if features.shape[1] <= MOST_DIMENSIONS:
            self._moments.add(features)
        self._seen += len(features)

    def finish(self) -> FeatureSet:
        """The feature set, once all samples have come."""
        assert self._rows is not None and self._seen == self._count
        fit = self._moments.fit() if self._moments.count > 1 else None
        labels = None if self._labels is None else self._labels[self._order[: self._kept]]
        return FeatureSet(self._count, self._rows, fit, labels, self._probabilities)


def collect(
    parts: Iterable[np.ndarray],
    count: int,
    extractor: Extractor,
    kept: int,
    labels: np.ndarray | None = None,
    on_step: Callable[[int], object] = lambda n: None,
) -> FeatureSet:
    """The features of samples that come in chunks.

    Args:
        parts: Samples in the user's units, arrays (n, *shape).
        count: How many there are in all.
        extractor: Computes the features.
        kept: Of how many the features are kept, at most.
        labels: Their classes, shape (count,); None for none.
        on_step: Called with the size of each chunk, for progress bars.

    Raises:
        UserError: If a feature is not finite.
    """
    collector = Collector(count, kept, labels)
    for chunk in parts:
        features, probabilities = extractor(chunk)
        if not np.isfinite(features).all():
            raise UserError(f"features by {extractor.words} are not finite for some samples")
        collector.add(features, probabilities)
        on_step(len(chunk))
    return collector.finish()


def user_chunks(samples: Samples, scaling: Scaling) -> Iterator[np.ndarray]:
    """Samples of a data set in the user's units, arrays (n, *shape); the threads of a stream read ahead."""
    sample_bytes = 4 * int(np.prod(samples.shape[1:]))
    size = min(max(1, CHUNK_BYTES // sample_bytes), 1024)
    for stored in chunks(samples, size):
        yield scaling.stored_to_user(stored).numpy()


def array_chunks(samples: np.ndarray) -> Iterator[np.ndarray]:
    """An array of samples (n, *shape) in chunks."""
    size = min(max(1, CHUNK_BYTES // (4 * int(np.prod(samples.shape[1:])))), 1024)
    return (samples[start : start + size] for start in range(0, len(samples), size))


def cached(path: Path, make: Callable[[], FeatureSet]) -> FeatureSet:
    """The feature set in a file, or the one that `make` gives, which is written there.

    Args:
        path: A file whose name is a digest of everything that decides the set.
        make: Computes it where there is no intact file.
    """
    try:
        return _read(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        features = make()
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"rows": features.rows, "count": np.array(features.count)}
    if features.fit is not None:
        arrays |= {"mu": features.fit.mean, "sigma": features.fit.covariance}
    arrays |= {} if features.labels is None else {"labels": features.labels}
    arrays |= {} if features.probabilities is None else {"probabilities": features.probabilities}
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
    return features


def _read(path: Path) -> FeatureSet:
    with np.load(path, allow_pickle=False) as arrays:
        fit = GaussianFit(arrays["mu"], arrays["sigma"]) if "mu" in arrays else None
        labels, probabilities = (arrays.get(name) for name in ("labels", "probabilities"))
        return FeatureSet(int(arrays["count"]), arrays["rows"], fit, labels, probabilities)


def read_statistics(path: Path) -> FeatureSet:
    """The mean and the covariance in an .npz of FID statistics, under the usual names mu and sigma.

    Raises:
        UserError: If there is no such file, or it holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    except FileNotFoundError as error:
        raise UserError(f"evaluation.reference={path} does not exist") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"evaluation.reference={path} must be an .npz with the arrays mu (F,) and sigma (F, F): {error}"
        ) from error
    shapes_fit = mean.ndim == 1 and covariance.shape == (len(mean), len(mean))
    if not shapes_fit or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(
            f"evaluation.reference={path} must hold finite numbers mu (F,) and sigma (F, F), got "
            f"{mean.shape} and {covariance.shape}"
        )
    return FeatureSet(0, np.empty((0, len(mean)), np.float32), GaussianFit(mean, covariance))
