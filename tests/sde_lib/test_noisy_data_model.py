"""What a network of noisy data sees, under every SDE."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from score_diffusion.sde_lib import NoisyDataModel, ScoreModel
from tests.problems import ALL_SDES


class Seen(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, noise, other=None):
        self.input = (x, noise, other)
        return self.scale * x


@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
def test_the_input_is_that_of_a_score_model(sde):
    x = sde.prior_std * torch.randn(3, 2, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64) * sde.T
    ours, theirs = Seen(), Seen()
    model = NoisyDataModel(ours, sde)
    assert model(x, t).dtype == torch.float64 and model.any_dtype
    ScoreModel(theirs, sde)(x, t)
    for a, b in zip(ours.input[:2], theirs.input[:2], strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    other = torch.ones(1)
    model(x, t, other)
    assert ours.input[2] is other
