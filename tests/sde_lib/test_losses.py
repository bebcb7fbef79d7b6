"""Denoising score matching, by Gauss-Hermite quadrature: expectations over x_0 and ε without Monte-Carlo
noise.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sde_lib import VPSDE, ScoreModel, denoising_score_matching, expand, sample_times
from sde_lib.losses import WEIGHTINGS
from sde_lib.score import PREDICTIONS
from tests.problems import SDES, line
from tests.sde_lib.test_score import ExactNet

every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)


def quadrature(law, nodes=120):
    """Points x_0 (n, 1), ε (n, 1) and weights (n,) that integrate over a 1-D mixture times a normal."""
    z, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    w = w / w.sum()
    x_0 = law._means + law._variances.sqrt() * z  # (K, nodes)
    weights = law._log_weights.exp()[:, None, None] * w[:, None] * w  # (K, nodes, nodes)
    x_0 = x_0[:, :, None].expand_as(weights)
    return x_0.reshape(-1, 1), z.expand_as(weights).reshape(-1, 1), weights.reshape(-1)


class Perturbed(nn.Module):
    """The exact network plus δ times fixed functions of its input: the loss must be stationary in δ at 0."""

    def __init__(self, exact):
        super().__init__()
        self.exact = exact
        self.delta = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x, noise, cond=None):
        directions = torch.stack([torch.ones_like(x), x, x.sin(), (2 * x).cos()])
        return self.exact(x, noise) + torch.einsum("k,kbd->bd", self.delta, directions)


@every_sde
@every_weighting
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [0.3, 0.6, 1.0])
def test_exact_score_is_stationary(sde, weighting, prediction, t):
    """The gradient at the exact score vanishes, a hundred thousand times below the gradient a little beside
    it.
    """
    x_0, eps, weights = quadrature(line())
    net = Perturbed(ExactNet(line(), sde, prediction))
    times = torch.full((len(x_0),), t, dtype=torch.float64)

    def gradient(delta):
        net.delta.data.fill_(delta)
        losses = denoising_score_matching(sde, ScoreModel(net, sde, prediction), x_0, times, eps, weighting)
        return torch.autograd.grad((weights * losses).sum(), net.delta)[0].norm()

    assert gradient(0.0) < 1e-5 * gradient(0.1)


@every_sde
@every_weighting
def test_excess_loss_is_the_weighted_score_error(sde, weighting):
    """L(score) - L(exact) = λ E‖score - exact‖² (Vincent, 2011): at any score, not only near the optimum."""
    law, t = line(), 0.4
    exact = law.score(sde)
    x_0, eps, weights = quadrature(law)
    times = torch.full((len(x_0),), t, dtype=torch.float64)

    def wrong(x, t):
        return exact(x, t) + torch.sin(3 * x) / expand(sde.sigma(t), x)

    def expected(score):
        return (weights * denoising_score_matching(sde, score, x_0, times, eps, weighting)).sum()

    mean, std = sde.marginal_prob(x_0, times)
    x_t = mean + std[:, None] * eps
    weight = sde.g2(times) if weighting == "likelihood" else sde.sigma(times) ** 2
    error = (weights * weight * (wrong(x_t, times) - exact(x_t, times)).square().mean(1)).sum()
    torch.testing.assert_close(expected(wrong) - expected(exact), error, rtol=1e-6, atol=0)


def test_one_value_per_sample():
    """Each sample's loss is its own: the batch's values are those of its samples alone, averaged over any
    data shape.
    """
    sde, score = VPSDE(), lambda x, t: -x * expand(1 + t, x)
    x_0, noise, t = torch.randn(5, 2, 3, 4), torch.randn(5, 2, 3, 4), torch.rand(5)
    batch = denoising_score_matching(sde, score, x_0, t, noise)
    assert batch.shape == (5,)
    for k in range(5):
        one = slice(k, k + 1)
        torch.testing.assert_close(
            batch[one], denoising_score_matching(sde, score, x_0[one], t[one], noise[one])
        )
    mean, std = sde.marginal_prob(x_0, t)
    std = expand(std, x_0)
    by_hand = ((std * score(mean + std * noise, t) + noise) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(batch, by_hand)


def test_times_are_stratified():
    t = sample_times(VPSDE(), 64, torch.Generator().manual_seed(0), eps=1e-3)
    cells = ((t - 1e-3) / (1 - 1e-3) * 64).floor().long()
    assert torch.equal(cells, torch.arange(64)) and t.dtype == torch.float32


def test_errors():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="weighting must be one of plain, likelihood"):
        denoising_score_matching(VPSDE(), lambda x, t: x, x, torch.ones(3), x, "uniform")
    with pytest.raises(ValueError, match="noise must have the shape"):
        denoising_score_matching(VPSDE(), lambda x, t: x, x, torch.ones(3), torch.zeros(2))
    with pytest.raises(ValueError, match="t must have shape"):
        denoising_score_matching(VPSDE(), lambda x, t: x, x, torch.ones(3, 1), x)
