"""Precision and recall, density and coverage: fidelity and variety of samples, apart from each other.

The manifold of a set is taken to be the union of balls around its samples, each as wide as the distance to
the k-th nearest other sample of the set.

    precision   share of the samples that lie in a ball of the reference
    recall      share of the reference that lies in a ball of the samples
    density     number of reference balls that a sample lies in, on average, over k
    coverage    share of the reference balls that hold a sample

Samples of the reference's own law have a density of 1, and a coverage that follows from n, m and k only:
`expected_coverage`.

References:
    Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019),
        https://arxiv.org/abs/1904.06991: precision and recall, with k = 3.
    Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020),
        https://arxiv.org/abs/2002.09797: density and coverage, with k = 5, and lemma 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.pairwise import distances, flat_pair

K_PRECISION, K_DENSITY = 3, 5


def manifold_scores(samples: ArrayLike, reference: ArrayLike) -> dict[str, float]:
    """Precision, recall, density and coverage of samples.

    Args:
        samples: Shape (n, ...), n at least 6.
        reference: Shape (m, ...), m at least 6.

    Raises:
        UserError: If a set is smaller, or the samples are not of one size.
    """
    a, b = flat_pair(samples, reference)
    if min(len(a), len(b)) <= K_DENSITY:
        raise UserError(
            f"precision, recall, density and coverage need more than {K_DENSITY} samples on either side, got "
            f"{len(a)} and {len(b)}"
        )
    radii_a = _radii(a, (K_PRECISION,))[:, 0]
    radii_b, wide_radii_b = _radii(b, (K_PRECISION, K_DENSITY)).T
    in_reference, balls = np.empty(len(a), bool), 0
    in_samples, covered = np.zeros(len(b), bool), np.zeros(len(b), bool)
    for rows, apart in distances(a, b):  # (rows, m)
        in_reference[rows] = (apart <= radii_b).any(1)
        in_samples |= (apart <= radii_a[rows, None]).any(0)
        inside = apart < wide_radii_b
        balls += int(inside.sum())
        covered |= inside.any(0)
    return {
        "precision": float(in_reference.mean()),
        "recall": float(in_samples.mean()),
        "density": balls / (K_DENSITY * len(a)),
        "coverage": float(covered.mean()),
    }


def _radii(x: np.ndarray, neighbours: tuple[int, ...]) -> np.ndarray:
    """Distances from each sample to its k-th nearest other ones, shape (n, number of k)."""
    radii = np.empty((len(x), len(neighbours)))
    for rows, apart in distances(x, x):
        apart[np.arange(len(apart)), np.arange(rows.start, rows.stop)] = np.inf
        radii[rows] = np.partition(apart, [k - 1 for k in neighbours], axis=1)[:, [k - 1 for k in neighbours]]
    return radii


def expected_coverage(n: int, m: int, k: int = K_DENSITY) -> float:
    """The coverage to expect from n samples of the law that the m reference samples come from (lemma 1)."""
    return 1 - float(np.prod([(m - i) / (n + m - i) for i in range(1, k + 1)]))
