"""The Fréchet distance between two sets: that of the Gaussians fitted to them.

    d² = ‖m_a - m_b‖² + Tr(C_a + C_b - 2 (C_a C_b)^½)

It is called FID when the sets are features of the Inception network. The estimate from n samples is biased
upwards by about c/n, where c depends on the model too: distances from different numbers of samples cannot be
compared.

References:
    The Fréchet distance between multivariate normal distributions (Dowson & Landau, 1982),
        https://doi.org/10.1016/0047-259X(82)90077-X.
    GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017),
        https://arxiv.org/abs/1706.08500: the distance on Inception features.
    Effectively Unbiased FID and Inception Score and Where to Find Them (Chong & Forsyth, 2020),
        https://arxiv.org/abs/1911.07023: the bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.pairwise import CHUNK, chunks, flat_pair


@dataclass(frozen=True)
class GaussianFit:
    """Mean and covariance of a set of samples."""

    mean: np.ndarray
    """Shape (D,), float64."""
    covariance: np.ndarray
    """Unbiased, shape (D, D), float64."""


class Moments:
    """Mean and covariance of samples that come in chunks, merged in float64.

    Reference:
        Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan et al., 1979).
    """

    def __init__(self) -> None:
        self.count, self._mean, self._scatter = 0, np.zeros(1), np.zeros((1, 1))

    def add(self, x: np.ndarray) -> None:
        """Adds samples, shape (n, D)."""
        x = x.astype(np.float64)
        mean = x.mean(0)
        centred = x - mean
        total, shift = self.count + len(x), mean - self._mean
        between = np.outer(shift, shift) * (self.count * len(x) / total)
        self._scatter = self._scatter + centred.T @ centred + between
        self._mean = self._mean + shift * (len(x) / total)
        self.count = total

    def fit(self) -> GaussianFit:
        """The Gaussian of all samples so far, at least 2."""
        return GaussianFit(self._mean, self._scatter / (self.count - 1))


def distance_of_fits(a: GaussianFit, b: GaussianFit) -> float:
    """Squared Fréchet distance of two Gaussians of one dimension.

    The trace of (C_a C_b)^½ is that of (C_a^½ C_b C_a^½)^½, which is symmetric: pixels that never change do
    no harm.
    """
    root = _root(a.covariance)
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    difference = a.mean - b.mean
    return float(difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets.

    With the centred sets as matrices A (n, D) and B (m, D), the trace of the root is the sum of the singular
    values of A Bᵀ/√((n - 1)(m - 1)). It is computed from D x D matrices or from n x m ones, whichever are
    smaller: beyond chunks, the memory is of the order min(D, n, m)².

    Args:
        a: Samples, shape (n, ...), n at least 2.
        b: Samples, shape (m, ...), m at least 2.

    Raises:
        UserError: If a set has fewer than 2 samples, or the samples are not of one size.
    """
    a, b = flat_pair(a, b)
    if len(a) > len(b):
        a, b = b, a
    if len(a) < 2:
        raise UserError(
            f"the Fréchet distance needs at least 2 samples on either side, got {len(a)} and {len(b)}"
        )
    if a.shape[1] <= len(a):
        return distance_of_fits(*(fit_gaussian(x) for x in (a, b)))
    return _from_products(a, b)


def fit_gaussian(x: np.ndarray) -> GaussianFit:
    """The Gaussian of samples, shape (n, D), n at least 2."""
    moments = Moments()
    for _, rows in chunks(x):
        moments.add(rows)
    return moments.fit()


def _from_products(a: np.ndarray, b: np.ndarray) -> float:
    """The distance from inner products, n <= m.

    The singular values of B Aᵀ are found n rows at a time: R of the QR decomposition of the rows so far has
    them.
    """
    n, m = len(a), len(b)
    mean_a, mean_b = (sum(rows.sum(0) for _, rows in chunks(x)) / len(x) for x in (a, b))
    block, triangle = max(CHUNK, n), np.empty((0, n))
    for start in range(0, m, block):
        products = _products(b[start : start + block], a, mean_b, mean_a)
        _, triangle = np.linalg.qr(np.concatenate([triangle, products]))
    cross = np.linalg.svd(triangle, compute_uv=False).sum() / np.sqrt((n - 1) * (m - 1))
    trace_a, trace_b = (
        sum(float((rows**2).sum()) for _, rows in chunks(x, mean)) / (len(x) - 1)
        for x, mean in ((a, mean_a), (b, mean_b))
    )
    difference = mean_a - mean_b
    return float(difference @ difference + trace_a + trace_b - 2 * cross)


def _products(x: np.ndarray, y: np.ndarray, centre_x: np.ndarray, centre_y: np.ndarray) -> np.ndarray:
    """Inner products of centred samples, (n, D) and (m, D) to (n, m)."""
    products = np.empty((len(x), len(y)))
    for i, rows in chunks(x, centre_x):
        for j, others in chunks(y, centre_y):
            products[i, j] = rows @ others.T
    return products
