"""Whether samples are copies of training data: how near they are to the nearest one, compared with new data.

New data of the same law are at some distance from the training data too. The figure reported is

    P(d(sample) < d(new)) + ½ P(d(sample) = d(new)),

where d is the distance to the nearest training sample: ½ for samples that are as new as new data, 1 for
copies. It is the statistic of Mann and Whitney, and its standard error that of DeLong et al.

References:
    A Non-Parametric Test to Detect Data-Copying in Generative Models (Meehan et al., 2020),
        https://arxiv.org/abs/2004.05675.
    Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves (DeLong et al.,
        1988), https://doi.org/10.2307/2531595.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from score_diffusion.run.evaluation.pairwise import chunks, distances, flat, flat_pair
from score_diffusion.run.evaluation.resampling import Estimate


class NearestNeighbours:
    """The nearest neighbour of each query among samples that come in chunks.

    Args:
        queries: Shape (n, ...).
    """

    def __init__(self, queries: ArrayLike) -> None:
        self._queries = flat(queries)
        self.distances = np.full(len(self._queries), np.inf)
        """Euclidean, shape (n,)."""
        self.indices = np.zeros(len(self._queries), np.int64)
        """Of the nearest neighbours, in the order in which samples came, shape (n,)."""
        self._count = 0

    def add(self, samples: ArrayLike) -> None:
        """Takes further samples into account, shape (m, ...).

        Raises:
            UserError: If they are not of the size of the queries.
        """
        queries, samples = flat_pair(self._queries, samples)
        for part, some in chunks(samples):
            for rows, apart in distances(queries, some):
                nearest = apart.argmin(1)
                shortest = apart[np.arange(len(apart)), nearest]
                nearer = shortest < self.distances[rows]
                self.distances[rows] = np.where(nearer, shortest, self.distances[rows])
                found = self._count + part.start + nearest
                self.indices[rows] = np.where(nearer, found, self.indices[rows])
        self._count += len(samples)


def nearest_neighbours(queries: ArrayLike, samples: ArrayLike) -> NearestNeighbours:
    """The nearest neighbour of each query (n, ...) among samples (m, ...)."""
    nearest = NearestNeighbours(queries)
    nearest.add(samples)
    return nearest


def probability_of_being_nearer(of_samples: np.ndarray, of_new_data: np.ndarray) -> Estimate:
    """P(d(sample) < d(new)) + ½ P(d(sample) = d(new)).

    Args:
        of_samples: Distances of samples to their nearest training sample, shape (n,).
        of_new_data: Those of new data, shape (m,).
    """
    n, m = len(of_samples), len(of_new_data)
    ranks = rankdata(np.concatenate([of_samples, of_new_data]))
    # Share of new data beyond each sample, and of samples within each of the new data; ties count half.
    beyond = 1 - (ranks[:n] - rankdata(of_samples)) / m
    within = (ranks[n:] - rankdata(of_new_data)) / n
    if min(n, m) < 2:
        return Estimate(float(beyond.mean()))
    return Estimate(float(beyond.mean()), math.sqrt(beyond.var(ddof=1) / n + within.var(ddof=1) / m))
