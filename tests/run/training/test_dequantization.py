"""The objective of variational dequantization against an exact model, and its training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.models import Dequantizer
from score_diffusion.run.main import main
from score_diffusion.run.training.batches import Batch
from score_diffusion.run.training.dequantization import DequantizationBound
from score_diffusion.sde_lib import (
    VPSDE,
    DrawnTimes,
    GaussianMixture,
    NoisyDataModel,
    ScoreModel,
    dequantize,
)

LEVELS, EPS = 3, 1e-5


class ExactScore(ScoreModel):
    """The score of an exact law in place of a network's."""

    def __init__(self, sde: VPSDE, law: GaussianMixture) -> None:
        super().__init__(lambda x, noise: x, sde)
        self.exact = law.score(sde)

    def forward(self, x, t, cond=None):
        return self.exact(x, t)


def batch_of(n: int, seed: int) -> Batch:
    """Images of one grey level, 1, with all noise that a batch of training has."""
    source = torch.Generator().manual_seed(seed)
    u, noise = (torch.rand(n, 1, 4, 4, generator=source), torch.randn(n, 1, 4, 4, generator=source))
    t = 1e-5 + (torch.arange(n) + torch.rand(n, generator=source)) / n * (1 - 1e-5)
    x_0 = dequantize(torch.ones(n, 1, 4, 4, dtype=torch.int64), LEVELS, u)
    return Batch(x_0, {}, DrawnTimes(t, torch.ones(n)), noise)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_loss_is_the_bound_of_the_levels(shift: float):
    """Of exact N(0.1, 0.3²) elements: the mean of [-log p(x) + log q(u)]/D + log(1/w), in bits."""
    law, sde = GaussianMixture(torch.full((1, 1, 4, 4), 0.1), torch.tensor([0.09])), VPSDE()
    model = NoisyDataModel(Dequantizer(1, channels=2, depth=1), sde)
    with torch.no_grad():
        model.net.conv_out.bias[0] = shift
    objective = DequantizationBound(ExactScore(sde, law), LEVELS, EPS, conditional=False)
    with torch.no_grad():  # times are stratified within a batch, so that batches are the independent repeats
        means = torch.stack([objective(model, batch_of(800, seed)).mean() for seed in range(8)])
    v = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    y = shift + v.logit()
    x = (y.sigmoid() - 0.5) * 1.0  # a bin of width 2/(3 - 1) around 0
    log_p = -0.5 * ((x - 0.1) / 0.3).square() - math.log(0.3) - 0.5 * math.log(2 * math.pi)
    log_q = -(torch.nn.functional.logsigmoid(y) + torch.nn.functional.logsigmoid(-y) - v.log() - (-v).log1p())
    exact = ((log_q - log_p).mean() / math.log(2)).item()
    error = means.std().item() / math.sqrt(len(means))
    assert abs(means.mean().item() - exact) < 4.5 * error and error < 0.03
    assert not list(objective.parameters())


def test_training_finds_where_the_density_is():
    """The density rises across the bin: the noise moves to the dense side, and the bound falls."""
    law = GaussianMixture(torch.full((1, 1, 4, 4), 0.5), torch.tensor([0.04]))
    sde = VPSDE()
    torch.manual_seed(0)
    model = NoisyDataModel(Dequantizer(1, channels=4, depth=1), sde)
    objective = DequantizationBound(ExactScore(sde, law), LEVELS, EPS, conditional=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    held_out = batch_of(4000, 99)
    with torch.no_grad():
        before = objective(model, held_out)
    for step in range(60):
        optimizer.zero_grad()
        objective(model, batch_of(128, step)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        after = objective(model, held_out)
    difference = after - before  # at the same noise
    assert difference.mean() < -8 * difference.std() / math.sqrt(len(difference))
    # no less than -log₂ of the mass of the bin
    mass = torch.special.ndtr(torch.tensor([(0.5 - 0.5) / 0.2, (-0.5 - 0.5) / 0.2]).double()).diff().abs()
    assert after.mean() > -mass.log2() - 4 * after.std() / math.sqrt(len(after))


@pytest.mark.slow
def test_a_dequantizer_of_a_run(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = ("--config.training.steps=3", "--config.training.batch_size=8", "--config.model.channels=4")
    train = ["--mode", "train", "--config", "dequantizer", "--workdir", str(tmp_path / "dq"), *small]
    assert main(train) == 2 and "name it by --config.training.run=RUN" in capsys.readouterr().err
    assert main([*train, f"--config.training.run={finished_run}"]) == 0
    score = ["--mode", "likelihood", "--workdir", str(finished_run), "--config.likelihood.method=reverse_sde"]
    quick = ["--config.likelihood.num_images=4", "--config.likelihood.reverse_times=4"]
    output = f"--config.sampling.output={tmp_path}"
    found = []
    for k, batch_size in enumerate((4, 3)):
        sizes = f"--config.likelihood.batch_size={batch_size}"
        used = f"--config.likelihood.dequantization={tmp_path / 'dq'}"
        assert main([*score, *quick, output, used, sizes]) == 0
        name = "likelihood.json" if k == 0 else "likelihood-2.json"
        found.append(json.loads((tmp_path / name).read_text())["reverse_sde"]["bits_per_dim"])
    assert np.isfinite(found).all() and found[0] == pytest.approx(found[1], rel=1e-5)
    capsys.readouterr()
    for wrong, message in (
        ("variational", "must be uniform, gaussian, or the run directory"),
        (str(finished_run), "name the run of a dequantizer of such images"),
    ):
        assert main([*score, *quick, output, f"--config.likelihood.dequantization={wrong}"]) == 2
        assert message in capsys.readouterr().err
    assert main(["--mode", "sample", "--workdir", str(tmp_path / "dq")]) == 2
    assert "--config.likelihood.dequantization=RUN" in capsys.readouterr().err
