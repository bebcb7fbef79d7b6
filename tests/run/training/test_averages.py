"""Averages of weights against their formulas."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.training.averages import Average, Averages, exponential, power, power_exponent


def moving(average: Average, weights: list[float]) -> float:
    """The average after a single weight took these values."""
    model = nn.Linear(1, 1, bias=False)
    for n, weight in enumerate(weights):
        nn.init.constant_(model.weight, weight)
        average.update(model, torch.tensor(float(n), dtype=torch.float64), torch.tensor(1.0))
    return average.module.weight.item()


def test_the_exponential_average_follows_its_formula():
    weights = [float(n**2) for n in range(12)]
    expected = weights[0]
    for n in range(1, 12):
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights[n]
    average = Average(nn.Linear(1, 1, bias=False), exponential(0.3))
    assert moving(average, weights) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.25])
def test_the_power_average_has_its_profile_and_its_width(sigma_rel: float):
    gamma, steps = power_exponent(sigma_rel), 50
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)  # the integral of the profile up to each step
    weights = np.random.default_rng(0).normal(size=steps)
    average = Average(nn.Linear(1, 1, bias=False), power(sigma_rel))
    assert moving(average, weights.tolist()) == pytest.approx(np.diff(edges) @ weights, abs=1e-6)

    def moment(k: int) -> float:
        return quad(lambda tau: tau**k * (gamma + 1) * tau**gamma, 0, 1)[0]

    assert np.sqrt(moment(2) - moment(1) ** 2) == pytest.approx(sigma_rel, rel=1e-6)


def test_averages_are_updated_together_or_not_at_all():
    model = nn.Linear(2, 2)
    averages = Averages(model, 0.5, extra_decays=(0.9,), sigma_rels=(0.1,))
    assert list(averages.extra) == ["ema_0.9", "power_0.1"]
    for use in (True, True, False):
        nn.init.normal_(model.weight)
        before = [average.module.weight.clone() for average in (averages.main, *averages.extra.values())]
        averages.update(model, torch.tensor(use))
        for average, old in zip((averages.main, *averages.extra.values()), before, strict=True):
            assert torch.equal(average.module.weight, old) != use
    assert averages.updates == 2


KEYS = (
    "--config.training.extra_ema_decays=0.3",
    "--config.training.ema_sigma_rels=0.05,0.1",
    "--config.training.snapshot_every=2",
)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_averages(cli: Callable, tmp_path: Path, capsys):
    assert cli("train", tmp_path / "straight", *KEYS) == 0
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/00000008")
    shutil.rmtree(tmp_path / "resumed/snapshots/00000006")
    assert cli("train", tmp_path / "resumed", *KEYS) == 0
    a, b = (checkpoint.latest(tmp_path / name) for name in ("straight", "resumed"))
    assert len(a.averages) == 3 * len(a.ema)
    assert all(torch.equal(a.averages[key], b.averages[key]) for key in a.averages)
    name = "snapshots/00000006/averages.safetensors"
    assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
