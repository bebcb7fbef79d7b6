"""Instance norm++ and the parts of refine blocks against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from score_diffusion.models.refinenet_layers import (
    ChainedResidualPooling,
    InstanceNormPlus,
    MultiResolutionFusion,
    NoNorm,
    mean_pool,
)


def instance_norm_plus(h: Tensor, gamma: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    """z_k = γ_k (h_k - μ_k)/s_k + β_k + α_k (μ_k - m)/v for one sample (C, H, W), map by map."""
    means = torch.stack([channel.mean() for channel in h])
    m = sum(means) / len(means)
    v = (sum((mu - m) ** 2 for mu in means) / (len(means) - 1) + 1e-5).sqrt()
    out = []
    for k, channel in enumerate(h):
        s = (((channel - means[k]) ** 2).sum() / channel.numel() + 1e-5).sqrt()
        out.append(gamma[k] * (channel - means[k]) / s + beta[k] + alpha[k] * (means[k] - m) / v)
    return torch.stack(out)


def test_instance_norm_plus_equals_the_formula(randomize) -> None:
    norm = randomize(InstanceNormPlus(5, levels=3)).double()
    h = 3 * torch.randn(4, 5, 6, 7, dtype=torch.float64) + torch.randn(4, 5, 1, 1, dtype=torch.float64)
    level = torch.tensor([2, 0, 1, 2])
    out = norm(h, level)
    for b, i in enumerate(level):
        wanted = instance_norm_plus(h[b], norm.gamma[i], norm.beta[i], norm.alpha[i])
        assert torch.allclose(out[b], wanted, rtol=1e-10, atol=1e-10)


def test_instance_norm_plus_keeps_the_differences_of_the_means() -> None:
    norm = InstanceNormPlus(3)
    level = torch.zeros(1, dtype=torch.int64)
    flat = torch.tensor([0.1, 0.5, 0.9])[None, :, None, None].expand(1, 3, 8, 8)
    out = norm(flat, level).mean((2, 3))
    assert (out.diff() > 0.5).all()  # constant maps, which instance norm makes zero, keep their order
    assert torch.allclose(out, norm(flat + 7, level).mean((2, 3)), atol=1e-3)  # without their common offset


def test_instance_norm_plus_of_constant_maps_is_finite() -> None:
    h = torch.full((2, 4, 8, 8), 3.0, requires_grad=True)
    out = InstanceNormPlus(4)(h, torch.zeros(2, dtype=torch.int64))
    (grad,) = torch.autograd.grad(out.square().sum(), h)
    assert out.isfinite().all()
    assert grad.isfinite().all()


def test_mean_pool_of_odd_sides() -> None:
    h = torch.arange(15.0).reshape(1, 1, 3, 5)
    assert torch.equal(mean_pool(h)[0, 0], torch.tensor([[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]))


def test_maximum_and_mean_pooling() -> None:
    h = torch.zeros(1, 2, 9, 9)
    h[0, 0, 4, 4] = 10.0
    for max_pool, centre in ((True, 10.0), (False, 10.0 / 25)):
        block = ChainedResidualPooling(2, NoNorm, max_pool)
        for conv in block.convs:
            nn.init.dirac_(conv.weight)
        out = block(h, torch.zeros(1, dtype=torch.int64)).detach()
        assert out[0, 0, 2, 2] > centre - 1e-6  # two pixels away: within the pool of five
        assert out[0, 0, 4, 4] == pytest.approx(10 + centre + (10 if max_pool else centre), rel=1e-5)


def test_fusion_sums_at_the_finest_resolution() -> None:
    fuse = MultiResolutionFusion([2, 3], 4, NoNorm)
    for conv, value in zip(fuse.convs, (1.0, 2.0), strict=True):
        nn.init.zeros_(conv.weight)
        nn.init.constant_(conv.bias, value)
    out = fuse([torch.randn(1, 2, 9, 7), torch.randn(1, 3, 5, 4)], torch.zeros(1, dtype=torch.int64))
    assert out.shape == (1, 4, 9, 7)
    assert torch.allclose(out, torch.tensor(3.0))
