"""The network of variational dequantization: uniform noise at first, images of any size."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.models import Dequantizer


@pytest.mark.parametrize(("dims", "size"), [(1, (9,)), (2, (5, 7)), (3, (4, 4, 4))])
def test_it_starts_at_zero_and_every_weight_takes_part(dims: int, size: tuple[int, ...]):
    net = Dequantizer(2, channels=4, depth=2, dims=dims)
    x, noise = torch.randn(3, 2, *size), torch.zeros(3)
    out = net(x, noise)
    assert out.shape == (3, 4, *size) and not out.any()
    torch.nn.init.normal_(net.conv_out.weight)
    net(x, noise).square().sum().backward()
    assert all(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in net.parameters())


def test_what_it_refuses():
    with pytest.raises(ValueError, match="must be at least 1, got 1, 0 and 3"):
        Dequantizer(1, channels=0)
    with pytest.raises(ValueError, match="x must have shape"):
        Dequantizer(1)(torch.zeros(2, 3, 8, 8), torch.zeros(2))
