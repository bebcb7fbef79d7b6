"""Fourier features of the input: their values, their damping, and a U-Net that uses them."""

from __future__ import annotations

import math

import pytest
import torch

from score_diffusion.models import UNet
from score_diffusion.models.fourier_inputs import FourierInputs
from score_diffusion.sde_lib import VPSDE


def test_without_noise_they_are_sines_and_cosines():
    x = torch.linspace(-1, 1, 32).view(1, 2, 4, 4)
    features = FourierInputs((0, 3))(x, torch.tensor([-30.0]))
    expected = [x, (math.pi * x).sin(), (math.pi * x).cos(), (8 * math.pi * x).sin(), (8 * math.pi * x).cos()]
    torch.testing.assert_close(features, torch.cat(expected, 1))
    assert FourierInputs(())(x, torch.zeros(1)) is x


def test_each_is_damped_as_its_mean_is_by_noise():
    """The mean of sin(2ⁿ π x_t) over the noise is the feature of α x_0, as the network damps it."""
    sde, t = VPSDE(), torch.tensor([0.02])
    x_0, noise = (
        torch.full((1, 1, 8, 8), 0.3),
        torch.randn(200_000, generator=torch.Generator().manual_seed(0)),
    )
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    features = FourierInputs((2,))(alpha * x_0, sde.log_noise_level(t))
    x_t = alpha * 0.3 + sigma * noise
    assert (4 * math.pi * x_t).sin().mean().item() == pytest.approx(features[0, 1, 0, 0].item(), abs=5e-3)
    assert (4 * math.pi * x_t).cos().mean().item() == pytest.approx(features[0, 2, 0, 0].item(), abs=5e-3)


def test_a_network_with_fourier_inputs():
    net = UNet(1, channels=8, multipliers=(1, 2), blocks_per_level=1, fourier_inputs=(4, 8))
    assert net.conv_in.in_channels == 5
    x = torch.randn(2, 1, 8, 8)
    assert net(x, torch.zeros(2)).shape == x.shape
    with pytest.raises(ValueError, match="must lie in 0..16, got"):
        UNet(1, fourier_inputs=(40,))
