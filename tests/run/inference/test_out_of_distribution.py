"""Scores of other data against closed forms: normal scores, and areas known from theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from score_diffusion.run.inference.out_of_distribution import OtherData, Separation
from score_diffusion.run.inference.scoring import Scores


def test_the_area_of_two_normals_and_its_error():
    """AUROC = Φ(d/√2) for N(0, 1) and N(d, 1); 200 repeats lie within 1.96 standard errors as they should."""
    source, d = np.random.default_rng(0), 1.0
    exact, held = stats.norm.cdf(d / math.sqrt(2)), 0
    for _ in range(200):
        found = Separation.of(source.standard_normal(80), d + source.standard_normal(60))
        held += abs(found.auroc - exact) < 1.96 * found.standard_error
    assert 180 <= held <= 199
    assert Separation.of(np.zeros(5), np.ones(7)) == Separation(1.0, 0.0)


def test_simple_data_are_more_likely_and_not_typical():
    source = np.random.default_rng(1)
    held_out, other = Scores(3 + source.standard_normal(500), 1), Scores(np.full(300, 0.0), 1)
    found = OtherData("flat.npy", held_out, other)
    assert found.is_more_likely and found.by_likelihood.auroc < 0.01
    # |0 - 3| is beyond all but 0.27 % of the held-out samples
    assert found.by_typicality.auroc == pytest.approx(1 - 2 * stats.norm.sf(3.0), abs=0.01)
    record = found.record("bits_per_dim")
    assert record["more_likely_than_held_out"] and record["num_images"] == 300
    assert record["auroc"]["likelihood"]["value"] < 0.01
    assert not OtherData("x", held_out, Scores(held_out.values - 0.01, 1)).is_more_likely
