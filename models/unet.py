"""A family of U-Nets for images: DDPM, DDPM++, NCSN++ and ADM, `net(x, noise, cond=None) -> like x`.

    conv_in -> encoder -> middle -> decoder -> conv_out

The encoder is a sequence of levels of residual blocks, each at half the resolution of the one before; the
decoder climbs back. Everything that the encoder makes (conv_in, each block, each downsampling) goes on a
stack, and each block of the decoder reads the top of the stack beside the features so far: a decoder level
has one block more. The middle is two residual blocks with self-attention between them.

Progressive growing (NCSN++) lets a pyramid of images run beside it: the input, downsampled level by level,
joins the encoder's features ("skip" through a 1x1 convolution, "residual" as features of its own), and every
level of the decoder contributes to the output ("skip" by images that are upsampled and added, "residual" by
features).

`models.presets` has the papers' networks as arguments of this class. Images may have one, two or three
dimensions and any aspect ratio.

References:
    U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015),
        https://arxiv.org/abs/1505.04597.
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239: Appendix B.
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: Appendix H, DDPM++ and NCSN++.
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233:
        Section 3, ADM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.conditions import Condition, ConditionEmbedding, read_condition
from score_diffusion.models.embeddings import NoiseEmbedding
from score_diffusion.models.layers import (
    CONVOLUTIONS,
    CrossAttention,
    Downsample,
    ResidualBlock,
    SelfAttention,
    Style,
    Upsample,
    check_inputs,
    zero_init,
)

SMALLEST = 8  # pixels of the shortest side
LAYOUTS = {1: "B, C, L", 2: "B, C, H, W", 3: "B, C, D, H, W"}
PYRAMIDS = ("none", "skip", "residual")


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
        embedding: str = "sinusoidal",  # of the noise: "sinusoidal", "sinusoidal_adm" or "fourier"
        out_channels: int | None = None,  # channels of the output; None for in_channels
        *,
        head_channels: int | None = None,  # channels per attention head, instead of a number of heads
        decoder_attention: str = "block",  # where a decoder level attends: each "block", or its end
        embedding_dim: int | None = None,  # size of the noise's embedding; None for channels
        embedding_scale: float | None = None,  # of its frequencies; None for its own, 1 for steps
        modulation: str = "scale_shift",  # how the noise acts on a block: "scale_shift" or "shift"
        resampling: str = "conv",  # "conv", "conv_asymmetric", "residual" or "biggan"
        filter: str = "box",  # of resampling: "box" or "fir"
        rescale: bool = False,  # whether sums of two branches are divided by √2
        input_pyramid: str = "none",  # growing pyramid of the input: "none", "skip", "residual"
        output_pyramid: str = "none",  # and of the output
        combine: str = "sum",  # how a "skip" of the input joins in: "sum" or "cat"
        norm_groups: int | None = None,  # of every group norm; None for at most 32, of four or more
        norm_eps: float = 1e-5,  # what group norm adds to a variance
        initialization: str = "torch",  # of the weights: PyTorch's, or "ddpm"'s by fan average
        dims: int = 2,  # dimensions of an image
        num_classes: int = 0,  # classes of cond's label; 0 for none
        vector_dim: int = 0,  # size of cond's vector; 0 for none
        token_dim: int = 0,  # size of cond's tokens, for cross-attention; 0 for none
        image_channels: int = 0,  # channels of cond's image; 0 for none
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        _check_arguments(in_channels, out_channels, channels, multipliers, blocks_per_level, attention_levels)
        _check_sizes(
            num_classes=num_classes, vector_dim=vector_dim, token_dim=token_dim, image_channels=image_channels
        )
        _check_choice("decoder_attention", decoder_attention, ("block", "level"))
        _check_choice("input_pyramid", input_pyramid, PYRAMIDS)
        _check_choice("output_pyramid", output_pyramid, PYRAMIDS)
        _check_choice("combine", combine, ("sum", "cat"))
        _check_choice("initialization", initialization, ("torch", "ddpm"))
        self.style = Style(dims, modulation, dropout, norm_groups, norm_eps, rescale, filter, resampling)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.input_pyramid, self.output_pyramid = input_pyramid, output_pyramid
        sizes = dict(label=num_classes, vector=vector_dim, tokens=token_dim, image=image_channels)
        self.condition_sizes = {kind: size for kind, size in sizes.items() if size}
        self.heads, self.head_channels, self.token_dim = heads, head_channels, token_dim
        self.emb_dim = 4 * channels
        levels = range(len(multipliers))
        widths = [channels * m for m in multipliers]

        self.embedding = NoiseEmbedding(embedding, embedding_dim or channels, self.emb_dim, embedding_scale)
        self.condition = ConditionEmbedding(num_classes, vector_dim, self.emb_dim)
        self.conv_in = self.style.conv(in_channels + image_channels, channels)

        width, stack = channels, [channels]  # channels of the features so far, and of those on the stack
        image_width = in_channels + image_channels  # of the input pyramid
        self.encoder = nn.ModuleList()
        self.downsample = nn.ModuleList()
        self.shrink = nn.ModuleList()  # the input pyramid's downsampling, and how it joins the features
        self.join = nn.ModuleList()
        for level in levels:
            if level > 0:
                self.downsample.append(self._resample(width, "down"))
                if input_pyramid == "skip":
                    self.join.append(_Join(self.style, image_width, width, combine))
                    width *= 2 if combine == "cat" else 1
                elif input_pyramid == "residual":
                    self.shrink.append(Downsample(image_width, self.style, width))
                    image_width = width
                stack.append(width)
            self.encoder.append(nn.ModuleList())
            for _ in range(blocks_per_level):
                self.encoder[-1].append(self._block(width, widths[level], level in attention_levels))
                width = widths[level]
                stack.append(width)

        self.middle = nn.ModuleList(self._block(width, width, attention) for attention in (True, False))

        self.decoder = nn.ModuleList()  # coarsest level first, as the features go
        self.upsample = nn.ModuleList()
        self.to_image = nn.ModuleList()  # the output pyramid's share of each level, and its upsampling
        self.grow = nn.ModuleList()
        for level in reversed(levels):
            if level < levels[-1]:
                self.upsample.append(self._resample(width, "up"))
            self.decoder.append(nn.ModuleList())
            for i in range(blocks_per_level + 1):
                attends = level in attention_levels and (
                    decoder_attention == "block" or i == blocks_per_level
                )
                self.decoder[-1].append(self._block(width + stack.pop(), widths[level], attends))
                width = widths[level]
            if output_pyramid == "skip":
                self.to_image.append(_Head(self.style, width, out_channels))
            elif output_pyramid == "residual" and level == levels[-1]:
                self.to_image.append(_Head(self.style, width, width, zero=False))
            elif output_pyramid == "residual":
                self.grow.append(Upsample(widths[level + 1], self.style, width))

        if output_pyramid != "skip":
            self.norm_out = self.style.norm(width)
            self.conv_out = zero_init(self.style.conv(width, out_channels))
        if initialization == "ddpm":
            _ddpm_initialization(self)

    def _resample(self, width: int, direction: str) -> nn.Module:
        if self.style.resampling in ("residual", "biggan"):
            return ResidualBlock(width, width, self.emb_dim, self.style, direction)
        return (Downsample if direction == "down" else Upsample)(width, self.style)

    def _block(self, in_channels: int, out_channels: int, attention: bool) -> _Block:
        heads = self.heads
        if attention and self.head_channels is not None:
            if self.head_channels < 1 or out_channels % self.head_channels:
                raise ValueError(
                    f"head_channels must divide the {out_channels} channels of an attention block, got "
                    f"{self.head_channels}"
                )
            heads = out_channels // self.head_channels
        return _Block(
            in_channels, out_channels, self.emb_dim, self.style, heads if attention else None, self.token_dim
        )

    def forward(self, x: Tensor, noise: Tensor, cond: Condition | None = None) -> Tensor:
        """The network's output for noisy images.

        Args:
            x: Noisy images, shape (B, C, *size), in the dtype of the weights; each side is at least 8 and
                divisible by 2^(levels - 1).
            noise: Noise levels log(σ/α), or what ScoreModel's `noise_input` says, shape (B,).
            cond: The condition, see `models.conditions`; None for none.

        Returns:
            A tensor like x, but with out_channels channels.

        Raises:
            ValueError: If a shape or dtype is wrong, or the condition is not one that this network takes.
        """
        check_inputs(x, noise, LAYOUTS[self.style.dims], self.in_channels)
        self._check_resolution(x.shape[2:])
        given = read_condition(cond, self.condition_sizes, x)
        emb = F.silu(self.condition(self.embedding(noise), given))
        if "image" in given:
            x = torch.cat([x, given["image"]], dim=1)
        tokens = self._tokens(given, x)
        h, stack = self._encode(x, emb, tokens)
        for block in self.middle:
            h = block(h, emb, *tokens)
        return self._decode(h, stack, emb, tokens)

    def _tokens(self, given: dict[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
        """The tokens and their mask, if the network takes any."""
        if not self.token_dim:
            return ()
        tokens = given.get("tokens", x.new_zeros(len(x), 0, self.token_dim))
        everything = torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device)
        return tokens, given.get("mask", everything)

    def _encode(self, x: Tensor, emb: Tensor, tokens: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """The features at the coarsest level, and the stack of all that the decoder reads."""
        h, pyramid = self.conv_in(x), x
        stack = [h]
        for level, blocks in enumerate(self.encoder):
            if level > 0:
                h = self.downsample[level - 1](h, emb)
                if self.input_pyramid == "skip":
                    pyramid = self.style.down(pyramid)
                    h = self.join[level - 1](pyramid, h)
                elif self.input_pyramid == "residual":
                    h = pyramid = self.style.merge(self.shrink[level - 1](pyramid), h)
                stack.append(h)
            for block in blocks:
                h = block(h, emb, *tokens)
                stack.append(h)
        return h, stack

    def _decode(self, h: Tensor, stack: list[Tensor], emb: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
        """The output, from the features of the middle and the stack."""
        pyramid = None
        for i, blocks in enumerate(self.decoder):
            if i > 0:
                h = self.upsample[i - 1](h, emb)
            for block in blocks:
                h = block(torch.cat([h, stack.pop()], dim=1), emb, *tokens)
            if self.output_pyramid == "skip":
                image = self.to_image[i](h)
                pyramid = image if i == 0 else self.style.up(pyramid) + image
            elif self.output_pyramid == "residual" and i == 0:
                pyramid = self.to_image[0](h)
            elif self.output_pyramid == "residual":
                h = pyramid = self.style.merge(self.grow[i - 1](pyramid), h)
        return pyramid if self.output_pyramid == "skip" else self.conv_out(F.silu(self.norm_out(h)))

    def _check_resolution(self, size: Sequence[int]) -> None:
        divisor = 2 ** (len(self.encoder) - 1)
        if min(size) < SMALLEST or any(side % divisor for side in size):
            raise ValueError(
                f"height and width of x must be at least {SMALLEST} and divisible by {divisor} for "
                f"{len(self.encoder)} levels, got {' x '.join(map(str, size))}; pad the images or use fewer "
                "levels"
            )


class _Block(nn.Module):
    """A residual block, followed by attention to pixels, and to tokens if there are any, where heads is not
    None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        style: Style,
        heads: int | None,
        token_dim: int,
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(in_channels, out_channels, emb_dim, style)
        self.attention = nn.Identity() if heads is None else SelfAttention(out_channels, heads, style)
        attends = heads is not None and token_dim
        self.cross = CrossAttention(out_channels, token_dim, heads, style) if attends else None

    def forward(self, h: Tensor, emb: Tensor, *tokens: Tensor) -> Tensor:
        h = self.attention(self.residual(h, emb))
        return h if self.cross is None else self.cross(h, *tokens)


class _Join(nn.Module):
    """How the input pyramid joins the features, behind a 1x1 convolution: added to them, or beside them."""

    def __init__(self, style: Style, image_channels: int, channels: int, combine: str) -> None:
        super().__init__()
        self.conv = style.conv(image_channels, channels, 1)
        self.combine = combine

    def forward(self, image: Tensor, h: Tensor) -> Tensor:
        image = self.conv(image)
        return image + h if self.combine == "sum" else torch.cat([image, h], dim=1)


class _Head(nn.Module):
    """Features to a level's share of the output pyramid: conv(silu(norm(h)))."""

    def __init__(self, style: Style, in_channels: int, out_channels: int, zero: bool = True) -> None:
        super().__init__()
        self.norm = style.norm(in_channels)
        conv = style.conv(in_channels, out_channels)
        self.conv = zero_init(conv) if zero else conv

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(h)))


def _ddpm_initialization(net: UNet) -> None:
    """DDPM's: weights uniform with variance 1/(fan average), biases zero, what starts at zero left there.

    The 1x1 projections of attention and of the shortcuts of "shift" blocks start with a tenth of that
    variance, as those of the papers' code.
    """
    small = {m.qkv for m in net.modules() if isinstance(m, SelfAttention)}
    if net.style.resampling != "biggan":
        small |= {m.shortcut for m in net.modules() if isinstance(m, ResidualBlock)}
    for module in net.modules():
        projects = isinstance(module, (nn.Linear, *CONVOLUTIONS.values()))
        if projects and not getattr(module, "starts_at_zero", False):
            nn.init.xavier_uniform_(module.weight, gain=math.sqrt(0.1) if module in small else 1.0)
            nn.init.zeros_(module.bias)


def _check_choice(name: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(valid)}, got {value!r}")


def _check_sizes(**sizes: int) -> None:
    negative = {name: size for name, size in sizes.items() if size < 0}
    if negative:
        names = " and ".join(f"{name}={size}" for name, size in negative.items())
        raise ValueError(f"a condition's size must be 0 for none or positive, got {names}")


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
