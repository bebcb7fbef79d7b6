"""ScoreModel: every prediction type turns the exact quantity into the exact score."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sde_lib import VPSDE, ScoreModel, expand
from sde_lib.score import PREDICTIONS
from tests.problems import SDES, ring

every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


class ExactNet(nn.Module):
    """A network that outputs what its prediction type asks for, of an exact law, from what a network sees
    alone.
    """

    def __init__(self, law, sde, prediction):
        super().__init__()
        self.law, self.sde, self.prediction = law, sde, prediction

    def forward(self, x_in, noise, cond=None):
        t = self.sde.time_at_log_snr(-2 * noise)
        alpha, sigma = expand(self.sde.alpha(t), x_in), expand(self.sde.sigma(t), x_in)
        scale = (alpha**2 + sigma**2).sqrt()
        x = x_in * scale
        x_0 = self.law.denoiser(self.sde)(x, t)
        eps = (x - alpha * x_0) / sigma
        return {"noise": eps, "x0": x_0, "v": (alpha * eps - sigma * x_0) / scale, "score": -eps / sigma}[
            self.prediction
        ]


@every_sde
@every_prediction
def test_exact_output_gives_the_exact_score(sde, prediction):
    law = ring()
    model = ScoreModel(ExactNet(law, sde, prediction), sde, prediction)
    t = torch.tensor([0.05, 0.2, 0.5, 1.0], dtype=torch.float64)
    x = law.sample(4) + torch.randn(4, 2, generator=torch.Generator().manual_seed(0)) * expand(
        sde.sigma(t), law.sample(4)
    )
    torch.testing.assert_close(model(x, t), law.score(sde)(x, t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.denoise(x, t), law.denoiser(sde)(x, t), rtol=1e-5, atol=1e-5)


@every_sde
def test_network_sees_unit_variance(sde):
    """For data of unit variance the input has unit variance at every noise level; log(σ/α) is the noise."""
    seen = []

    class Spy(nn.Module):
        def forward(self, x, noise, cond=None):
            seen.append((x, noise, cond))
            return x

    n = 20_000
    generator = torch.Generator().manual_seed(0)
    for t in (1e-3, 0.3, 1.0):
        times = torch.full((n,), t)
        mean, std = sde.marginal_prob(torch.randn(n, 1, generator=generator), times)
        ScoreModel(Spy(), sde)(
            mean + std[:, None] * torch.randn(n, 1, generator=generator), times, cond=times
        )
        x, noise, cond = seen[-1]
        assert x.var().item() == pytest.approx(1, abs=0.03)
        torch.testing.assert_close(noise, (sde.sigma(times) / sde.alpha(times)).log())
        assert cond is times


def test_network_runs_in_its_own_dtype():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x, noise, cond=None):
            assert x.dtype == noise.dtype == torch.float32
            return self.layer(x)

    score = ScoreModel(Linear(), VPSDE())(
        torch.randn(3, 2, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    )
    assert score.dtype == torch.float64


def test_errors():
    with pytest.raises(ValueError, match="prediction must be one of noise, x0, v, score"):
        ScoreModel(nn.Identity(), VPSDE(), "epsilon")

    class Shrinks(nn.Module):
        def forward(self, x, noise, cond=None):
            return x[:, :1]

    with pytest.raises(ValueError, match="must return the shape of its input"):
        ScoreModel(Shrinks(), VPSDE())(torch.zeros(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match="t must have shape"):
        ScoreModel(Shrinks(), VPSDE())(torch.zeros(3, 2), torch.ones(3, 1))
