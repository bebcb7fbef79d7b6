"""A U-Net for images in the manner of DDPM: `net(x, noise) -> like x`, with x of shape (B, C, H, W).

    conv_in -> encoder -> middle -> decoder -> conv_out

The encoder is a sequence of levels of residual blocks, each at half the resolution of the one before; the
decoder climbs back. Everything that the encoder makes (conv_in, each block, each downsampling) goes on a
stack, and each block of the decoder reads the top of the stack beside the features so far: a decoder level
has one block more. The middle is two residual blocks with self-attention between them.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239: Appendix B.
    U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015),
        https://arxiv.org/abs/1505.04597.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.embeddings import NoiseEmbedding
from models.layers import (
    Downsample,
    ResidualBlock,
    SelfAttention,
    Upsample,
    check_inputs,
    group_norm,
    zero_init,
)

SMALLEST = 8  # pixels of the shorter side


class UNet(nn.Module):
    """A U-Net of residual and self-attention blocks, conditioned on the noise. Its output is zero at first.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,  # channels of the images, in and out
        channels: int = 64,  # width of the finest level for a multiplier of 1; even
        multipliers: Sequence[int] = (1, 2),  # width of each level in units of channels, finest first
        blocks_per_level: int = 2,  # residual blocks per level of the encoder
        attention_levels: Sequence[int] = (1,),  # levels whose blocks end in self-attention, 0 is the finest
        heads: int = 4,  # attention heads; divides the attending widths
        dropout: float = 0.0,  # dropout probability inside the residual blocks
        embedding: str = "sinusoidal",  # embedding of the noise: "sinusoidal" or "fourier"
        out_channels: int | None = None,  # channels of the output; None for in_channels
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        _check_arguments(in_channels, out_channels, channels, multipliers, blocks_per_level, attention_levels)
        self.in_channels = in_channels
        levels = range(len(multipliers))
        widths = [channels * m for m in multipliers]
        emb_dim = 4 * channels

        def block(width_in: int, width: int, attention: bool) -> _Block:
            return _Block(width_in, width, emb_dim, dropout, heads if attention else None)

        self.embedding = NoiseEmbedding(embedding, channels, emb_dim)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)

        width, stack = channels, [channels]  # channels of the features so far, and of those on the stack
        self.encoder = nn.ModuleList()
        self.downsample = nn.ModuleList()
        for level in levels:
            if level > 0:
                self.downsample.append(Downsample(width))
                stack.append(width)
            self.encoder.append(nn.ModuleList())
            for _ in range(blocks_per_level):
                self.encoder[-1].append(block(width, widths[level], level in attention_levels))
                width = widths[level]
                stack.append(width)

        self.middle = nn.ModuleList(block(width, width, attention) for attention in (True, False))

        self.decoder = nn.ModuleList()  # coarsest level first, as the features go
        self.upsample = nn.ModuleList()
        for level in reversed(levels):
            if level < levels[-1]:
                self.upsample.append(Upsample(width))
            self.decoder.append(nn.ModuleList())
            for _ in range(blocks_per_level + 1):
                self.decoder[-1].append(block(width + stack.pop(), widths[level], level in attention_levels))
                width = widths[level]

        self.norm_out = group_norm(width)
        self.conv_out = zero_init(nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's output for noisy images.

        Args:
            x: Noisy images, shape (B, C, H, W), in the dtype of the weights; H and W are at least 8 and
                divisible by 2^(levels - 1).
            noise: Noise levels log(σ/α), shape (B,).
            cond: None; here because every network of the project takes it.

        Returns:
            A tensor like x, but with out_channels channels.

        Raises:
            ValueError: If a shape or dtype is wrong, or cond is not None.
        """
        check_inputs(x, noise, cond, "B, C, H, W", self.in_channels)
        self._check_resolution(*x.shape[2:])
        emb = self.embedding(noise)
        h = self.conv_in(x)
        stack = [h]
        for level, blocks in enumerate(self.encoder):
            if level > 0:
                h = self.downsample[level - 1](h)
                stack.append(h)
            for block in blocks:
                h = block(h, emb)
                stack.append(h)
        for block in self.middle:
            h = block(h, emb)
        for i, blocks in enumerate(self.decoder):
            if i > 0:
                h = self.upsample[i - 1](h)
            for block in blocks:
                h = block(torch.cat([h, stack.pop()], dim=1), emb)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _check_resolution(self, height: int, width: int) -> None:
        divisor = 2 ** (len(self.encoder) - 1)
        if min(height, width) < SMALLEST or height % divisor or width % divisor:
            raise ValueError(
                f"height and width of x must be at least {SMALLEST} and divisible by {divisor} for "
                f"{len(self.encoder)} levels, got {height} x {width}; pad the images or use fewer levels"
            )


class _Block(nn.Module):
    """A residual block, followed by self-attention where heads is not None."""

    def __init__(
        self, in_channels: int, out_channels: int, emb_dim: int, dropout: float, heads: int | None
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(in_channels, out_channels, emb_dim, dropout)
        self.attention = nn.Identity() if heads is None else SelfAttention(out_channels, heads)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.residual(h, emb))


def _check_arguments(
    in_channels: int,
    out_channels: int,
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    attention_levels: Sequence[int],
) -> None:
    if min(in_channels, out_channels, channels, blocks) < 1:
        raise ValueError(
            "in_channels, channels, blocks_per_level and out_channels must be at least 1, got in_channels="
            f"{in_channels}, channels={channels}, blocks_per_level={blocks} and out_channels={out_channels}"
        )
    if len(multipliers) == 0 or min(multipliers) < 1:
        raise ValueError(f"multipliers must be one or more integers of at least 1, got {tuple(multipliers)}")
    if not set(attention_levels) <= set(range(len(multipliers))):
        raise ValueError(
            f"attention_levels must lie in 0..{len(multipliers) - 1}, because there are {len(multipliers)} "
            f"multipliers, got {tuple(attention_levels)}"
        )
