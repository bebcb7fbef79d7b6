"""Log-normal noise levels against the normal law, and their stratification."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from score_diffusion.sde_lib import DDPM, VESDE, LogNormalTimes, linear_betas
from tests.problems import ALL_SDES

SDES = ALL_SDES | {"ddpm": DDPM(linear_betas(1000))}
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
# a law that all SDEs, VE with its σ_min = 0.01 too, hold but for less than one in 100,000
P_MEAN, P_STD = -0.5, 0.9


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@every_sde
def test_log_levels_are_normal(sde):
    """Independent draws, one at a time, and large stratified ones: of these the distance is below 1/B."""
    times = LogNormalTimes(sde, P_MEAN, P_STD)
    source = generator()
    alone = torch.cat([times.draw(1, source) for _ in range(3000)])
    law = stats.norm(P_MEAN, P_STD)
    assert stats.kstest(sde.noise_level(alone.double()).numpy(), law.cdf).pvalue > 0.01
    together = times.draw(5000, source)
    assert stats.kstest(sde.noise_level(together.double()).numpy(), law.cdf).statistic < 1.01 / 5000


@every_sde
def test_one_time_in_each_cell_of_equal_probability(sde):
    t = LogNormalTimes(sde, P_MEAN, P_STD).draw(64, generator(1))
    u = stats.norm(P_MEAN, P_STD).cdf(sde.noise_level(t.double()).numpy())
    assert t.dtype == torch.float32 and (u * 64).astype(int).tolist() == list(range(64))
    assert (u * 64 % 1).std() < 1e-3  # one offset for all


@every_sde
def test_the_table_equals_bisection(sde):
    """To float32's digits; DDPM's path has kinks at its 1,000 points, which the table cuts off."""
    t = LogNormalTimes(sde, -1.2, 1.2).draw(999, generator(2)).double()
    u = torch.rand(1, generator=generator(2), dtype=torch.float64)
    z = torch.special.ndtri((torch.arange(999) + u) / 999)
    exact = sde.time_at_log_snr(-2 * (-1.2 + 1.2 * z)).clamp(1e-5, sde.T)
    torch.testing.assert_close(t, exact, rtol=5e-6 if isinstance(sde, DDPM) else 1e-6, atol=0)


@every_sde
def test_what_lies_beyond_the_ends_is_put_there(sde):
    for p_mean, end in ((-300.0, 1e-4), (300.0, sde.T)):
        t = LogNormalTimes(sde, p_mean, 1.0, eps=1e-4).draw(8, generator())
        torch.testing.assert_close(t, torch.full((8,), end), rtol=1e-6, atol=0)
    everywhere = LogNormalTimes(sde, 0.0, 100.0).draw(4000, generator())
    assert everywhere.isfinite().all() and everywhere.min() > 0.99e-5 and everywhere.max() <= sde.T


def test_the_share_at_ve_lower_end():
    """P(log σ̃ < log 0.01), as the class's docstring has it."""
    t = LogNormalTimes(VESDE()).draw(100_000, generator())
    share = (t <= 1.001e-5).double().mean().item()
    assert share == pytest.approx(stats.norm(-1.2, 1.2).cdf(math.log(0.01)), rel=0.02)
    assert share == pytest.approx(0.002, abs=5e-4)


def test_p_std_must_be_positive():
    with pytest.raises(ValueError, match="p_std must be above 0, got 0"):
        LogNormalTimes(VESDE(), 0.0, 0)
