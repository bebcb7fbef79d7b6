"""Standard errors of any metric, and what the number of samples does to it, from half samples.

Both sets are split at random into 16 groups. A half sample is 8 groups of either set. There are 30 of them,
the halves that the rows of a Hadamard matrix choose and their complements: any two groups are together in
equally many. Because halves are drawn without replacement, the metric varies between them as much as it
varies between whole sets, to leading order, and they contain no sample twice, which would spoil distances to
nearest neighbours. So

    standard error      = standard deviation of the metric over the half samples
    change on halving   = mean of the metric over the half samples - metric of the whole sets

A bias of c/n is 2c/n for halves: the change on halving is its estimate, and for metrics of another law it
says in which direction, and how fast, the figure moves with the number of samples.

References:
    Pseudo-Replication: Half Samples (McCarthy, 1969), https://doi.org/10.2307/1402116: balanced half samples.
    A General Theory for Jackknife Variance Estimation (Shao & Wu, 1989),
        https://doi.org/10.1214/aos/1176347263: halves without replacement for statistics of any smoothness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from scipy.linalg import hadamard

GROUPS = 16
HALVES = 2 * (GROUPS - 1)
FEWEST = 2 * GROUPS
"""Sets of fewer samples have no standard error."""


@dataclass(frozen=True)
class Estimate:
    """A metric of two sets of samples."""

    value: float
    standard_error: float | None = None
    """From the sampling of both sets; None for sets that are too small."""
    change_on_halving: float | None = None
    """What it would change by, were there half as many samples on either side."""


class Sample(Protocol):
    """A set of samples in random order; one of no length is fixed, such as known moments."""

    def __len__(self) -> int: ...

    def subset(self: S, rows: np.ndarray) -> S:
        """The samples for which `rows`, bool (n,), is true."""


S = TypeVar("S", bound=Sample)


def half_samples(n: int) -> np.ndarray:
    """Which of n samples in random order are in which half, bool (30, n)."""
    signs = hadamard(GROUPS)[1:]
    return np.concatenate([signs > 0, signs < 0])[:, np.arange(n) % GROUPS]


def estimate(
    metric: Callable[[S, S], dict[str, float]], a: S, b: S, on_step: Callable[[], object] = lambda: None
) -> dict[str, Estimate]:
    """The figures of a metric with their standard errors.

    Args:
        metric: Gives figures by their names.
        a: Samples in random order.
        b: Samples in random order.
        on_step: Called after each of at most 31 computations, for progress bars.
    """
    whole = metric(a, b)
    on_step()
    if not whole or any(0 < len(x) < FEWEST for x in (a, b)):
        return {name: Estimate(value) for name, value in whole.items()}
    halves = []
    for rows_a, rows_b in zip(half_samples(len(a)), half_samples(len(b)), strict=True):
        halves.append(metric(a.subset(rows_a), b.subset(rows_b)))
        on_step()
    return {
        name: Estimate(value, float(np.std(of_halves)), float(np.mean(of_halves) - value))
        for name, value in whole.items()
        for of_halves in [[half[name] for half in halves]]
    }
