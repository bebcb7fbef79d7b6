"""Tables of stages: a stage by hand, methods in terms of the newest states, faults of a table, bounds."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from score_diffusion.samplers import Grid, LinearSampler, Stage, clip_bounds
from score_diffusion.samplers.base import CountedScore
from score_diffusion.samplers.linear import (
    GridCoefficients,
    add_weights,
    apply_stage,
    one_stage_per_step,
    stages_of_step,
)
from score_diffusion.sde_lib import VPSDE, InputError
from tests.problems import ALL_SDES, GivenNoise, carry

SDE = VPSDE()


def score(x, t):
    return t[:, None] * x.sin()


def states(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, 3, generator=generator, dtype=torch.float64)


def test_a_stage_is_its_formula():
    """keep x + Σ weights v + std z with v_0 = p x + q score, the newest value first; x itself stays."""
    x, z, old = states(3)
    before, values = x.clone(), deque([old], maxlen=2)
    stage = Stage(0.5, (0.3, -2.0), 0.9, (0.4, -1.5), std=0.7)
    out = apply_stage(stage, CountedScore(score, 4), x, values, GivenNoise([z]))
    v = 0.3 * x - 2 * 0.5 * x.sin()
    torch.testing.assert_close(out, 0.9 * x + 0.4 * v - 1.5 * old + 0.7 * z)
    torch.testing.assert_close(values[0], v)
    assert torch.equal(x, before) and values[1] is old


def test_a_stage_without_an_evaluation_adds_no_value():
    x, z = states(2)
    values, counted = deque(maxlen=2), CountedScore(score, 4)
    out = apply_stage(Stage(None, (0.0, 0.0), 2.0, (), std=0.5), counted, x, values, GivenNoise([z]))
    torch.testing.assert_close(out, 2 * x + 0.5 * z)
    assert not values and counted.calls == 0


def test_clipping_bounds_the_values_and_not_the_states():
    x = 3 * states(1)[0]
    values = deque(maxlen=1)
    out = apply_stage(Stage(0.5, (1.0, 0.0), 1.0, (1.0,)), CountedScore(score, 4), x, values, None, (-1, 2))
    torch.testing.assert_close(out, x + x.clamp(-1, 2))


def test_a_single_step_method_in_terms_of_the_newest_states():
    """Three stages, written from the start of the step, give the states that they give by hand."""
    x = states(1)[0]
    h, times = 0.3, [0.9, 0.75, 0.6]
    rows = [(0.7, [h / 2]), (0.8, [-h, 2 * h]), (1.1, [h / 6, 4 * h / 6, h / 6])]
    stages = stages_of_step(times, [(0.2, 1.0)] * 3, rows)
    assert [stage.ends_step for stage in stages] == [False, False, True]
    out = carry(LinearSampler(SDE, torch.tensor([0.9, 0.6]), lambda sde, t: stages), score, x)[-1]
    values, state = [], x
    for t, (K, W) in zip(times, rows, strict=True):
        values.append(0.2 * state + score(state, torch.full((4,), t, dtype=torch.float64)))
        state = K * x + sum(w * v for w, v in zip(W, values, strict=True))
    torch.testing.assert_close(out, state)


def test_one_stage_per_step():
    times = torch.tensor([1.0, 0.5, 0.2])
    keep, weight = torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.2])
    assert one_stage_per_step(times, (0.0, keep), keep, weight, 0.5) == [
        Stage(1.0, (0.0, pytest.approx(0.9)), pytest.approx(0.9), (pytest.approx(0.1),), 0.5),
        Stage(0.5, (0.0, pytest.approx(0.8)), pytest.approx(0.8), (pytest.approx(0.2),), 0.5),
    ]


def test_rows_of_weights_are_added_from_the_newest_value():
    assert add_weights((1.0, 2.0), (10.0,)) == (11.0, 2.0) == add_weights((10.0,), (1.0, 2.0))


@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
def test_coefficients_are_those_of_the_sde(sde):
    """λ and σ/α belong together, and f and g² are the derivatives: dα/dt = f α, dσ²/dt = 2 f σ² + g²."""
    at = GridCoefficients(sde, [0.5, 0.2])
    torch.testing.assert_close(at.lam, -at.noise_level.log(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(at.noise_level, at.sigma / at.alpha)
    h = 1e-5
    lower, upper = (GridCoefficients(sde, at.t + shift) for shift in (-h, h))
    torch.testing.assert_close((upper.alpha - lower.alpha) / (2 * h), at.f * at.alpha, rtol=1e-5, atol=1e-7)
    growth = (upper.sigma.square() - lower.sigma.square()) / (2 * h)
    torch.testing.assert_close(growth, 2 * at.f * at.sigma.square() + at.g2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage(1.0, (0, 1), 1, (1, 1))], "2 weights after only 1 evaluations"),
        ([Stage(None, (0, 0), 1, (1,))], "1 weights after only 0 evaluations"),
        ([Stage(1.0, (0, 1), 1, (1,)), Stage(0.5, (0, 1), 1, (1,))], "each of the 1 steps of the grid.*2 of"),
        ([Stage(1.0, (0, 1), 1, (1,)), Stage(0.5, (0, 1), 1, (1,), ends_step=False)], "last stage must end"),
    ],
)
def test_a_faulty_table_is_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        LinearSampler(SDE, Grid("uniform", 1), lambda sde, times: stages)


def test_what_clip_stands_for():
    assert clip_bounds(0) is None and clip_bounds(None) is None
    assert clip_bounds(1.5) == (-1.5, 1.5) and clip_bounds((-1, 2)) == (-1, 2)
    for clip in (-1.0, (1, -1), (0.0, 0.0), (1, 2, 3), float("nan")):
        with pytest.raises(InputError, match="clip must be 0 .none., a bound above 0 on the absolute value"):
            clip_bounds(clip)
