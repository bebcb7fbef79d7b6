"""Distances between two sets of samples, on raw values in float64.

Sets are arrays (n, ...) of any dtype; a sample is a vector of its D numbers. They are converted in chunks, so
that the memory beyond the sets themselves stays small: see each distance.

References:
    The Fréchet distance between multivariate normal distributions (Dowson & Landau, 1982),
        https://doi.org/10.1016/0047-259X(82)90077-X.
    Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015),
        https://doi.org/10.1007/s10851-014-0506-3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike

from score_diffusion.run.errors import UserError

CHUNK = 512  # samples or directions at a time

OnStep = Callable[[int, int], None]
"""Called as on_step(i, n) after part i of n, for progress bars."""


def _ignore(i: int, n: int) -> None:
    pass


def _flat(samples: ArrayLike) -> np.ndarray:
    samples = np.asarray(samples)
    return samples.reshape(len(samples), -1)


def _flat_pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = _flat(a), _flat(b)
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"both sets must have samples of one size, got {a.shape[1]} and {b.shape[1]} numbers per sample"
        )
    return a, b


def _chunks(x: np.ndarray, centre: np.ndarray | float = 0.0) -> Iterator[tuple[slice, np.ndarray]]:
    """Where each chunk of x (n, D) stands, and the chunk in float64 minus the centre (D,)."""
    for start in range(0, len(x), CHUNK):
        rows = slice(start, min(start + CHUNK, len(x)))
        yield rows, x[rows].astype(np.float64) - centre


def _products(x: np.ndarray, y: np.ndarray, centre_x: np.ndarray, centre_y: np.ndarray) -> np.ndarray:
    """Inner products of centred samples, (n, D) and (m, D) to (n, m)."""
    products = np.empty((len(x), len(y)))
    for i, rows in _chunks(x, centre_x):
        for j, others in _chunks(y, centre_y):
            products[i, j] = rows @ others.T
    return products


def frechet_distance(a: ArrayLike, b: ArrayLike, on_step: OnStep = _ignore) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets.

        ‖m_a - m_b‖² + Tr(C_a + C_b - 2 (C_a C_b)^½)

    With the centred sets as matrices A (n, D) and B (m, D), the trace of the root is the sum of the singular
    values of A Bᵀ/√((n - 1)(m - 1)). It is computed from D x D matrices or from n x m ones, whichever are
    smaller: beyond chunks, the memory is of the order min(D, n, m)².

    Args:
        a: Samples, shape (n, ...), n at least 2.
        b: Samples, shape (m, ...), m at least 2.
        on_step: For a progress bar.

    Returns:
        The squared distance; for raw pixels, not comparable with a FID on Inception features. That of n
        samples is biased upwards, the more the smaller n is.
    """
    a, b = _flat_pair(a, b)
    if len(a) > len(b):
        a, b = b, a
    n, m = len(a), len(b)
    if n < 2:
        raise UserError(f"the Fréchet distance needs at least 2 samples on either side, got {n} and {m}")
    mean_a, mean_b = (sum(rows.sum(0) for _, rows in _chunks(x)) / len(x) for x in (a, b))
    if a.shape[1] <= n:
        cross = _cross_from_covariances(a, b, mean_a, mean_b)
    else:
        cross = _cross_from_products(a, b, mean_a, mean_b, on_step)
    traces = [
        sum(float((rows**2).sum()) for _, rows in _chunks(x, mean)) / (len(x) - 1)
        for x, mean in ((a, mean_a), (b, mean_b))
    ]
    difference = mean_a - mean_b
    return float(difference @ difference + sum(traces) - 2 * cross / np.sqrt((n - 1) * (m - 1)))


def _cross_from_covariances(a: np.ndarray, b: np.ndarray, mean_a: np.ndarray, mean_b: np.ndarray) -> float:
    """The sum of the singular values of A Bᵀ from S_a = AᵀA and S_b = BᵀB, shape (D, D): the roots of the
    eigenvalues of S_a^½ S_b S_a^½, which is symmetric, so that pixels that never change do no harm.
    """
    scatter_a, scatter_b = (
        sum(rows.T @ rows for _, rows in _chunks(x, mean)) for x, mean in ((a, mean_a), (b, mean_b))
    )
    values, vectors = np.linalg.eigh(scatter_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return float(np.sqrt(np.linalg.eigvalsh(root @ scatter_b @ root).clip(0)).sum())


def _cross_from_products(
    a: np.ndarray, b: np.ndarray, mean_a: np.ndarray, mean_b: np.ndarray, on_step: OnStep
) -> float:
    """The sum of the singular values of B Aᵀ, n <= m, which is formed n rows at a time: R of the QR
    decomposition of the rows so far has their singular values.
    """
    block = max(CHUNK, len(a))
    triangle = np.empty((0, len(a)))
    for start in range(0, len(b), block):
        products = _products(b[start : start + block], a, mean_b, mean_a)
        _, triangle = np.linalg.qr(np.concatenate([triangle, products]))
        on_step(min(start + block, len(b)), len(b))
    return float(np.linalg.svd(triangle, compute_uv=False).sum())


def sliced_wasserstein(
    a: ArrayLike, b: ArrayLike, n_directions: int = 500, seed: int = 0, on_step: OnStep = _ignore
) -> float:
    """Sliced 2-Wasserstein distance: root mean square over directions of the distance of the projections.

    In one dimension W_2² is the integral over q in [0, 1] of the squared difference of the quantile
    functions, step functions with steps at i/n and j/m; it is summed exactly, on the integers q·n·m.

    Args:
        a: Samples, shape (n, ...).
        b: Samples, shape (m, ...); m may differ from n.
        n_directions: Directions, uniform on the sphere.
        seed: Seed of the directions.
        on_step: For a progress bar.
    """
    a, b = _flat_pair(a, b)
    n, m = len(a), len(b)
    directions = np.random.default_rng(seed).standard_normal((n_directions, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # right ends of the parts, times n m
    weights = np.diff(ends, prepend=0) / (n * m)
    of_a, of_b = (ends - 1) // m, (ends - 1) // n  # the order statistic of each part
    total = 0.0
    for i, some in enumerate(np.array_split(directions, -(-n_directions // CHUNK))):
        quantiles_a, quantiles_b = (np.sort(_projections(x, some), axis=0) for x in (a, b))
        total += (weights @ (quantiles_a[of_a] - quantiles_b[of_b]) ** 2).sum()
        on_step(i + 1, -(-n_directions // CHUNK))
    return float(np.sqrt(total / n_directions))


def _projections(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Samples (n, D) on directions (k, D), shape (n, k)."""
    return np.concatenate([rows @ directions.T for _, rows in _chunks(x)])


def nearest_neighbour_distances(
    samples: ArrayLike, reference: ArrayLike, on_step: OnStep = _ignore
) -> np.ndarray:
    """Euclidean distance of every sample to its nearest neighbour in `reference`, shape (n,)."""
    a, b = _flat_pair(samples, reference)
    nearest = np.full(len(a), np.inf)
    for i, rows in _chunks(a):
        for _, others in _chunks(b):
            distances = torch.cdist(torch.from_numpy(rows), torch.from_numpy(others))
            np.minimum(nearest[i], distances.amin(1).numpy(), out=nearest[i])
        on_step(i.stop, len(a))
    return nearest


METRICS: dict[str, Callable[..., float]] = {
    "frechet_distance": frechet_distance,
    "sliced_wasserstein": sliced_wasserstein,
}
"""Distances of two sets, metric(a, b, on_step=...), under the names that `--mode evaluate` reports."""
