from __future__ import annotations

import math

import pytest
import torch

from score_diffusion.run.training.statistics import BINS, TrainingStatistics
from score_diffusion.sde_lib import VPSDE

YES, NO = torch.tensor(True), torch.tensor(False)


def test_losses_by_noise_level():
    sde = VPSDE()
    statistics = TrainingStatistics(64, sde.log_noise_level, (1e-5, 0.999))
    t, losses = [], []
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        t.append(torch.rand(64, generator=generator))
        losses.append(torch.rand(64, generator=generator))
        statistics.add(step, YES, losses[-1].mean(), losses[-1][0], losses[-1], t[-1])
    statistics.add(2, NO, losses[0].mean() * math.nan, losses[0][0], losses[0], t[0])
    summary = statistics.summary()
    levels, losses = sde.log_noise_level(torch.cat(t)), torch.cat(losses)
    edges = [-math.inf, *summary.level_edges, math.inf]
    assert len(summary.level_losses) == BINS
    for low, high, mean in zip(edges[:-1], edges[1:], summary.level_losses, strict=True):
        inside = losses[(levels > low) & (levels <= high)]
        assert mean == pytest.approx(inside.mean().item(), rel=1e-5) if len(inside) else math.isnan(mean)
    assert summary.loss == pytest.approx(losses.mean().item(), rel=1e-5) and summary.skipped == 1
    assert summary.grad_norm == pytest.approx((losses[0] + losses[64]).item() / 2, rel=1e-5)
    statistics.reset()
    assert math.isnan(statistics.summary().loss)


def test_the_longest_streak_of_skipped_steps_goes_beyond_a_point_of_the_log():
    statistics = TrainingStatistics(1)
    one = torch.ones(1)

    def add(steps: str) -> None:
        for ok in steps:
            statistics.add(7, YES if ok == "." else NO, one[0], one[0], one, None)

    add("..xx.x")
    summary = statistics.summary()
    assert (summary.skipped, summary.longest_skipped_streak) == (3, 2)
    statistics.reset()
    add("xx.x")
    summary = statistics.summary()
    assert (summary.skipped, summary.longest_skipped_streak) == (3, 3)
    assert summary.level_losses == summary.level_edges == []


def test_the_last_skipped_batch_is_kept():
    statistics = TrainingStatistics(2, VPSDE().log_noise_level, (1e-5, 0.999))
    for step, ok in ((0, YES), (1, NO), (2, NO), (3, YES)):
        losses = torch.tensor([float(step), math.nan])
        statistics.add(step, ok, losses.mean(), losses[0], losses, torch.full((2,), 0.1 * step))
    assert statistics.skipped_step == 2
    t, losses = statistics.skipped_batch
    assert t.tolist() == pytest.approx([0.2, 0.2]) and losses[0] == 2 and losses[1].isnan()
