"""The times that training draws: their laws against SciPy's, their stratification, their weights."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from score_diffusion.sde_lib import (
    DDPM,
    VESDE,
    VPSDE,
    ChainTimes,
    DrawnTimes,
    ImportanceTimes,
    InputError,
    LikelihoodTimes,
    LogNormalTimes,
    UniformTimes,
    linear_betas,
    noisy_times,
    sample_times,
)
from score_diffusion.sde_lib.losses import likelihood_weighting
from tests.problems import ALL_SDES

SDES = ALL_SDES | {"ddpm": DDPM(linear_betas(1000))}
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
# a law that all SDEs, VE with its σ_min = 0.01 too, hold but for less than one in 100,000
P_MEAN, P_STD = -0.5, 0.9


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_uniform_times_are_stratified():
    t = sample_times(VPSDE(), 64, generator(), eps=1e-3)
    cells = ((t - 1e-3) / (1 - 1e-3) * 64).floor().long()
    assert torch.equal(cells, torch.arange(64)) and t.dtype == torch.float32
    times = UniformTimes(VPSDE(), eps=1e-3)
    drawn = times.draw(64, generator())
    assert torch.equal(drawn.t, t) and torch.equal(drawn.weights, torch.ones(64)) and drawn.k is None
    assert times.first == 1e-3 and not times.in_chain and not times.state_dict()


@pytest.mark.slow
@every_sde
def test_log_levels_are_normal(sde):
    """Independent draws, one at a time, and large stratified ones: of these the distance is below 1/B."""
    times = LogNormalTimes(sde, P_MEAN, P_STD)
    source = generator()
    alone = torch.cat([times.draw(1, source).t for _ in range(3000)])
    law = stats.norm(P_MEAN, P_STD)
    assert stats.kstest(sde.log_noise_level(alone.double()).numpy(), law.cdf).pvalue > 0.01
    together = times.draw(5000, source).t
    assert stats.kstest(sde.log_noise_level(together.double()).numpy(), law.cdf).statistic < 1.01 / 5000


@every_sde
def test_one_time_in_each_cell_of_equal_probability(sde):
    t = LogNormalTimes(sde, P_MEAN, P_STD).draw(64, generator(1)).t
    u = stats.norm(P_MEAN, P_STD).cdf(sde.log_noise_level(t.double()).numpy())
    assert t.dtype == torch.float32 and (u * 64).astype(int).tolist() == list(range(64))
    assert (u * 64 % 1).std() < 1e-3  # one offset for all


@every_sde
def test_the_table_equals_bisection(sde):
    """To float32's digits; DDPM's path has kinks at its 1,000 points, which the table cuts off."""
    t = LogNormalTimes(sde, -1.2, 1.2).draw(999, generator(2)).t.double()
    u = torch.rand(1, generator=generator(2), dtype=torch.float64)
    z = torch.special.ndtri((torch.arange(999) + u) / 999)
    exact = sde.time_at_log_noise_level(-1.2 + 1.2 * z).clamp(1e-5, sde.T)
    torch.testing.assert_close(t, exact, rtol=5e-6 if isinstance(sde, DDPM) else 1e-6, atol=0)


@every_sde
def test_draws_outside_the_interval_are_clamped(sde):
    for p_mean, end in ((-300.0, 1e-4), (300.0, sde.T)):
        t = LogNormalTimes(sde, p_mean, 1.0, eps=1e-4).draw(8, generator()).t
        torch.testing.assert_close(t, torch.full((8,), end), rtol=1e-6, atol=0)
    everywhere = LogNormalTimes(sde, 0.0, 100.0).draw(4000, generator()).t
    assert everywhere.isfinite().all() and everywhere.min() > 0.99e-5 and everywhere.max() <= sde.T


def test_the_share_at_ve_lower_end():
    """P(log σ̃ < log 0.01), as the class's docstring has it."""
    t = LogNormalTimes(VESDE()).draw(100_000, generator()).t
    share = (t <= 1.001e-5).double().mean().item()
    assert share == pytest.approx(stats.norm(-1.2, 1.2).cdf(math.log(0.01)), rel=0.02)
    assert share == pytest.approx(0.002, abs=5e-4)


def test_p_std_must_be_positive():
    with pytest.raises(InputError, match="p_std must be above 0, got 0"):
        LogNormalTimes(VESDE(), 0.0, 0)


# The times of a chain.

CHAINS = {"ddpm": DDPM(linear_betas(25)), "vp": VPSDE(N=25), "ve": VESDE(N=25)}
every_chain = pytest.mark.parametrize("sde", CHAINS.values(), ids=CHAINS.keys())


@every_chain
def test_chain_times_are_equally_likely_and_carry_their_index(sde):
    times = ChainTimes(sde)
    drawn = times.draw(5000, generator())
    assert torch.equal(drawn.t, noisy_times(sde)[drawn.k]) and times.first == drawn.t.min()
    assert torch.equal(drawn.t.unique(), noisy_times(sde)) and (sde.sigma(drawn.t) > 0).all()
    counts = drawn.k.bincount().double()
    assert (counts / 5000 * len(counts) - 1).abs().max() < 0.01
    assert (drawn.weights == 1).all() and times.in_chain and not times.state_dict()


def at(k: torch.Tensor) -> DrawnTimes:
    return DrawnTimes(k.double(), torch.ones(len(k)), k)


def test_importance_times_follow_the_losses():
    """p_k ∝ the root mean square of the last ten losses, and the weights keep the mean unbiased."""
    times = ImportanceTimes(DDPM([0.1, 0.2, 0.3, 0.4]))
    scale = torch.tensor([8.0, 4.0, 2.0, 1.0]).double()
    for i in range(9):
        times.update(at(torch.arange(4)), 100 * scale)
        assert (times.probabilities() == 0.25).all(), i
    for _ in range(3):  # 15 of each time in three batches: the ten newest remain, whatever the batches
        k = torch.arange(4).repeat(5)
        times.update(at(k), scale[k])
    assert (times.losses == scale[:, None]).all()
    torch.testing.assert_close(times.probabilities(), 0.999 * scale / 15 + 0.001 / 4)
    drawn = times.draw(20000, generator())
    k, weights = drawn.k, drawn.weights
    assert torch.equal(drawn.t, noisy_times(DDPM([0.1, 0.2, 0.3, 0.4]))[k])
    torch.testing.assert_close(weights, 1 / (4 * times.probabilities()[k]))
    assert (weights * scale[k]).mean().item() == pytest.approx(15 / 4, rel=0.01)
    counts = torch.bincount(k, minlength=4) / 20000
    torch.testing.assert_close(counts.double(), times.probabilities(), atol=0.015, rtol=0)


def test_importance_times_in_one_large_batch_and_from_a_state_dict():
    sde = DDPM([0.1, 0.2])
    times = ImportanceTimes(sde, history=3)
    times.update(at(torch.tensor([0, 1, 0, 0, 0, 1, 0])), torch.tensor([1.0, 7, 2, 3, 4, 8, 5]))
    assert sorted(times.losses[0].tolist()) == [3, 4, 5] and times.counts.tolist() == [5, 2]
    copy = ImportanceTimes(sde, history=3)
    copy.load_state_dict(times.state_dict())
    for each in (times, copy):
        each.update(at(torch.tensor([1])), torch.tensor([9.0]))
    torch.testing.assert_close(copy.probabilities(), times.probabilities())
    assert copy.probabilities()[1] > 0.6


# Times for the likelihood.


@every_sde
def test_likelihood_times_are_uniform_in_the_noise_level_and_their_weights_undo_the_weighting(sde):
    times = LikelihoodTimes(sde, eps=1e-4)
    drawn = times.draw(64, generator(3))
    low, high = sde.log_noise_level(torch.tensor([1e-4, sde.T], dtype=torch.float64)).tolist()
    place = (sde.log_noise_level(drawn.t.double()) - low) / (high - low) * 64
    assert place.long().tolist() == list(range(64)) and (place % 1).std() < 1e-2
    factor = drawn.weights * likelihood_weighting(sde, drawn.t)
    rtol = 0.02 if isinstance(sde, DDPM) else 1e-3  # DDPM's slope jumps at the points of its chain
    torch.testing.assert_close(
        factor, torch.full((64,), 2 * (high - low) / (sde.T - 1e-4)), rtol=rtol, atol=0
    )


@every_sde
def test_likelihood_times_keep_the_mean_of_losses(sde):
    """The weighted mean of h(t) is its mean over [eps, T], here of a loss as large where there is noise."""
    times, eps = LikelihoodTimes(sde, eps=1e-3), 1e-3
    drawn = times.draw(20_000, generator(4))
    grid = torch.linspace(eps, sde.T, 200_001, dtype=torch.float64)

    def loss(t):
        return t.cos() + 0.5

    mean = torch.trapezoid(loss(grid), grid) / (sde.T - eps)
    assert (drawn.weights * loss(drawn.t)).mean().item() == pytest.approx(mean.item(), rel=5e-3)
