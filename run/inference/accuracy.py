"""How accurate a solver must be: its error is to be a small part of the standard error of the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from score_diffusion.run.distributed import processes
from score_diffusion.run.inference.scoring import Scores

PART = 0.1
"""The solver's error over the standard error of the mean, at most."""


def least_accurate(score: Callable[[float], Scores | None], candidates: Sequence[float], count: int) -> float:
    """The first of some settings whose error is small enough. Every rank calls it, and gets the same.

    The error of a setting is the mean difference of a sample's score from that of the next setting, at the
    same noise. It is to be a tenth of the standard error of the mean over all samples.

    Args:
        score: The scores of a few samples, of at least two, at a setting; None on ranks other than the first.
        candidates: Settings, each more accurate than the one before.
        count: Number of samples in all.
    """
    coarse = score(candidates[0])
    for setting, finer in zip(candidates[:-1], candidates[1:], strict=True):
        fine = score(finer)
        if processes.from_rank_0(lambda a=coarse, b=fine: _is_accurate(a, b, count)):  # type: ignore[misc]
            return setting
        coarse = fine
    return candidates[-1]


def _is_accurate(coarse: Scores | None, fine: Scores | None, count: int) -> bool:
    assert coarse is not None and fine is not None  # on rank 0
    error = float(np.abs(coarse.values - fine.values).mean())
    return error <= PART * float(fine.values.std(ddof=1)) / math.sqrt(count)
