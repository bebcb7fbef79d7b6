"""The kernel distance between two sets: an unbiased estimate of the squared maximum mean discrepancy.

    MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y),        k(x, y) = (xᵀy/D + 1)³

With x, x' from one law and y, y' from the other, all independent. Each mean runs over pairs of different
samples, so that the expectation of the estimate does not depend on the number of samples, and may be negative
where the laws are the same. It is called KID on Inception features.

Reference:
    Demystifying MMD GANs (Bińkowski et al., 2018), https://arxiv.org/abs/1801.01401, section 4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.pairwise import chunks, flat_pair


def kernel_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Unbiased squared MMD of two sets with the cubic kernel.

    Args:
        a: Samples, shape (n, ...), n at least 2.
        b: Samples, shape (m, ...), m at least 2.

    Raises:
        UserError: If a set has fewer than 2 samples, or the samples are not of one size.
    """
    a, b = flat_pair(a, b)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise UserError(f"the kernel distance needs at least 2 samples on either side, got {n} and {m}")
    within_a, within_b = ((_kernel_sum(x, x) - _diagonal(x)) / (len(x) * (len(x) - 1)) for x in (a, b))
    return float(within_a + within_b - 2 * _kernel_sum(a, b) / (n * m))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    others = y.astype(np.float64).T / x.shape[1]
    return sum(_sum_of_cubes(rows @ others + 1) for _, rows in chunks(x))


def _diagonal(x: np.ndarray) -> float:
    return sum(_sum_of_cubes((rows * rows).sum(1) / x.shape[1] + 1) for _, rows in chunks(x))


def _sum_of_cubes(x: np.ndarray) -> float:
    return float((x * x * x).sum())  # NumPy's x**3 is many times slower
