"""Samplers with a step size for each sample: exact flows, laws, the Brownian memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from score_diffusion.samplers import AdaptiveSDESampler, Grid, ODESampler, uniform_grid
from score_diffusion.samplers.adaptive import BrownianMemory
from score_diffusion.sde_lib import VPSDE, Gaussian, InputError, SampleNoise
from tests.problems import ALL_SDES, SDES, flow, line, ring, sampling_floor, sliced_wasserstein


@pytest.mark.slow
@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
@pytest.mark.parametrize(
    ("method", "tolerances"),
    [("dopri5", (1e-4, 1e-6)), ("bosh3", (1e-4, 1e-6)), ("adaptive_heun", (1e-3, 1e-5))],
    ids=["dopri5", "bosh3", "adaptive_heun"],
)
def test_adaptive_methods_meet_their_tolerance(method, tolerances, sde):
    """The exact flow within a few tolerances, with fewer evaluations for a looser one."""
    law, costs = line(), []
    x_T = sde.prior_std * torch.linspace(-1.5, 1.5, 41, dtype=torch.float64)[:, None]
    exact = flow(sde, law, x_T, sde.T, sde.sampling_eps)
    for tolerance in tolerances:
        sampler = ODESampler(sde, uniform_grid(sde, 1), method=method, rtol=tolerance, atol=tolerance)
        result = sampler(law.score(sde), x_T.shape, x_T=x_T)
        assert (result.samples - exact).abs().median() < 20 * tolerance
        costs.append(result.nfe)
    assert costs[0] < costs[1]


def test_a_brownian_path_is_cut_and_never_redrawn():
    """Rejected increments are used up before new ones are drawn: pieces of a step sum to its increment."""
    noise = SampleNoise(0, 0, (3, 2), dtype=torch.float64)
    memory = BrownianMemory(torch.zeros(3, 2, dtype=torch.float64))
    h, whole = memory.take(torch.full((3,), 0.8, dtype=torch.float64), noise.normal())
    rejected = torch.tensor([True, True, False])
    memory.keep_rejected(rejected, h, whole)
    lengths, total = torch.zeros(3).double(), torch.zeros_like(whole)
    for step in (0.3, 0.1, 0.9):  # the last one reaches beyond what is left and is cut there
        taken, w = memory.take(torch.full((3,), step, dtype=torch.float64), noise.normal())
        lengths, total = lengths + taken, total + w
    torch.testing.assert_close(lengths, torch.tensor([0.8, 0.8, 1.3], dtype=torch.float64))
    torch.testing.assert_close(total[rejected], whole[rejected])


def test_pieces_of_a_brownian_path_have_its_law():
    """Cut at random, the increments are still independent and of variance h."""
    n = 20000
    noise = SampleNoise(1, 0, (n, 1), dtype=torch.float64)
    memory = BrownianMemory(torch.zeros(n, 1, dtype=torch.float64))
    h, whole = memory.take(torch.ones(n).double(), noise.normal())
    memory.keep_rejected(whole[:, 0] > -9, h, whole)
    first, a = memory.take(torch.full((n,), 0.3, dtype=torch.float64), noise.normal())
    second, b = memory.take(torch.ones(n).double(), noise.normal())
    assert (second - 0.7).abs().max() < 1e-12
    for length, w in ((first, a), (second, b)):
        assert stats.kstest((w[:, 0] / length.sqrt()).numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(a[:, 0], b[:, 0])[0, 1]) < 4 / n**0.5


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
def test_the_adaptive_sde_draws_from_the_law(sde):
    law, n = ring(), 400
    result = AdaptiveSDESampler(sde)(law.score(sde), (n, 2), seed=1)
    assert sliced_wasserstein(result.samples, law.sample(n, seed=77)) < 2 * sampling_floor(law, n)
    assert len(result.nfe_each.unique()) > 1


def test_a_trajectory_of_the_adaptive_sde_passes_the_times_of_the_grid():
    """Recorded at the end of the step that passes each time; its last state is the sample."""
    sde, law = VPSDE(), Gaussian(torch.zeros(2), torch.eye(2))
    sampler = AdaptiveSDESampler(sde, Grid("uniform", 4), denoise=False)
    result = sampler(law.score(sde), (300, 2), seed=0, trajectory=True)
    assert result.trajectory.shape == (5, 300, 2) and torch.equal(result.trajectory[-1], result.samples)
    assert (result.trajectory.std(dim=1) - 1).abs().max() < 0.15  # N(0, I) stays N(0, I) on VP


@pytest.mark.parametrize("make", [AdaptiveSDESampler, ODESampler])
def test_mistakes_are_explained(make):
    for options in ({"rtol": 0.0}, {"atol": -1.0}):
        with pytest.raises(InputError, match="rtol and atol must be above 0, got"):
            make(VPSDE(), **options)
    with pytest.raises(InputError, match=r"found no step that meets rtol=.* at t = 1: check that the score"):
        make(VPSDE())(lambda x, t: x * torch.nan, (2, 2))
