"""What the standard error of a mean over images consists of, by a nested analysis of variance.

The value of image i with dequantization noise r and probe p is y_irp = μ + a_i + b_ir + c_irp. The mean over
all n R P values has the variance

    σ_a²/n + σ_b²/(n R) + σ_c²/(n R P),

which is estimated by the variance of the images' means over n. The variances within images and within draws
split it. More images make all three parts smaller; more probes the last one only.

Reference:
    Variance Components (Searle et al., 1992), https://doi.org/10.1002/9780470316856: nested random models.
"""

from __future__ import annotations

import math

import numpy as np

LEVELS = ("images", "dequantization", "probes")


def standard_errors(values: np.ndarray) -> dict[str, float]:
    """The parts of the standard error of the mean, by name. Their squares add up to that of the mean,
    unless an estimate below 0 was replaced by 0.

    A level of a single value adds nothing to the one above, which then includes it.

    Args:
        values: Shape (images, draws, probes).

    Returns:
        Standard errors of the levels that have more than one value; none where there is one image.
    """
    if len(values) < 2:
        return {}
    counts = np.cumprod(values.shape)  # values of each level: n, n R, n R P
    parts, below = {}, 0.0
    for level in (2, 1, 0):
        if values.shape[level] > 1:
            means = values.mean(axis=tuple(range(level + 1, 3)))
            total = float(means.var(axis=level, ddof=1).mean()) / counts[level]  # with the levels below
            parts[LEVELS[level]] = math.sqrt(max(0.0, total - below))
            below = total
    return dict(reversed(parts.items()))


def standard_error_each(values: np.ndarray) -> np.ndarray | None:
    """The standard error of each image's mean over its draws and probes, shape (images,).

    With several draws it is that of their means, which includes the probes'. Of a single draw it is the
    probes' only; None where there is one of either.

    Args:
        values: Shape (images, draws, probes).
    """
    _, draws, probes = values.shape
    repeated = values.mean(2) if draws > 1 else values[:, 0]
    count = draws if draws > 1 else probes
    return repeated.std(1, ddof=1) / math.sqrt(count) if count > 1 else None
