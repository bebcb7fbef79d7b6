"""The accuracy that is asked of a solver: the first setting whose error is a tenth of the standard error."""

from __future__ import annotations

import numpy as np
import pytest

from score_diffusion.run.inference.accuracy import least_accurate
from score_diffusion.run.inference.scoring import Scores

VALUES = np.random.default_rng(0).standard_normal(16)


@pytest.mark.parametrize("count", [16, 1600, 160_000])
def test_the_error_is_a_tenth_of_the_standard_error_and_not_less_than_needed(count: int):
    """Of scores that are off by the setting itself, in alternating directions."""
    asked = []

    def score(setting: float) -> Scores:
        asked.append(setting)
        return Scores(VALUES + setting * (-1.0) ** np.arange(16), 1)

    candidates = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    found = least_accurate(score, candidates, count)
    target = 0.1 * VALUES.std(ddof=1) / np.sqrt(count)
    assert found * 0.9 <= target < found * 9 * 1.1  # its difference from the next is 0.9 of the setting
    assert asked == list(candidates[: len(asked)]) and candidates.index(found) == len(asked) - 2


def test_the_last_setting_is_taken_where_none_is_enough():
    assert least_accurate(lambda setting: Scores(VALUES * setting, 1), (3.0, 2.0, 1.0), 10**6) == 1.0
