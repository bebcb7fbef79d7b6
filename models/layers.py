"""The parts of the U-Nets: norms, residual blocks, attention, resampling, input checks.

All of them take features (B, C, *size) in one, two or three dimensions. A `Style` collects the choices that
all blocks of one network share and in which the papers differ.

There are two filters for resampling by a factor of 2:

    box    down: mean of 2 pixels in each dimension;  up: nearest neighbour
    fir    (1, 3, 3, 1)/8 in each dimension (StyleGAN2), with zero padding.  Down: a depthwise convolution of
           stride 2;  up: its transpose, times 2 in each dimension

References:
    Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022),
        https://arxiv.org/abs/2205.11487: Section 2.4, normalized tokens.
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
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = TypeVar("Layer", bound=nn.Linear | Convolution)

CONVOLUTIONS: dict[int, Callable[..., Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
LAYOUTS = {1: "B, C, L", 2: "B, C, H, W", 3: "B, C, D, H, W"}  # of images by their number of dimensions
MODULATIONS = ("scale_shift", "shift")
FILTERS = ("box", "fir")
RESAMPLINGS = ("conv", "conv_asymmetric", "residual", "biggan")


def check_inputs(x: Tensor, noise: Tensor, layout: str, size: int) -> None:
    """Checks the first two arguments of a network, `net(x, noise, cond)`.

    Args:
        x: Noisy samples.
        noise: Noise levels; required shape (B,).
        layout: Names of the required dimensions of x, such as "B, C, H, W".
        size: Required size of dimension 1 of x.

    Raises:
        ValueError: If a shape or dtype is wrong.
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
    """Sets weight and bias of a layer to zero and returns it: a branch that ends in it starts as a no-op."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    layer.starts_at_zero = True  # type: ignore[assignment]  # a mark: other initializations skip it
    return layer


def group_norm(
    channels: int, affine: bool = True, groups: int | None = None, eps: float = 1e-5
) -> nn.GroupNorm:
    """Group norm (Wu & He, 2018).

    The default is the largest number of groups that divides the channels, with at most 32 groups and at least
    four channels in each.

    Raises:
        ValueError: If the given number of groups does not divide the channels.
    """
    if groups is None:
        groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    elif groups < 1 or channels % groups:
        raise ValueError(f"norm_groups must divide the {channels} channels of a norm, got {groups}")
    return nn.GroupNorm(groups, channels, eps=eps, affine=affine)


@dataclass(frozen=True)
class Style:
    """The choices that all blocks of a U-Net share.

    Raises:
        ValueError: If a field is not one of its valid values.
    """

    dims: int = 2
    """Number of dimensions of an image: 1, 2 or 3."""
    modulation: str = "scale_shift"
    """How the noise modulates a residual block: "scale_shift" after its second norm (ADM), or "shift" before
    that norm (DDPM)."""
    dropout: float = 0.0
    """Dropout probability inside the residual blocks."""
    norm_groups: int | None = None
    """Groups of every norm; None for the default of `group_norm`."""
    norm_eps: float = 1e-5
    """The ε that a group norm adds to the variance."""
    rescale: bool = False
    """Whether the sum of two branches is divided by √2 (Song et al., 2021)."""
    filter: str = "box"
    """The filter of resampling: "box" or "fir"."""
    resampling: str = "conv"
    """The layer that resamples: "conv", a convolution of stride 2 (down), or nearest neighbours and a
    convolution (up); "conv_asymmetric", the same, but padded only at the right and the bottom (DDPM in
    TensorFlow); "residual", a residual block (ADM); "biggan", a residual block whose shortcut has a 1x1
    convolution (NCSN++)."""

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
    ) -> Convolution:
        """A convolution; the default padding keeps the size."""
        padding = kernel // 2 if padding is None else padding
        return CONVOLUTIONS[self.dims](in_channels, out_channels, kernel, stride=stride, padding=padding)

    def norm(self, channels: int, affine: bool = True) -> nn.GroupNorm:
        """A group norm."""
        return group_norm(channels, affine, self.norm_groups, self.norm_eps)

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b, or (a + b)/√2 if the style rescales.

        Under autocast the sum is in float32, because rounding accumulates over many blocks: this removes a
        quarter of the error of bfloat16 and costs 3 % of the time.
        """
        if torch.is_autocast_enabled(a.device.type):
            a = a.float()
        return (a + b) * math.sqrt(0.5) if self.rescale else a + b

    def down(self, h: Tensor) -> Tensor:
        """Halves the size in every dimension with the filter, without a convolution."""
        if self.filter == "fir":
            return fir_down(h)
        return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[self.dims - 1](h, 2)

    def up(self, h: Tensor) -> Tensor:
        """Doubles the size in every dimension with the filter, without a convolution."""
        return fir_up(h) if self.filter == "fir" else F.interpolate(h, scale_factor=2, mode="nearest")


def _apply_fir(conv: Callable[..., Tensor], h: Tensor, gain: float, stride: int, padding: int) -> Tensor:
    """Convolves each channel with the outer product of the filter.

    On a CPU this happens in float32: there transposed depthwise convolutions in bfloat16, which are also the
    gradients of the direct ones, take 20 times as long (19 ms instead of 0.8 ms for 16 x 64 x 16 x 16,
    PyTorch 2.13).
    """
    half_on_cpu = h.device.type == "cpu" and h.dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(h.device.type, enabled=False):
        x = h.float() if half_on_cpu else h
        i = torch.arange(4, dtype=x.dtype, device=x.device)  # on the device: a copy would synchronize
        taps = kernel = (4 - 2 * (i - 1.5).abs()) * (gain / 8)  # (1, 3, 3, 1)/8, times the gain
        for _ in range(h.ndim - 3):
            kernel = kernel[..., None] * taps
        weight = kernel.expand(h.shape[1], 1, *kernel.shape)
        return conv(x, weight, stride=stride, padding=padding, groups=h.shape[1]).to(h.dtype)


def fir_down(h: Tensor, stride: int = 2, padding: int = 1) -> Tensor:
    """Filters and keeps every second pixel: (B, C, *size) to (B, C, *size/2), for even sizes."""
    return _apply_fir((F.conv1d, F.conv2d, F.conv3d)[h.ndim - 3], h, 1.0, stride, padding)


def fir_up(h: Tensor, padding: int = 1) -> Tensor:
    """Puts zeros between the pixels and filters with twice the gain: (B, C, *size) to (B, C, *(2 · size))."""
    conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[h.ndim - 3]
    return _apply_fir(conv, h, 2.0, 2, padding)


class Downsample(nn.Module):
    """Halves the size by a 3x3 convolution of stride 2, after the FIR filter if the style has it.

    Args:
        channels: Channels of the input.
        style: The style of the network.
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
        if (
            self.fir
        ):  # padded once for both: the convolution also sees the output of the filter in the padding
            h = fir_down(h, stride=1, padding=2)
        elif self.pad is not None:
            h = F.pad(h, self.pad)
        return self.conv(h)


class Upsample(nn.Module):
    """Doubles the size by the filter of the style and a 3x3 convolution.

    Args:
        channels: Channels of the input.
        style: The style of the network.
        out_channels: Channels of the output; None for those of the input.
    """

    def __init__(self, channels: int, style: Style = Style(), out_channels: int | None = None) -> None:
        super().__init__()
        self.fir = style.filter == "fir"
        self.conv = style.conv(channels, out_channels or channels, padding=0 if self.fir else 1)

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        """Features (B, C, *size) to (B, out_channels, *(2 · size)); the embedding is not used."""
        h = fir_up(h, padding=0) if self.fir else F.interpolate(h, scale_factor=2, mode="nearest")
        return self.conv(h)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, modulated by the noise: returns shortcut(h) + out.

        scale_shift    out = conv2(dropout(silu((1 + scale) · norm2(conv1(silu(norm1(h)))) + shift)))
        shift          out = conv2(dropout(silu(norm2(conv1(silu(norm1(h))) + shift))))

    The noise sets scale and shift after the second norm (Dhariwal & Nichol, 2021, Section 3.1 and Table 3) or
    a bias before it (Ho et al., 2020). The norm removes part of such a bias, and only a scale can turn a
    feature off at noise levels where it is meaningless. At initialization out = 0. A resampling block
    resamples silu(norm1(h)) and the shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; if they differ, the shortcut is a 1x1 convolution.
        emb_dim: Size of the noise embedding.
        style: The style of the network.
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
        with torch.autocast(h.device.type, enabled=False):  # one vector per sample: rounding it saves nothing
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
    """Self-attention between all pixels: h + project(softmax(q kᵀ/√d) v), with q, k, v linear in norm(h).

    Vaswani et al. (2017), equation 1, in each head; d is the number of channels per head.

    Args:
        channels: Channels of the input and of the output.
        heads: Number of heads; it must divide the channels.
        style: The style of the network.

    Raises:
        ValueError: If the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int = 1, style: Style = Style()) -> None:
        super().__init__()
        _check_heads(channels, heads)
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


class TokenAttention(nn.Module):
    """What features read in the tokens of a condition: project(softmax(q kᵀ/√d) v), 0 at initialization.

    An extra token with k = v = 0 is appended. What attends to it ignores the condition, and it is the only
    token of the null condition. The tokens are normalized (Saharia et al., 2022, Section 2.4).

    Args:
        channels: Channels of the features.
        token_dim: Size of the tokens.
        heads: Number of heads; it must divide the channels.
        norm: Normalizes the features; None for features as they are.

    Raises:
        ValueError: If the heads do not divide the channels.
    """

    def __init__(self, channels: int, token_dim: int, heads: int = 1, norm: nn.Module | None = None) -> None:
        super().__init__()
        _check_heads(channels, heads)
        self.heads = heads
        self.norm = norm or nn.Identity()
        self.q = nn.Linear(channels, channels)
        self.norm_tokens = nn.LayerNorm(token_dim)
        self.kv = nn.Linear(token_dim, 2 * channels)
        self.project = zero_init(nn.Linear(channels, channels))

    def forward(self, h: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Features (B, C, *size) to the same shape.

        Args:
            h: The features.
            tokens: The tokens, shape (B, L, token_dim).
            mask: Which of the tokens are valid, bool (B, L).
        """
        q = self.q(self.norm(h).flatten(2).transpose(1, 2))  # (B, pixels, C)
        q = q.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, pixels, d)
        kv = F.pad(self.kv(self.norm_tokens(tokens)), (0, 0, 0, 1))  # (B, L + 1, 2 C)
        k, v = kv.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L + 1, d) each
        valid = F.pad(mask, (0, 1), value=True)[:, None, None]  # (B, 1, 1, L + 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=valid).transpose(1, 2).flatten(2)
        return self.project(out).transpose(1, 2).unflatten(2, h.shape[2:])


class CrossAttention(TokenAttention):
    """Attention of each pixel to the tokens of a condition: h + attention(norm(h)).

    Args:
        channels: Channels of the input and of the output.
        token_dim: Size of the tokens.
        heads: Number of heads; it must divide the channels.
        style: The style of the network.

    Raises:
        ValueError: If the heads do not divide the channels.
    """

    def __init__(self, channels: int, token_dim: int, heads: int = 1, style: Style = Style()) -> None:
        super().__init__(channels, token_dim, heads, style.norm(channels))
        self.style = style

    def forward(self, h: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Features (B, C, *size) to the same shape; tokens and mask as for `TokenAttention`."""
        return self.style.merge(h, super().forward(h, tokens, mask))


def _check_heads(channels: int, heads: int) -> None:
    if heads < 1 or channels % heads:
        raise ValueError(f"heads must divide the {channels} channels of an attention block, got {heads}")
