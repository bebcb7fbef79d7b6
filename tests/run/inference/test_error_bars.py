"""Error bars against simulated and exact laws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from score_diffusion.run.inference.error_bars import standard_error_each, standard_errors
from score_diffusion.run.inference.scoring import Scores
from score_diffusion.samplers import ExponentialAdams
from score_diffusion.sde_lib import VPSDE, log_likelihood
from tests.problems import gaussian


def nested(stds: tuple[float, float, float], shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Values of the nested model of these standard deviations."""
    noise = np.random.default_rng(seed)
    sizes = (shape[0], 1, 1), (*shape[:2], 1), shape
    return sum(std * noise.standard_normal(size) for std, size in zip(stds, sizes, strict=True)) + np.zeros(
        shape
    )


@pytest.mark.parametrize("stds", [(1.0, 0.0, 0.0), (0.5, 3.0, 0.0), (0.0, 0.5, 2.0), (1.0, 2.0, 4.0)])
def test_the_parts_are_those_of_the_model(stds):
    shape = (4000, 3, 4)
    values = nested(stds, shape)
    found = standard_errors(values)
    exact = [std / math.sqrt(count) for std, count in zip(stds, np.cumprod(shape), strict=True)]
    assert list(found) == ["images", "dequantization", "probes"]
    total = Scores(values.mean((1, 2)), 1).standard_error
    np.testing.assert_allclose(list(found.values()), exact, rtol=0.06, atol=0.25 * total)
    assert math.hypot(*found.values()) == pytest.approx(total, rel=0.05)


@pytest.mark.parametrize("shape", [(4000, 3, 4), (4000, 1, 4)])
def test_each_image_has_the_error_of_its_draws_and_probes(shape):
    """(b² + c²/P)/R for R draws of P probes; of one draw only what the probes show, c²/P."""
    _, draws, probes = shape
    found = standard_error_each(nested((5.0, 2.0, 4.0), shape))
    exact = (4.0 * (draws > 1) + 16.0 / probes) / draws
    assert found.shape == (4000,) and (found**2).mean() == pytest.approx(exact, rel=0.06)
    assert standard_error_each(np.ones((4, 1, 1))) is None


def test_a_level_of_one_value_belongs_to_the_one_above():
    values = nested((1.0, 2.0, 4.0), (2000, 1, 5))
    found = standard_errors(values)
    assert list(found) == ["images", "probes"]
    assert found["images"] == pytest.approx(math.sqrt(5 / 2000), rel=0.1)
    assert list(standard_errors(values[:, :, :1])) == ["images"]
    assert standard_errors(values[:1]) == {}


@pytest.mark.parametrize("divergence", ["hutchinson", "hutch++"])
def test_the_interval_holds_the_exact_mean_in_95_of_100_repeats(divergence):
    """100 data sets of 20 samples each of a Gaussian, whose mean log density is minus its entropy."""
    law, sde, repeats, size = gaussian(4), VPSDE(), 100, 20
    marginal = law.marginal(sde, 1e-5)
    entropy = 0.5 * marginal._variances[0].log().sum().item() + 2 * math.log(2 * math.pi * math.e)
    result = log_likelihood(
        sde,
        law.score(sde),
        law.sample(repeats * size, seed=5),
        divergence=divergence,
        n_probes=2,
        prior_logp=law.marginal(sde, sde.T).log_prob,
        solver=ExponentialAdams(32),
    )
    held = 0
    for values in -result.log_probs.numpy().reshape(repeats, size, 1, 2):
        low, high = Scores(values.mean((1, 2)), 1).interval
        held += low < entropy < high
    assert 90 <= held <= 99
