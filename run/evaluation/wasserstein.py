"""The 2-Wasserstein distance between two sets: sliced, for sets of any size, and exact, for small ones.

References:
    Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015),
        https://doi.org/10.1007/s10851-014-0506-3.
    On implementing 2D rectangular assignment algorithms (Crouse, 2016),
        https://doi.org/10.1109/TAES.2016.140952: what SciPy solves the exact problem with.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from score_diffusion.run.evaluation.pairwise import chunks, distances, flat_pair

DIRECTIONS_AT_A_TIME = 128


def sliced_wasserstein(a: ArrayLike, b: ArrayLike, n_directions: int = 500, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance: root mean square over directions of the distance of the projections.

    In one dimension W_2² is the integral over q in [0, 1] of the squared difference of the quantile
    functions, step functions with steps at i/n and j/m; it is summed exactly, on the integers q·n·m.

    Args:
        a: Samples, shape (n, ...).
        b: Samples, shape (m, ...); m may differ from n.
        n_directions: Directions, uniform on the sphere.
        seed: Seed of the directions.
    """
    a, b = flat_pair(a, b)
    n, m = len(a), len(b)
    directions = np.random.default_rng(seed).standard_normal((n_directions, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # right ends of the parts, times n m
    weights = np.diff(ends, prepend=0) / (n * m)
    of_a, of_b = (ends - 1) // m, (ends - 1) // n  # the order statistic of each part
    total = 0.0
    for some in np.array_split(directions, -(-n_directions // DIRECTIONS_AT_A_TIME)):
        quantiles_a, quantiles_b = (np.sort(_projections(x, some), axis=0) for x in (a, b))
        total += (weights @ (quantiles_a[of_a] - quantiles_b[of_b]) ** 2).sum()
    return float(np.sqrt(total / n_directions))


def _projections(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Samples (n, D) on directions (k, D), shape (n, k)."""
    return np.concatenate([rows @ directions.T for _, rows in chunks(x)])


def exact_wasserstein(a: ArrayLike, b: ArrayLike) -> float:
    """2-Wasserstein distance of two sets of as many samples: of all matchings, the one that moves least.

    Takes time of the order n³ and an n x n matrix. In many dimensions it is far above the distance of the
    laws that the sets come from: that of two sets of one law falls as n^(-1/D) only.

    Args:
        a: Samples, shape (n, ...); of the larger set only as many as the other has.
        b: Samples, shape (m, ...).
    """
    a, b = flat_pair(a, b)
    n = min(len(a), len(b))
    cost = np.concatenate([apart**2 for _, apart in distances(a[:n], b[:n])])
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))
