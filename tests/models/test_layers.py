"""Blocks against their formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.layers import (
    CrossAttention,
    Downsample,
    ResidualBlock,
    SelfAttention,
    Style,
    Upsample,
    fir_down,
    fir_up,
    group_norm,
)

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


def standardized_affine(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    x = standardize(x, norm.num_groups)
    return x if norm.weight is None else x * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize("channels", [(8, 8), (8, 16)])
@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize(
    "style",
    [Style(), Style(modulation="shift"), Style(modulation="shift", rescale=True, resampling="biggan")],
    ids=["adm", "ddpm", "ncsnpp"],
)
def test_residual_block_equals_formula(
    channels: tuple[int, int], style: Style, resample: str | None, randomize: Randomize
) -> None:
    block = randomize(ResidualBlock(*channels, emb_dim=6, style=style, resample=resample)).double()
    h, emb = torch.randn(3, channels[0], 4, 6).double(), torch.randn(3, 6).double()

    def changed(x: Tensor) -> Tensor:
        if resample == "up":
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if resample == "down":
            return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x

    out = standardized_affine(h, block.norm1)
    out = F.conv2d(changed(out * out.sigmoid()), block.conv1.weight, block.conv1.bias, padding=1)
    modulation = (emb @ block.scale_shift.weight.T + block.scale_shift.bias)[..., None, None]
    if style.modulation == "scale_shift":
        scale, shift = modulation[:, : channels[1]], modulation[:, channels[1] :]
        out = (1 + scale) * standardized_affine(out, block.norm2) + shift
    else:
        out = standardized_affine(out + modulation, block.norm2)
    out = F.conv2d(out * out.sigmoid(), block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = changed(h)
    if channels[0] != channels[1] or (resample and style.resampling == "biggan"):
        shortcut = F.conv2d(shortcut, block.shortcut.weight, block.shortcut.bias)
    total = (shortcut + out) / 2**0.5 if style.rescale else shortcut + out
    assert torch.allclose(block(h, emb), total, atol=1e-10)


def fir_matrix(n: int) -> Tensor:
    """The matrix (n/2, n) of the filter (1, 3, 3, 1)/8 with zero padding at every second of n pixels."""
    matrix = torch.zeros(n // 2, n, dtype=torch.float64)
    for i in range(n // 2):
        for tap, weight in enumerate((1, 3, 3, 1)):
            if 0 <= 2 * i - 1 + tap < n:
                matrix[i, 2 * i - 1 + tap] = weight / 8
    return matrix


def test_fir_resampling_is_a_matrix_in_each_dimension() -> None:
    h = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    rows, columns = fir_matrix(6), fir_matrix(10)
    assert torch.allclose(fir_down(h), rows @ h @ columns.T, atol=1e-14)
    rows, columns = 2 * fir_matrix(12).T, 2 * fir_matrix(20).T  # the transpose, constants stay constant
    assert torch.allclose(fir_up(h), rows @ h @ columns.T, atol=1e-14)
    assert torch.allclose(fir_up(torch.ones(1, 1, 8, 8))[..., 2:-2, 2:-2], torch.ones(1, 1, 12, 12))
    line, volume = torch.randn(2, 3, 6), torch.randn(1, 2, 4, 6, 8)
    assert torch.allclose(fir_down(line), line @ fir_matrix(6).T.float(), atol=1e-6)
    assert fir_up(fir_down(volume)).shape == volume.shape


def upfirdn(h: Tensor, up: int, down: int, pad: tuple[int, int], gain: float) -> Tensor:
    """StyleGAN2's operation: zeros between the pixels, padding, the filter, every `down`-th pixel."""
    B, C, H, W = h.shape
    spread = h.new_zeros(B, C, H * up, W * up)
    spread[..., ::up, ::up] = h
    spread = F.pad(spread, pad * 2)
    taps = torch.tensor([1.0, 3, 3, 1], dtype=h.dtype) / 8
    kernel = (gain * torch.outer(taps, taps))[None, None].expand(C, 1, 4, 4)
    return F.conv2d(spread, kernel, groups=C)[..., ::down, ::down]


def test_convolutions_after_the_filter_are_those_of_stylegan2() -> None:
    """conv_downsample_2d pads once, by 2; upsample_conv_2d filters, with pads of 1, after a transposed
    convolution.
    """
    style = Style(filter="fir")
    h = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    down = Downsample(4, style, 5).double()
    expected = F.conv2d(upfirdn(h, 1, 1, (2, 2), 1), down.conv.weight, down.conv.bias, stride=2)
    assert torch.allclose(down(h), expected, atol=1e-12)
    up = Upsample(4, style, 5).double()
    weight = up.conv.weight.flip(2, 3).transpose(0, 1)
    spread = F.conv_transpose2d(h, weight, stride=2)
    expected = upfirdn(spread, 1, 1, (1, 1), 4) + up.conv.bias.view(1, -1, 1, 1)
    assert torch.allclose(up(h), expected, atol=1e-12)


def test_asymmetric_padding() -> None:
    """TensorFlow's SAME: one row of zeros at the bottom and one column at the right."""
    down = Downsample(3, Style(resampling="conv_asymmetric"))
    h = torch.randn(2, 3, 6, 8)
    bigger = torch.zeros(2, 3, 7, 9)
    bigger[..., :6, :8] = h
    expected = F.conv2d(bigger, down.conv.weight, down.conv.bias, stride=2)
    assert torch.allclose(down(h), expected, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 4])
def test_cross_attention_equals_softmax_formula(heads: int, randomize: Randomize) -> None:
    B, C, L, D, H, W = 2, 16, 5, 12, 3, 4
    block = randomize(CrossAttention(C, D, heads)).double()
    h, tokens = torch.randn(B, C, H, W).double(), torch.randn(B, L, D).double()
    mask = torch.tensor([[True] * 5, [True, False, True, False, False]])

    d, x, expected = C // heads, block.norm(h), h.clone()
    for b in range(B):
        q = x[b].reshape(C, H * W).T @ block.q.weight.T + block.q.bias  # (HW, C)
        known = block.norm_tokens(tokens[b, mask[b]])  # (present tokens, D)
        kv = known @ block.kv.weight.T + block.kv.bias
        kv = torch.cat([kv, kv.new_zeros(1, 2 * C)])  # the extra token
        out = []
        for n in range(heads):
            part, part_v = slice(n * d, (n + 1) * d), slice(C + n * d, C + (n + 1) * d)
            out.append(torch.softmax(q[:, part] @ kv[:, part].T / d**0.5, 1) @ kv[:, part_v])
        expected[b] += (torch.cat(out, 1) @ block.project.weight.T + block.project.bias).T.reshape(C, H, W)
    assert torch.allclose(block(h, tokens, mask), expected, atol=1e-12)


def test_blocks_start_as_identity() -> None:
    h = torch.randn(2, 16, 8, 8)
    assert torch.equal(ResidualBlock(16, 16, emb_dim=4)(h, torch.randn(2, 4)), h)
    assert torch.equal(SelfAttention(16, 2)(h), h)


def test_dropout_acts_in_training_only(randomize: Randomize) -> None:
    block = randomize(ResidualBlock(16, 16, emb_dim=4, style=Style(dropout=0.5)))
    h, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 4)
    assert not torch.equal(block(h, emb), block(h, emb))
    block.eval()
    assert torch.equal(block(h, emb), block(h, emb))


def test_resampling() -> None:
    h = torch.randn(2, 8, 6, 10)
    assert Downsample(8)(h).shape == (2, 8, 3, 5)
    up = Upsample(8)
    with torch.no_grad():  # a convolution that copies its input
        up.conv.weight.zero_()[range(8), range(8), 1, 1] = 1
        up.conv.bias.zero_()
    assert torch.equal(up(h), h.repeat_interleave(2, 2).repeat_interleave(2, 3))
