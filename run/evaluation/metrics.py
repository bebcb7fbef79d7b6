"""Distances between two sets of samples, on raw values in float64, each set flattened to (n, D).

References:
    The Fréchet distance between multivariate normal distributions (Dowson & Landau, 1982),
        https://doi.org/10.1016/0047-259X(82)90077-X.
    Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015),
    https://doi.org/10.1007/s10851-014-0506-3.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from score_diffusion.run.errors import UserError

CHUNK = 512  # rows or directions at a time, to bound memory


def _flat(samples: ArrayLike) -> np.ndarray:
    samples = np.asarray(samples, dtype=np.float64)
    return samples.reshape(len(samples), -1)


def _flat_pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = _flat(a), _flat(b)
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"both sets must have samples of one size, got {a.shape[1]} and {b.shape[1]} numbers per sample"
        )
    return a, b


def _sqrt_psd(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets.

        ‖m_a - m_b‖² + Tr(C_a + C_b - 2 (C_a C_b)^½)

    The trace of the root is that of (C_a^½ C_b C_a^½)^½, which is symmetric, so that singular covariances
    (pixels that never change) do no harm.

    Args:
        a: Samples, shape (n, ...), n at least 2.
        b: Samples, shape (m, ...), m at least 2.

    Returns:
        The squared distance; for raw pixels, not comparable with a FID on Inception features.
    """
    a, b = _flat_pair(a, b)
    if min(len(a), len(b)) < 2:
        raise UserError(
            f"the Fréchet distance needs at least 2 samples on either side, got {len(a)} and {len(b)}"
        )
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))  # (D, D)
    root = _sqrt_psd(cov_a)
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    difference = a.mean(0) - b.mean(0)
    return float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


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
    a, b = _flat_pair(a, b)
    n, m = len(a), len(b)
    directions = np.random.default_rng(seed).standard_normal((n_directions, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # right ends of the pieces, times n m
    weights = np.diff(ends, prepend=0) / (n * m)
    of_a, of_b = (ends - 1) // m, (ends - 1) // n  # the order statistic of each piece
    total = 0.0
    for some in np.array_split(directions, -(-n_directions // CHUNK)):
        quantiles_a, quantiles_b = np.sort(a @ some.T, axis=0), np.sort(b @ some.T, axis=0)
        total += (weights @ (quantiles_a[of_a] - quantiles_b[of_b]) ** 2).sum()
    return float(np.sqrt(total / n_directions))


def nearest_neighbour_distances(samples: ArrayLike, reference: ArrayLike) -> np.ndarray:
    """Euclidean distance of every sample to its nearest neighbour in `reference`, shape (n,)."""
    a, b = map(torch.from_numpy, _flat_pair(samples, reference))
    return torch.cat([torch.cdist(some, b).amin(1) for some in a.split(CHUNK)]).numpy()
