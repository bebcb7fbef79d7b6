"""Convolutional autoencoders: the first stage of latent diffusion, which compresses images to small latents.

    encoder    conv_in -> [blocks, halving] per level -> middle -> norm, silu, conv -> quant (1x1)
    decoder    post_quant (1x1) -> conv_in -> middle -> [blocks, doubling] per level -> norm, silu, conv

Blocks are residual; the middle is a block, attention between all positions, and a block. With L levels an
image of sides H x W has latents of H/f x W/f, f = 2^(L - 1), with few channels. What keeps the latents from
an arbitrary scale is their regularization (Rombach et al., 2022, Section 3.1):

    AutoencoderKL    the encoder gives the mean and the variance of a Gaussian q(z|x), and the loss a small
                     weight to KL(q(z|x) || N(0, I)) (Kingma & Welling, 2014, Appendix B):
                         KL = ½ Σ_d (μ_d² + σ_d² - 1 - log σ_d²)
    AutoencoderVQ    the decoder sees each latent vector's nearest code e of a learned codebook (van den Oord
                     et al., 2017, eq. 3, with sg for "stop gradient"):
                         ‖sg[z] - e‖² + β ‖z - sg[e]‖²,    and the decoder's gradient passes to z unchanged

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022),
        https://arxiv.org/abs/2112.10752: Section 3.1, Appendix G.
    Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114.
    Neural Discrete Representation Learning (van den Oord et al., 2017), https://arxiv.org/abs/1711.00937.
    Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2021),
        https://arxiv.org/abs/2012.09841: the layout of encoder and decoder.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.layers import LAYOUTS, Downsample, SelfAttention, Style, Upsample

LOWEST_LOG_VARIANCE, HIGHEST_LOG_VARIANCE = -30.0, 20.0


class Reconstruction(NamedTuple):
    """What an autoencoder makes of images (B, C, *size)."""

    images: Tensor
    """The decoded images, shape (B, C, *size)."""
    penalty: Tensor
    """The regularization of their latents, (B,), next to a mean over the pixel values of an image: KL in nats
    per pixel value, or the losses of the codebook per element of the latents."""
    latents: Tensor | None = None
    """The latents before a codebook replaces them, (B, D, *size/f); None without one."""
    codes: Tensor | None = None
    """The indices of their codes, int64 (B, *size/f); None without a codebook."""


class Autoencoder(nn.Module):
    """Encoder and decoder; subclasses regularize the latents.

    Args:
        in_channels: Channels of the images.
        latent_channels: Channels of the latents.
        encoder_channels: Channels of what the encoder gives.
        channels, multipliers, blocks_per_level, attention, norm_groups, dims: As for the subclasses.

    Raises:
        ValueError: If an argument is out of its range.
    """

    penalty_weight: float
    """Weight of the penalty in the paper (Rombach et al., 2022, Table 8 and the authors' configurations)."""

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        encoder_channels: int,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks_per_level: int,
        attention: bool,
        norm_groups: int | None,
        dims: int,
    ) -> None:
        super().__init__()
        for name, number in (
            ("in_channels", in_channels),
            ("latent_channels", latent_channels),
            ("channels", channels),
            ("blocks_per_level", blocks_per_level),
            *(("multipliers", multiplier) for multiplier in multipliers or (0,)),
        ):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        style = Style(dims, norm_groups=norm_groups, norm_eps=1e-6, resampling="conv_asymmetric")
        layout = Layout(tuple(channels * m for m in multipliers), blocks_per_level, attention, style)
        self.in_channels, self.latent_channels, self.dims = in_channels, latent_channels, dims
        self.factor = 2 ** (len(multipliers) - 1)
        """Pixels per latent position along each side."""
        self.encoder = Encoder(in_channels, encoder_channels, layout)
        self.quant = style.conv(encoder_channels, encoder_channels, 1)
        self.post_quant = style.conv(latent_channels, latent_channels, 1)
        self.decoder = Decoder(latent_channels, in_channels, layout)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the latents of images of a shape, both (C, *size)."""
        return (self.latent_channels, *(side // self.factor for side in shape[1:]))

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """The latents (B, latent_channels, *size/f) of images (B, C, *size)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The images (B, C, *size) of latents (B, latent_channels, *size/f)."""

    @abstractmethod
    def forward(self, x: Tensor) -> Reconstruction:
        """Encodes and decodes images (B, C, *size).

        Raises:
            ValueError: If a shape or dtype is wrong.
        """

    def _encoded(self, x: Tensor) -> Tensor:
        names = LAYOUTS[self.dims].split(", ")
        if x.ndim != len(names) or x.shape[1] != self.in_channels:
            names[1] = f"{names[1]}={self.in_channels}"
            raise ValueError(f"x must have shape ({', '.join(names)}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"x must have a floating dtype, got {x.dtype}; convert it with x.float()")
        if any(side % self.factor for side in x.shape[2:]):
            raise ValueError(
                f"each side of x must be divisible by {self.factor} for {len(self.encoder.levels)} levels, "
                f"got {' x '.join(map(str, x.shape[2:]))}; pad the images or use fewer levels"
            )
        return self.quant(self.encoder(x))

    def _decoded(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant(z))


class AutoencoderKL(Autoencoder):
    """An autoencoder with Gaussian latents; its latents are the means. While it trains, it decodes draws.

    Raises:
        ValueError: If an argument is out of its range.
    """

    penalty_weight = 1e-6

    def __init__(
        self,
        in_channels: int,  # channels of the images
        latent_channels: int = 4,  # channels of the latents
        channels: int = 32,  # width of the finest level for a multiplier of 1
        multipliers: Sequence[int] = (1, 2, 2),  # width of each level in units of channels, finest first
        blocks_per_level: int = 1,  # residual blocks per level of the encoder; the decoder has one more
        attention: bool = True,  # whether the coarsest level attends between all positions
        norm_groups: int | None = None,  # groups of each norm; None for at most 32, of four channels or more
        dims: int = 2,  # dimensions of an image
    ) -> None:
        super().__init__(
            in_channels,
            latent_channels,
            2 * latent_channels,
            channels=channels,
            multipliers=multipliers,
            blocks_per_level=blocks_per_level,
            attention=attention,
            norm_groups=norm_groups,
            dims=dims,
        )

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), both (B, latent_channels, *size/f)."""
        mean, log_variance = self._encoded(x).chunk(2, dim=1)
        return mean, log_variance.clamp(LOWEST_LOG_VARIANCE, HIGHEST_LOG_VARIANCE)

    def encode(self, x: Tensor) -> Tensor:
        """The means of q(z|x)."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """The images of latents."""
        return self._decoded(z)

    def forward(self, x: Tensor) -> Reconstruction:
        """Encodes and decodes images: in training a draw of q(z|x) by torch's generator, else its mean."""
        mean, log_variance = self.posterior(x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
        kl = kl_divergence(mean.float(), log_variance.float())
        return Reconstruction(self._decoded(z), kl / x[0].numel())


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) of each sample in nats, shape (B,)."""
    terms = mean.square() + log_variance.exp() - 1 - log_variance
    return 0.5 * terms.flatten(1).sum(1)


class AutoencoderVQ(Autoencoder):
    """An autoencoder with a codebook; its latents are those of the encoder, which decoding quantizes.

    Raises:
        ValueError: If an argument is out of its range.
    """

    penalty_weight = 1.0

    def __init__(
        self,
        in_channels: int,  # channels of the images
        latent_channels: int = 4,  # channels of the latents, the size of a code
        codebook_size: int = 512,  # number of codes
        commitment: float = 0.25,  # weight β of the distance that pulls the encoder to its codes
        channels: int = 32,  # width of the finest level for a multiplier of 1
        multipliers: Sequence[int] = (1, 2, 2),  # width of each level in units of channels, finest first
        blocks_per_level: int = 1,  # residual blocks per level of the encoder; the decoder has one more
        attention: bool = True,  # whether the coarsest level attends between all positions
        norm_groups: int | None = None,  # groups of each norm; None for at most 32, of four channels or more
        dims: int = 2,  # dimensions of an image
    ) -> None:
        super().__init__(
            in_channels,
            latent_channels,
            latent_channels,
            channels=channels,
            multipliers=multipliers,
            blocks_per_level=blocks_per_level,
            attention=attention,
            norm_groups=norm_groups,
            dims=dims,
        )
        if codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {codebook_size}")
        if commitment < 0:
            raise ValueError(f"commitment must be at least 0, got {commitment}")
        self.commitment = commitment
        self.codebook = nn.Embedding(codebook_size, latent_channels)
        nn.init.uniform_(self.codebook.weight, -1 / codebook_size, 1 / codebook_size)

    def encode(self, x: Tensor) -> Tensor:
        """The latents before they are quantized."""
        return self._encoded(x)

    def nearest(self, z: Tensor) -> Tensor:
        """The index of the code nearest to each latent vector, int64 (B, *size/f)."""
        codes = self.codebook.weight.float()
        vectors = z.detach().float().movedim(1, -1)  # (B, *size/f, D)
        with torch.autocast(z.device.type, enabled=False):
            # ‖z - e‖² without ‖z‖², which is the same for all codes
            distances = codes.square().sum(1) - 2 * vectors @ codes.T
        return distances.argmin(-1)

    def codes(self, indices: Tensor) -> Tensor:
        """The codes (B, latent_channels, *size/f) of indices (B, *size/f)."""
        return self.codebook(indices).movedim(-1, 1)

    def decode(self, z: Tensor) -> Tensor:
        """The images of latents, each vector replaced by its nearest code."""
        return self._decoded(self.codes(self.nearest(z)))

    def forward(self, x: Tensor) -> Reconstruction:
        """Encodes, quantizes and decodes images."""
        z = self._encoded(x)
        indices = self.nearest(z)
        e = self.codes(indices)
        to_code, to_latent = (z.detach() - e).square(), (z - e.detach()).square()
        penalty = (to_code + self.commitment * to_latent).float().flatten(1).mean(1)
        return Reconstruction(self._decoded(z + (e - z).detach()), penalty, z.detach(), indices)


@dataclass(frozen=True)
class Layout:
    """What encoder and decoder have in common."""

    widths: tuple[int, ...]
    """Channels of each level, finest first."""
    blocks_per_level: int
    """Residual blocks of each level of the encoder; the decoder has one more."""
    attention: bool
    """Whether the middle attends between all positions."""
    style: Style

    def blocks(self, in_channels: int, out_channels: int, count: int) -> nn.Sequential:
        """The blocks of a level."""
        first = PlainBlock(in_channels, out_channels, self.style)
        others = (PlainBlock(out_channels, out_channels, self.style) for _ in range(count - 1))
        return nn.Sequential(first, *others)

    def middle(self) -> nn.Sequential:
        """The blocks between encoder and decoder, of which each has its own."""
        width = self.widths[-1]
        attend = SelfAttention(width, 1, self.style) if self.attention else nn.Identity()
        return nn.Sequential(
            PlainBlock(width, width, self.style), attend, PlainBlock(width, width, self.style)
        )


class Encoder(nn.Module):
    """The encoder of an autoencoder: (B, in_channels, *size) to (B, out_channels, *size/f).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        layout: Its levels and blocks.
    """

    def __init__(self, in_channels: int, out_channels: int, layout: Layout) -> None:
        super().__init__()
        style, width = layout.style, layout.widths[0]
        self.conv_in = style.conv(in_channels, width)
        self.levels, self.downsample = nn.ModuleList(), nn.ModuleList()
        for level, level_width in enumerate(layout.widths):
            if level > 0:
                self.downsample.append(Downsample(width, style))
            self.levels.append(layout.blocks(width, level_width, layout.blocks_per_level))
            width = level_width
        self.middle = layout.middle()
        self.norm_out, self.conv_out = style.norm(width), style.conv(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Images to features of the coarsest level."""
        h = self.conv_in(x)
        for level, blocks in enumerate(self.levels):
            if level > 0:
                h = self.downsample[level - 1](h)
            h = blocks(h)
        return self.conv_out(F.silu(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    """The decoder of an autoencoder: (B, in_channels, *size/f) to (B, out_channels, *size).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        layout: Its levels and blocks.
    """

    def __init__(self, in_channels: int, out_channels: int, layout: Layout) -> None:
        super().__init__()
        style, width = layout.style, layout.widths[-1]
        self.conv_in = style.conv(in_channels, width)
        self.middle = layout.middle()
        self.levels, self.upsample = nn.ModuleList(), nn.ModuleList()  # coarsest first
        for level, level_width in enumerate(reversed(layout.widths)):
            if level > 0:
                self.upsample.append(Upsample(width, style))
            self.levels.append(layout.blocks(width, level_width, layout.blocks_per_level + 1))
            width = level_width
        self.norm_out, self.conv_out = style.norm(width), style.conv(width, out_channels)

    def forward(self, z: Tensor) -> Tensor:
        """Features of the coarsest level to images."""
        h = self.middle(self.conv_in(z))
        for level, blocks in enumerate(self.levels):
            if level > 0:
                h = self.upsample[level - 1](h)
            h = blocks(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class PlainBlock(nn.Module):
    """A residual block that no noise modulates: shortcut(h) + conv2(silu(norm2(conv1(silu(norm1(h)))))).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; if they differ, the shortcut is a 1x1 convolution.
        style: The style of the network.
    """

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__()
        self.style = style
        self.norm1, self.conv1 = style.norm(in_channels), style.conv(in_channels, out_channels)
        self.norm2, self.conv2 = style.norm(out_channels), style.conv(out_channels, out_channels)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else style.conv(in_channels, out_channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        """Features (B, in_channels, *size) to (B, out_channels, *size)."""
        out = self.conv1(F.silu(self.norm1(h)))
        return self.style.merge(self.shortcut(h), self.conv2(F.silu(self.norm2(out))))
