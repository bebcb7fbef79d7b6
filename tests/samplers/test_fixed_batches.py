"""Scores in batches of one size do not depend on the batch, bit for bit."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.models import UNet
from score_diffusion.samplers import FixedBatches
from score_diffusion.sde_lib import VPSDE, InputError, ScoreModel


def test_fixed_batches_make_a_network_independent_of_the_batch():
    """Bit for bit, for a network whose convolutions and matrix products are not."""
    torch.manual_seed(0)
    net = UNet(1, channels=16, multipliers=(1, 2), blocks_per_level=1, heads=2)
    for parameter in net.parameters():  # the last layers of a new network are zero
        torch.nn.init.normal_(parameter, std=0.1)
    model = ScoreModel(net.eval(), VPSDE())
    score = FixedBatches(model, 4)
    assert score.device == model.device
    x, t = torch.randn(10, 1, 8, 8), torch.rand(10) + 0.01
    with torch.no_grad():
        whole = score(x, t)
        for sizes in ((1, 9), (3, 7), (10,), (1,) * 10):
            pieces = [score(a, b) for a, b in zip(x.split(sizes), t.split(sizes), strict=True)]
            assert torch.equal(whole, torch.cat(pieces))
        torch.testing.assert_close(whole, model(x, t), rtol=1e-4, atol=1e-4)


def test_the_size_is_positive():
    with pytest.raises(InputError, match="size must be at least 1, got 0"):
        FixedBatches(lambda x, t: x, 0)
