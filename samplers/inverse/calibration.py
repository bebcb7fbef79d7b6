"""Calibration of posterior samples: how often their intervals hold the truth.

Let the truth be one more draw from the law of n samples. Its rank among them is then uniform, and it lies
between the i-th and the j-th smallest with probability (j - i)/(n + 1), whatever the law. The central
interval of level q runs between the places (1 ± q)/2 · (n + 1) in the sorted samples, interpolated between
neighbours. Over-confident samples hold the truth less often than q, over-dispersed ones more often.

Reference:
    Sample Quantiles in Statistical Packages (Hyndman & Fan, 1996),
        https://doi.org/10.2307/2684934: definition 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from score_diffusion.sde_lib import InputError


def central_interval(samples: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The ends of the element-wise central interval of a level.

    Args:
        samples: Posterior samples, shape (n, ...), with n + 1 >= 2/(1 - level).
        level: q in (0, 1).

    Returns:
        The lower and the upper ends, each of shape (...).

    Raises:
        InputError: If the level does not lie in (0, 1), or there are too few samples for it.
    """
    n = len(samples)
    if not 0 < level < 1:
        raise InputError(f"level must lie in (0, 1), got {level}")
    lower, upper = ((1 + sign * level) / 2 * (n + 1) - 1 for sign in (-1, 1))  # places from 0
    if lower < -1e-9:
        least = math.ceil(2 / (1 - level) - 1e-9) - 1
        raise InputError(f"an interval of level {level} needs {least} samples or more, got {n}")
    ordered = samples.sort(0).values
    return _at(ordered, lower), _at(ordered, upper)


def _at(ordered: Tensor, place: float) -> Tensor:
    place = min(max(place, 0.0), len(ordered) - 1.0)
    below = min(int(place), len(ordered) - 2)
    return torch.lerp(ordered[below], ordered[below + 1], place - below)


def interval_coverage(
    samples: Tensor, truth: Tensor, levels: Sequence[float] = (0.5, 0.9), where: Tensor | None = None
) -> Tensor:
    """The share of elements of the truth that lie inside the central intervals of posterior samples.

    Args:
        samples: Posterior samples, shape (n, *shape), or (n, B, *shape) for B truths.
        truth: What was measured, shape (*shape) or (B, *shape).
        levels: Levels of the intervals; calibrated samples have a coverage of about each.
        where: The elements to count, booleans that broadcast to the truth, such as the missing pixels; None
            for all. Elements on which all samples agree with the truth lie inside.

    Returns:
        The coverage of each level, shape (len(levels),), float64.

    Raises:
        InputError: If shapes disagree, a level does not lie in (0, 1), there are too few samples, or no
            element is counted.
    """
    if samples.shape[1:] != truth.shape:
        raise InputError(
            f"samples must have shape (n, {', '.join(map(str, truth.shape))}) for this truth, got "
            f"{tuple(samples.shape)}"
        )
    counted = torch.ones_like(truth, dtype=torch.bool) if where is None else where.expand(truth.shape)
    if not counted.any():
        raise InputError("no element is counted: `where` is false everywhere")
    shares = []
    for level in levels:
        lower, upper = central_interval(samples, level)
        shares.append(((truth >= lower) & (truth <= upper))[counted].double().mean())
    return torch.stack(shares)
