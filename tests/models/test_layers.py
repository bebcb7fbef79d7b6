"""Blocks against their formulas written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Downsample, ResidualBlock, SelfAttention, Upsample, group_norm

Randomize = Callable[[nn.Module], nn.Module]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 16, 48, 64, 144, 192, 256])
def test_group_norm_groups(channels: int) -> None:
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert channels < 8 or channels // norm.num_groups >= 4
    assert channels % 4 or norm.num_groups > 1 or channels < 8


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_equals_softmax_formula(heads: int, randomize: Randomize) -> None:
    B, C, H, W = 2, 16, 3, 5
    block = randomize(SelfAttention(C, heads)).double()
    h = torch.randn(B, C, H, W, dtype=torch.float64)

    d = C // heads
    x = block.norm(h)
    expected = h.clone()
    for b in range(B):
        tokens = x[b].reshape(C, H * W).T  # (HW, C)
        q, k, v = (tokens @ block.qkv.weight.T + block.qkv.bias).split(C, dim=1)  # (HW, C) each
        out = []
        for n in range(heads):
            part = slice(n * d, (n + 1) * d)
            weights = torch.softmax(q[:, part] @ k[:, part].T / d**0.5, dim=1)  # (HW, HW)
            out.append(weights @ v[:, part])
        expected[b] += (torch.cat(out, 1) @ block.project.weight.T + block.project.bias).T.reshape(C, H, W)
    assert torch.allclose(block(h), expected, atol=1e-12)
    assert not torch.allclose(h, expected, atol=1e-2)


@pytest.mark.parametrize("heads", [0, -1, 3])
def test_attention_heads_must_divide(heads: int) -> None:
    with pytest.raises(ValueError, match=f"heads must divide the 16 channels .*, got {heads}"):
        SelfAttention(16, heads)


def standardize(h: Tensor, groups: int) -> Tensor:
    parts = h.reshape(len(h), groups, -1)
    centred = parts - parts.mean(2, keepdim=True)
    return (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(h.shape)


@pytest.mark.parametrize("channels", [(8, 8), (8, 16)])
def test_residual_block_equals_formula(channels: tuple[int, int], randomize: Randomize) -> None:
    block = randomize(ResidualBlock(*channels, emb_dim=6)).double()
    h, emb = torch.randn(3, channels[0], 4, 6).double(), torch.randn(3, 6).double()

    def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return x * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)

    out = affine(standardize(h, channels[0] // 4), block.norm1.weight, block.norm1.bias)
    out = F.conv2d(out * out.sigmoid(), block.conv1.weight, block.conv1.bias, padding=1)
    modulation = emb @ block.scale_shift.weight.T + block.scale_shift.bias
    scale, shift = modulation[:, : channels[1]], modulation[:, channels[1] :]
    out = (1 + scale[..., None, None]) * standardize(out, channels[1] // 4) + shift[..., None, None]
    out = F.conv2d(out * out.sigmoid(), block.conv2.weight, block.conv2.bias, padding=1)
    if channels[0] == channels[1]:
        out = out + h
    else:
        out = out + F.conv2d(h, block.shortcut.weight, block.shortcut.bias)
    assert torch.allclose(block(h, emb), out, atol=1e-10)


def test_blocks_start_as_identity() -> None:
    h = torch.randn(2, 16, 8, 8)
    assert torch.equal(ResidualBlock(16, 16, emb_dim=4)(h, torch.randn(2, 4)), h)
    assert torch.equal(SelfAttention(16, 2)(h), h)


def test_dropout_acts_in_training_only(randomize: Randomize) -> None:
    block = randomize(ResidualBlock(16, 16, emb_dim=4, dropout=0.5))
    h, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 4)
    assert not torch.equal(block(h, emb), block(h, emb))
    block.eval()
    assert torch.equal(block(h, emb), block(h, emb))


def test_resampling() -> None:
    h = torch.randn(2, 8, 6, 10)
    assert Downsample(8)(h).shape == (2, 8, 3, 5)
    up = Upsample(8)
    with torch.no_grad():  # a convolution that copies shows what it is given
        up.conv.weight.zero_()[range(8), range(8), 1, 1] = 1
        up.conv.bias.zero_()
    assert torch.equal(up(h), h.repeat_interleave(2, 2).repeat_interleave(2, 3))
