"""The perceptron against its formula, and its argument errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from score_diffusion.models import MLP

Randomize = Callable[[nn.Module], nn.Module]


def test_it_equals_the_formula(randomize: Randomize) -> None:
    """h <- h + W_2 silu((1 + scale) · W_1 h + shift), with scale and shift linear in silu(embedding)."""
    net = randomize(MLP(3, width=8, depth=2)).double()
    x, noise = torch.randn(5, 3).double(), torch.linspace(-3, 3, 5).double()

    def silu(a: torch.Tensor) -> torch.Tensor:
        return a / (1 + torch.exp(-a))

    def linear(layer: nn.Linear, a: torch.Tensor) -> torch.Tensor:
        return a @ layer.weight.T + layer.bias

    emb, h = silu(net.embedding(noise)), linear(net.linear_in, x)
    for block in net.blocks:
        scale, shift = linear(block.scale_shift, emb).split(8, dim=1)
        h = h + linear(block.linear2, silu((1 + scale) * linear(block.linear1, h) + shift))
    torch.testing.assert_close(net(x, noise), linear(net.linear_out, h))


def test_conditions_are_added_to_the_noise_embedding(randomize: Randomize) -> None:
    net = randomize(MLP(3, width=8, depth=2, num_classes=4, vector_dim=2)).double()
    x, noise = torch.randn(3, 3).double(), torch.zeros(3).double()
    label, vector = torch.tensor([3, -1, 0]), torch.randn(3, 2).double()
    out, emb = net(x, noise, {"label": label, "vector": vector}), net.embedding(noise)
    net.embedding.forward = lambda noise: (
        emb
        + torch.where(label[:, None] >= 0, net.condition.label.weight[label], 0.0)
        + net.condition.vector(vector)
        - net.condition.vector.bias
    )
    torch.testing.assert_close(net(x, noise), out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "must be at least 1, got dim=0 and depth=4"),
        ({"depth": 0}, "must be at least 1, got dim=2 and depth=0"),
        ({"num_classes": -1}, "must not be negative, got -1 and 0"),
        ({"width": 15}, "must be even and at least 2, got 15"),
        ({"embedding": "none"}, "embedding must be one of sinusoidal, sinusoidal_adm, fourier, got 'none'"),
    ],
)
def test_argument_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(**{"dim": 2} | arguments)
