"""The parts that U-Nets are made of: norms, residual blocks, attention, resampling; input checks.

All work on features (B, C, *size) of one, two or three dimensions. What distinguishes the papers' networks
and is common to all blocks of one network stands in a `Style`.

Resampling by 2 goes through one of two filters:

    box    mean of 2 pixels down, nearest neighbour up
    fir    (1, 3, 3, 1)/8 in each dimension (StyleGAN2), zero beyond the borders: a depthwise convolution of
           stride 2 down, and its transpose, times 2 in each dimension, up

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239: Appendix B.
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: Appendix H, FIR resampling, BigGAN blocks, rescaled skips.
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233:
        Section 3.1, adaptive group norm.
    Analyzing and Improving the Image Quality of StyleGAN (Karras et al., 2020),
        https://arxiv.org/abs/1912.04958: the filter.
    Large Scale GAN Training for High Fidelity Natural Image Synthesis (Brock et al., 2019),
        https://arxiv.org/abs/1809.11096: residual blocks that resample.
    Group Normalization (Wu & He, 2018), https://arxiv.org/abs/1803.08494.
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762: equation 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODULATIONS = ("scale_shift", "shift")
FILTERS = ("box", "fir")
RESAMPLINGS = ("conv", "conv_asymmetric", "residual", "biggan")


def check_inputs(x: Tensor, noise: Tensor, layout: str, size: int) -> None:
    """Check the first two arguments of a network's `net(x, noise, cond)`.

    Args:
        x: Noisy samples.
        noise: Noise levels, to be of shape (B,).
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


def zero_init(layer: Layer) -> Layer:
    """The same layer with weight and bias set to zero: the branch that it ends starts as a no-op."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(
    channels: int, affine: bool = True, groups: int | None = None, eps: float = 1e-5
) -> nn.GroupNorm:
    """Group norm (Wu & He, 2018) with as many groups as divide the channels: at most 32, of four or more.

    Raises:
        ValueError: If a number of groups is given that does not divide the channels.
    """
    if groups is None:
        groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    elif groups < 1 or channels % groups:
        raise ValueError(f"norm_groups must divide the {channels} channels of a norm, got {groups}")
    return nn.GroupNorm(groups, channels, eps=eps, affine=affine)


@dataclass(frozen=True)
class Style:
    """What all blocks of a U-Net share.

    Raises:
        ValueError: If a name or a number is not one of the valid ones.
    """

    dims: int = 2
    """Dimensions of an image: 1, 2 or 3."""
    modulation: str = "scale_shift"
    """How the noise acts on a residual block: "scale_shift" behind the second norm (ADM) or "shift" in front
    of it (DDPM)."""
    dropout: float = 0.0
    """Dropout probability inside the residual blocks."""
    norm_groups: int | None = None
    """Groups of every norm; None for as many as divide the channels, at most 32, of four channels or more."""
    norm_eps: float = 1e-5
    """What group norm adds to a variance."""
    rescale: bool = False
    """Whether a sum of two branches is divided by √2 (Song et al., 2021)."""
    filter: str = "box"
    """The filter of resampling: "box" or "fir"."""
    resampling: str = "conv"
    """What resamples: "conv", a convolution of stride 2 down and one behind nearest neighbours up;
    "conv_asymmetric", the same, padded at right and bottom alone (DDPM in TensorFlow); "residual", a residual
    block (ADM); "biggan", a residual block with a 1x1 convolution in its shortcut (NCSN++)."""

    def __post_init__(self) -> None:
        for name, value, valid in (
            ("dims", self.dims, tuple(CONVOLUTIONS)),
            ("modulation", self.modulation, MODULATIONS),
            ("filter", self.filter, FILTERS),
            ("resampling", self.resampling, RESAMPLINGS),
        ):
            if value not in valid:
                raise ValueError(f"{name} must be one of {', '.join(map(str, valid))}, got {value!r}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps must be positive, got {self.norm_eps}")

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int | None = None,
    ) -> nn.Module:
        """A convolution; by default it keeps the size."""
        padding = kernel // 2 if padding is None else padding
        return CONVOLUTIONS[self.dims](in_channels, out_channels, kernel, stride=stride, padding=padding)

    def norm(self, channels: int, affine: bool = True) -> nn.GroupNorm:
        """A group norm."""
        return group_norm(channels, affine, self.norm_groups, self.norm_eps)

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b, or (a + b)/√2."""
        return (a + b) * math.sqrt(0.5) if self.rescale else a + b

    def down(self, h: Tensor) -> Tensor:
        """Half the size in every dimension, by the filter alone."""
        if self.filter == "fir":
            return fir_down(h)
        return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[self.dims - 1](h, 2)

    def up(self, h: Tensor) -> Tensor:
        """Twice the size in every dimension, by the filter alone."""
        return fir_up(h) if self.filter == "fir" else F.interpolate(h, scale_factor=2, mode="nearest")


def _fir_weight(h: Tensor, gain: float) -> Tensor:
    """The filter's outer product for each channel, shape (C, 1, 4, ...)."""
    i = torch.arange(4, dtype=h.dtype, device=h.device)  # made there: a host copy would be waited for
    taps = kernel = (4 - 2 * (i - 1.5).abs()) * (gain / 8)  # (1, 3, 3, 1)/8, times the gain
    for _ in range(h.ndim - 3):
        kernel = kernel[..., None] * taps
    return kernel.expand(h.shape[1], 1, *kernel.shape)


def fir_down(h: Tensor, stride: int = 2, padding: int = 1) -> Tensor:
    """The FIR filter and every second pixel: (B, C, *size) to (B, C, *size/2), for even sizes."""
    conv = (F.conv1d, F.conv2d, F.conv3d)[h.ndim - 3]
    return conv(h, _fir_weight(h, 1.0), stride=stride, padding=padding, groups=h.shape[1])


def fir_up(h: Tensor, padding: int = 1) -> Tensor:
    """Zeros between the pixels, then the FIR filter with twice its gain: (B, C, *size) to (B, C, 2 size)."""
    conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[h.ndim - 3]
    return conv(h, _fir_weight(h, 2.0), stride=2, padding=padding, groups=h.shape[1])


class Downsample(nn.Module):
    """Half the size by a 3x3 convolution of stride 2, behind the FIR filter where that is the style's.

    Args:
        channels: Channels of the input.
        style: The network's style; "conv_asymmetric" pads at right and bottom alone.
        out_channels: Channels of the output; None for those of the input.
    """

    def __init__(self, channels: int, style: Style = Style(), out_channels: int | None = None) -> None:
        super().__init__()
        self.fir = style.filter == "fir"
        self.pad = (0, 1) * style.dims if style.resampling != "conv" and not self.fir else None
        symmetric = not self.fir and self.pad is None
        self.conv = style.conv(channels, out_channels or channels, stride=2, padding=1 if symmetric else 0)

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        """Features (B, C, *size) to (B, out_channels, *size/2); the embedding is not used."""
        if self.fir:  # padded once, for both: what the filter makes beyond the border is convolved as well
            h = fir_down(h, stride=1, padding=2)
        elif self.pad is not None:
            h = F.pad(h, self.pad)
        return self.conv(h)


class Upsample(nn.Module):
    """Twice the size by the style's filter and a 3x3 convolution.

    Args:
        channels: Channels of the input.
        style: The network's style.
        out_channels: Channels of the output; None for those of the input.
    """

    def __init__(self, channels: int, style: Style = Style(), out_channels: int | None = None) -> None:
        super().__init__()
        self.fir = style.filter == "fir"
        self.conv = style.conv(channels, out_channels or channels, padding=0 if self.fir else 1)

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        """Features (B, C, *size) to (B, out_channels, 2 size); the embedding is not used."""
        h = fir_up(h, padding=0) if self.fir else F.interpolate(h, scale_factor=2, mode="nearest")
        return self.conv(h)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input passes, the second one conditioned on the noise.

        scale_shift    out = conv2(dropout(silu((1 + scale) · norm2(conv1(silu(norm1(h)))) + shift)))
        shift          out = conv2(dropout(silu(norm2(conv1(silu(norm1(h))) + shift))))

    and shortcut(h) + out comes back. The noise sets scale and shift of the second norm (Dhariwal & Nichol,
    2021, Section 3.1 and Table 3) or a bias in front of it (Ho et al., 2020): a norm takes part of such a
    bias away again, and only a scale can turn a feature off at the noise levels where it means nothing. At
    first out = 0. A block that resamples does so behind silu(norm1(h)), and in the shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; where they differ, the shortcut is a 1x1 convolution.
        emb_dim: Size of the noise embedding.
        style: The network's style.
        resample: "down", "up" or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        style: Style = Style(),
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.style = style
        self.resample = resample
        self.scales = style.modulation == "scale_shift"
        self.norm1 = style.norm(in_channels)
        self.conv1 = style.conv(in_channels, out_channels)
        self.norm2 = style.norm(out_channels, affine=not self.scales)  # scale_shift has a bias of its own
        self.scale_shift = nn.Linear(emb_dim, (1 + self.scales) * out_channels)
        self.dropout = nn.Dropout(style.dropout)
        self.conv2 = zero_init(style.conv(out_channels, out_channels))
        same = in_channels == out_channels and not (resample and style.resampling == "biggan")
        self.shortcut = nn.Identity() if same else style.conv(in_channels, out_channels, 1)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """Features (B, in_channels, *size) and noise embedding (B, emb_dim) to (B, out_channels, *size)."""
        out = F.silu(self.norm1(h))
        if self.resample is not None:
            change = self.style.down if self.resample == "down" else self.style.up
            out, h = change(out), change(h)
        out = self.conv1(out)
        modulation = self.scale_shift(emb)
        modulation = modulation.reshape(*modulation.shape, *(1,) * (out.ndim - 2))  # (B, ·, 1, ...)
        if self.scales:
            scale, shift = modulation.chunk(2, dim=1)
            out = torch.addcmul(shift, 1 + scale, self.norm2(out))
        else:
            out = self.norm2(out + modulation)
        out = self.conv2(self.dropout(F.silu(out)))
        return self.style.merge(self.shortcut(h), out)


class SelfAttention(nn.Module):
    """Every pixel looks at every other one: h + project(softmax(q kᵀ/√d) v), with q, k, v from norm(h).

    Vaswani et al. (2017), equation 1, for each head; d is the number of channels per head.

    Args:
        channels: Channels of the input and of the output.
        heads: Number of heads; divides the channels.
        style: The network's style.

    Raises:
        ValueError: If the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int = 1, style: Style = Style()) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide the {channels} channels of an attention block, got {heads}")
        self.heads, self.style = heads, style
        self.norm = style.norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = zero_init(nn.Linear(channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        """Features (B, C, *size) to the same shape."""
        tokens = self.norm(h).flatten(2).transpose(1, 2)  # (B, pixels, C)
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1))  # (B, pixels, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, pixels, d) each
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, pixels, C)
        return self.style.merge(h, self.project(out).transpose(1, 2).unflatten(2, h.shape[2:]))


class CrossAttention(nn.Module):
    """Every pixel looks at the tokens of a condition: h + project(softmax(q kᵀ/√d) v), q from norm(h).

    Beside the tokens there is one with k = v = 0, to which a pixel can turn that wants to know nothing, and
    which alone is left where there are no tokens.

    Args:
        channels: Channels of the input and of the output.
        token_dim: Size of the tokens.
        heads: Number of heads; divides the channels.
        style: The network's style.

    Raises:
        ValueError: If the heads do not divide the channels.
    """

    def __init__(self, channels: int, token_dim: int, heads: int = 1, style: Style = Style()) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide the {channels} channels of an attention block, got {heads}")
        self.heads, self.style = heads, style
        self.norm = style.norm(channels)
        self.q = nn.Linear(channels, channels)
        self.norm_tokens = nn.LayerNorm(token_dim)
        self.kv = nn.Linear(token_dim, 2 * channels)
        self.project = zero_init(nn.Linear(channels, channels))

    def forward(self, h: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Features (B, C, *size), tokens (B, L, token_dim) and which of them there are, bool (B, L), to the
        shape of the features.
        """
        q = self.q(self.norm(h).flatten(2).transpose(1, 2))  # (B, pixels, C)
        q = q.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, pixels, d)
        kv = F.pad(self.kv(self.norm_tokens(tokens)), (0, 0, 0, 1))  # (B, L + 1, 2 C)
        k, v = kv.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L + 1, d) each
        seen = F.pad(mask, (0, 1), value=True)[:, None, None]  # (B, 1, 1, L + 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
        return self.style.merge(h, self.project(out).transpose(1, 2).unflatten(2, h.shape[2:]))
