"""The parts that networks are made of: group norm, residual and attention blocks, resampling; input checks.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239: Appendix B.
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233:
        Section 3.1, adaptive group norm.
    Group Normalization (Wu & He, 2018), https://arxiv.org/abs/1803.08494.
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762: equation 1.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def check_inputs(x: Tensor, noise: Tensor, cond: Tensor | None, layout: str, size: int) -> None:
    """Check the arguments of an unconditional network's `net(x, noise, cond)`.

    Args:
        x: Noisy samples.
        noise: Noise levels log(σ/α), to be of shape (B,).
        cond: Condition, to be None.
        layout: Names of the dimensions of x, such as "B, C, H, W".
        size: Required size of the second of them.

    Raises:
        ValueError: If one of them does not fit; the message says what was required and what came.
    """
    names = layout.split(", ")
    if x.ndim != len(names) or x.shape[1] != size:
        names[1] = f"{names[1]}={size}"
        raise ValueError(f"x must have shape ({', '.join(names)}), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must have a floating dtype, got {x.dtype}; convert it with x.float()")
    if noise.shape != x.shape[:1]:
        raise ValueError(f"noise must have shape (B,) = ({len(x)},), got {tuple(noise.shape)}")
    if not noise.is_floating_point():
        raise ValueError(f"noise must have a floating dtype, got {noise.dtype}; it means log(sigma/alpha)")
    if cond is not None:
        raise ValueError(f"cond must be None, this network takes no condition, got a {type(cond).__name__}")


def zero_init(layer: Layer) -> Layer:
    """The same layer with weight and bias set to zero: the branch that it ends starts as a no-op."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group norm (Wu & He, 2018) with as many groups as divide the channels: at most 32, of four or more."""
    groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, affine=affine)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input passes, the second one conditioned on the noise.

        out = shortcut(h) + conv2(dropout(silu((1 + scale) · norm2(conv1(silu(norm1(h)))) + shift)))

    The noise sets scale and shift of the second norm (Dhariwal & Nichol, 2021, Section 3.1 and Table 3)
    rather than a bias in front of it (Ho et al., 2020): a norm takes part of such a bias away again, and only
    a scale can turn a feature off at the noise levels where it means nothing. At first out = shortcut(h).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; where they differ, the shortcut is a 1x1 convolution.
        emb_dim: Size of the noise embedding.
        dropout: Dropout probability.
    """

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, affine=False)  # scale_shift has a bias of its own
        self.scale_shift = nn.Linear(emb_dim, 2 * out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """Features (B, in_channels, H, W) and noise embedding (B, emb_dim) to (B, out_channels, H, W)."""
        scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, dim=1)  # (B, out_channels, 1, 1) each
        out = self.conv1(F.silu(self.norm1(h)))
        out = torch.addcmul(shift, 1 + scale, self.norm2(out))
        return self.shortcut(h) + self.conv2(self.dropout(F.silu(out)))


class SelfAttention(nn.Module):
    """Every pixel looks at every other one: h + project(softmax(q kᵀ/√d) v), with q, k, v from norm(h).

    Vaswani et al. (2017), equation 1, for each head; d is the number of channels per head.

    Args:
        channels: Channels of the input and of the output.
        heads: Number of heads; divides the channels.

    Raises:
        ValueError: If the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide the {channels} channels of an attention block, got {heads}")
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = zero_init(nn.Linear(channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        """Features (B, C, H, W) to the same shape."""
        H, W = h.shape[2:]
        tokens = self.norm(h).flatten(2).transpose(1, 2)  # (B, HW, C)
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1))  # (B, HW, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, HW, d) each
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, HW, C)
        return h + self.project(out).transpose(1, 2).unflatten(2, (H, W))


class Downsample(nn.Module):
    """Half the resolution, by a 3x3 convolution of stride 2 (Ho et al., 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """Features (B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(h)


class Upsample(nn.Module):
    """Twice the resolution, by nearest neighbours and a 3x3 convolution (Ho et al., 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """Features (B, C, H, W) to (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(h, scale_factor=2, mode="nearest"))
