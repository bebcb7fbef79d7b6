"""ScoreModel: every prediction type turns the exact quantity into the exact score."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from score_diffusion.sde_lib import DDPM, VESDE, VPSDE, ScoreModel, expand, linear_betas
from score_diffusion.sde_lib.score import NOISE_INPUTS, PREDICTIONS
from tests.problems import SDES, ring

SIGMA_DATA = 0.5
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


class ExactNet(nn.Module):
    """A network that outputs what its prediction type asks for, of an exact law, from what a network sees
    alone.
    """

    def __init__(self, law, sde, prediction):
        super().__init__()
        self.law, self.sde, self.prediction = law, sde, prediction

    def time(self, noise):
        if self.prediction in ("vp", "iddpm"):
            first, second = self.sde.discrete_times()[:2]
            return first + noise * (second - first)
        level = {"edm": 4 * noise, "ve": noise + math.log(2)}.get(self.prediction, noise)
        return self.sde.time_at_log_snr(-2 * level)

    def forward(self, x_in, noise, cond=None):
        t = self.time(noise)
        alpha, sigma = expand(self.sde.alpha(t), x_in), expand(self.sde.sigma(t), x_in)
        scale = (alpha**2 + sigma**2).sqrt()
        level = sigma / alpha
        c_in = {"edm": (level**2 + SIGMA_DATA**2).rsqrt() / alpha, "ve": 1.0}.get(self.prediction, 1 / scale)
        x = x_in / c_in
        D = self.law.denoiser(self.sde)(x, t)
        eps = (x - alpha * D) / sigma
        y = x / alpha  # Table 1's variable, whose noise level is σ/α
        c_skip = SIGMA_DATA**2 / (level**2 + SIGMA_DATA**2)
        c_out = level * SIGMA_DATA * (level**2 + SIGMA_DATA**2).rsqrt()
        return {
            "noise": eps,
            "x0": D,
            "v": (alpha * eps - sigma * D) / scale,
            "score": -eps / sigma,
            "edm": (D - c_skip * y) / c_out,
            "vp": (D - y) / -level,
            "iddpm": (D - y) / -level,
            "ve": (D - y) / level,
        }[self.prediction]


@every_sde
@every_prediction
def test_exact_output_gives_the_exact_score(sde, prediction):
    law = ring()
    model = ScoreModel(ExactNet(law, sde, prediction), sde, prediction)
    t = sde.discrete_times()[[49, 200, 499, 999]]  # where iddpm's nearest step is exact
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


def test_noise_inputs_are_the_labels_of_the_papers():
    """The labels that score_sde_pytorch prints for VP and VE, continuous and discrete; EDM's Table 1."""
    t = torch.tensor([1.0, 0.5, 1e-3])

    def label(name, sde):
        return NOISE_INPUTS[name](sde, t)

    torch.testing.assert_close(label("position", VPSDE()), torch.tensor([999.0, 499.5, 0.999]))
    torch.testing.assert_close(label("step", DDPM(linear_betas(1000))), torch.tensor([999.0, 499.0, 0.0]))
    torch.testing.assert_close(label("reversed_step", VESDE()), torch.tensor([0.0, 500.0, 998.0]))
    # For data in [-1, 1] all σ are twice those for [0, 1], whose logarithm its networks are told.
    torch.testing.assert_close(
        label("log_half_level", VESDE(0.02, 100.0)), torch.tensor([50, 0.707107, 0.0100855]).log()
    )
    torch.testing.assert_close(label("quarter_log_level", VESDE()), VESDE().sigma(t).log() / 4)


@every_sde
def test_edm_with_unit_sigma_data_is_minus_v(sde):
    class Net(nn.Module):
        def forward(self, x, noise, cond=None):
            return torch.sin(3 * x) + noise[:, None]

    class MinusNet(Net):
        def forward(self, x, noise, cond=None):
            return -super().forward(x, noise)

    edm = ScoreModel(Net(), sde, "edm", sigma_data=1.0, noise_input="log_level")
    x, t = torch.randn(4, 2), torch.tensor([0.1, 0.4, 0.7, 1.0])
    torch.testing.assert_close(edm(x, t), ScoreModel(MinusNet(), sde, "v")(x, t))


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

    with pytest.raises(ValueError, match="noise_input must be one of log_level, .*, got 'sigma'"):
        ScoreModel(nn.Identity(), VPSDE(), noise_input="sigma")
    with pytest.raises(ValueError, match="sigma_data must be positive, got 0.0"):
        ScoreModel(nn.Identity(), VPSDE(), "edm", sigma_data=0.0)

    class Shrinks(nn.Module):
        def forward(self, x, noise, cond=None):
            return x[:, :1]

    with pytest.raises(ValueError, match="must return the shape of its input"):
        ScoreModel(Shrinks(), VPSDE())(torch.zeros(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match="t must have shape"):
        ScoreModel(Shrinks(), VPSDE())(torch.zeros(3, 2), torch.ones(3, 1))
