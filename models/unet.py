"""A family of U-Nets for images: DDPM, DDPM++, NCSN++ and ADM, `net(x, noise, cond=None) -> like x`.

    conv_in -> encoder -> middle -> decoder -> conv_out

The encoder is a sequence of levels of residual blocks, each level at half the resolution of the one before;
the decoder goes back up. The outputs of conv_in, of every block and of every downsampling of the encoder are
pushed onto a stack. Every block of the decoder pops the top of the stack and concatenates it to its input, so
that a decoder level has one block more. The middle is two residual blocks with self-attention between them.

Progressive growing (NCSN++) adds a pyramid of images. In the encoder, the downsampled input joins the
features of each level ("skip": through a 1x1 convolution; "residual": as features of its own). In the
decoder, each level contributes to the output ("skip": an image that is upsampled and added; "residual":
features).

`models.presets` has the papers' networks as arguments of this class. Images have one, two or three dimensions
and any aspect ratio.

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
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from score_diffusion.models.conditions import Condition, ConditionEmbedding, read_condition, tokens_and_mask
from score_diffusion.models.embeddings import NoiseEmbedding
from score_diffusion.models.fourier_inputs import FourierInputs
from score_diffusion.models.layers import (
    LAYOUTS,
    CrossAttention,
    Downsample,
    ResidualBlock,
    SelfAttention,
    Style,
    Upsample,
    check_inputs,
    zero_init,
)

SMALLEST_SIDE = 4  # pixels
CHOICES = {
    "decoder_attention": ("block", "level"),
    "input_pyramid": ("none", "skip", "residual"),
    "output_pyramid": ("none", "skip", "residual"),
    "combine": ("sum", "cat"),
    "initialization": ("torch", "ddpm"),
}


class UNet(nn.Module):
    """A U-Net of residual and attention blocks, conditioned on the noise. At initialization its output is 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,  # channels of the images
        channels: int = 64,  # width of the finest level for a multiplier of 1; even
        multipliers: Sequence[int] = (1, 2),  # width of each level in units of channels, finest first
        blocks_per_level: int = 2,  # residual blocks per level of the encoder
        attention_levels: Sequence[int] = (1,),  # levels whose blocks end in self-attention; 0 is the finest
        heads: int = 4,  # attention heads; must divide the widths of these levels
        dropout: float = 0.0,  # dropout probability inside the residual blocks
        embedding: str = "sinusoidal",  # embedding of the noise: sinusoidal, sinusoidal_adm or fourier
        out_channels: int | None = None,  # channels of the output; None for in_channels
        *,
        head_channels: int | None = None,  # channels per attention head, instead of a number of heads
        decoder_attention: str = "block",  # in a decoder level: after every block, or once per level
        embedding_dim: int | None = None,  # size of the noise's embedding; None for channels
        embedding_scale: float | None = None,  # scale of its frequencies; None for the default, 1 for steps
        embedding_width: int | None = None,  # width of its two linear layers; None for 4 channels
        condition_first: bool = False,  # whether label and vector are added before these layers
        modulation: str = "scale_shift",  # how the noise modulates a block: scale_shift or shift
        resampling: str = "conv",  # layers that resample: conv, conv_asymmetric, residual or biggan
        filter: str = "box",  # filter of resampling: box or fir
        rescale: bool = False,  # whether the sum of two branches is divided by √2
        input_pyramid: str = "none",  # progressive growing of the input: none, skip or residual
        output_pyramid: str = "none",  # progressive growing of the output: none, skip or residual
        combine: str = "sum",  # how a skip of the input joins the features: sum or cat
        fourier_inputs: Sequence[int] = (),  # exponents n of the features sin and cos(2^n π x) of the input
        norm_groups: int | None = None,  # groups of each norm; None for at most 32, of four channels or more
        norm_eps: float = 1e-5,  # the ε that a group norm adds to the variance
        initialization: str = "torch",  # of the weights: torch's default, or ddpm's, by fan average
        dims: int = 2,  # dimensions of an image
        num_classes: int = 0,  # classes of cond's label; 0 for none
        vector_dim: int = 0,  # size of cond's vector; 0 for none
        token_dim: int = 0,  # size of cond's tokens, for cross-attention; 0 for none
        image_channels: int = 0,  # channels of cond's image; 0 for none
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        _check_arguments(in_channels, out_channels, channels, multipliers, blocks_per_level, attention_levels)
        _check_choices(
            decoder_attention=decoder_attention, input_pyramid=input_pyramid, output_pyramid=output_pyramid,
            combine=combine, initialization=initialization,
        )  # fmt: skip
        self.style = Style(dims, modulation, dropout, norm_groups, norm_eps, rescale, filter, resampling)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.input_pyramid, self.output_pyramid, self.combine = input_pyramid, output_pyramid, combine
        self.condition_sizes = _condition_sizes(num_classes, vector_dim, token_dim, image_channels)
        self.heads, self.head_channels = heads, head_channels
        embedding_dim, self.emb_dim = embedding_dim or channels, embedding_width or 4 * channels
        self.embedding = NoiseEmbedding(embedding, embedding_dim, self.emb_dim, embedding_scale)
        self.condition_first, self.token_dim = condition_first, token_dim
        condition_dim = embedding_dim if condition_first else self.emb_dim
        self.condition = ConditionEmbedding(num_classes, vector_dim, condition_dim)
        self.fourier_inputs = FourierInputs(fourier_inputs)
        self.conv_in = self.style.conv(in_channels * self.fourier_inputs.factor + image_channels, channels)
        widths = [channels * m for m in multipliers]
        stack = self._add_encoder(self.conv_in.in_channels, widths, blocks_per_level, attention_levels)
        self.middle = nn.ModuleList(self._block(widths[-1], widths[-1], attends) for attends in (True, False))
        self._add_decoder(stack, widths, blocks_per_level, attention_levels, decoder_attention)
        if initialization == "ddpm":
            _ddpm_initialization(self)

    def _add_encoder(
        self, image_width: int, widths: Sequence[int], blocks: int, attention_levels: Sequence[int]
    ) -> list[int]:
        """Adds the modules of the encoder; returns the channels of all features on the stack."""
        self.encoder = nn.ModuleList()
        self.downsample = nn.ModuleList()
        self.shrink = nn.ModuleList()  # downsamples the input pyramid
        self.join = nn.ModuleList()  # joins it to the features
        width = self.conv_in.out_channels
        stack = [width]
        for level, level_width in enumerate(widths):
            if level > 0:
                self.downsample.append(self._resample(width, "down"))
                if self.input_pyramid == "skip":
                    self.join.append(_Join(self.style, image_width, width, self.combine))
                    width *= 2 if self.combine == "cat" else 1
                elif self.input_pyramid == "residual":
                    self.shrink.append(Downsample(image_width, self.style, width))
                    image_width = width
                stack.append(width)
            level_blocks = _EncoderLevel()
            for _ in range(blocks):
                level_blocks.append(self._block(width, level_width, level in attention_levels))
                width = level_width
                stack.append(width)
            self.encoder.append(level_blocks)
        return stack

    def _add_decoder(
        self,
        stack: list[int],
        widths: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        decoder_attention: str,
    ) -> None:
        """Adds the modules of the decoder and of the output."""
        self.decoder = nn.ModuleList()  # coarsest level first, the order of computation
        self.upsample = nn.ModuleList()
        self.to_image = nn.ModuleList()  # the contribution of each level to the output pyramid
        self.grow = nn.ModuleList()  # upsamples the output pyramid
        width, coarsest = widths[-1], len(widths) - 1
        for level in reversed(range(len(widths))):
            if level < coarsest:
                self.upsample.append(self._resample(width, "up"))
            level_blocks = _DecoderLevel()
            for i in range(blocks + 1):
                attends = level in attention_levels and (decoder_attention == "block" or i == blocks)
                level_blocks.append(self._block(width + stack.pop(), widths[level], attends))
                width = widths[level]
            self.decoder.append(level_blocks)
            if self.output_pyramid == "skip":
                self.to_image.append(_ToImage(self.style, width, self.out_channels))
            elif self.output_pyramid == "residual" and level == coarsest:
                self.to_image.append(_ToImage(self.style, width, width, zero=False))
            elif self.output_pyramid == "residual":
                self.grow.append(Upsample(widths[level + 1], self.style, width))
        if self.output_pyramid != "skip":
            self.norm_out = self.style.norm(width)
            self.conv_out = zero_init(self.style.conv(width, self.out_channels))

    def _resample(self, width: int, direction: str) -> nn.Module:
        if self.style.resampling in ("residual", "biggan"):
            return ResidualBlock(width, width, self.emb_dim, self.style, direction)
        return (Downsample if direction == "down" else Upsample)(width, self.style)

    def _block(self, in_channels: int, out_channels: int, attends: bool) -> _Block:
        heads = self.heads
        if attends and self.head_channels is not None:
            if self.head_channels < 1 or out_channels % self.head_channels:
                raise ValueError(
                    f"head_channels must divide the {out_channels} channels of an attention block, got "
                    f"{self.head_channels}"
                )
            heads = out_channels // self.head_channels
        return _Block(
            in_channels, out_channels, self.emb_dim, self.style, heads if attends else None, self.token_dim
        )

    def forward(self, x: Tensor, noise: Tensor, cond: Condition | None = None) -> Tensor:
        """The output of the network for noisy images.

        Args:
            x: Noisy images, shape (B, C, *size), in the dtype of the weights; each side is at least 4 and
                divisible by 2^(levels - 1).
            noise: Noise levels log(σ/α), or ScoreModel's `noise_input` of them, shape (B,). Fourier inputs
                need log(σ/α).
            cond: The condition, see `models.conditions`; None for the null condition.

        Returns:
            A tensor like x, but with out_channels channels.

        Raises:
            ValueError: If a shape or dtype is wrong, or the network does not take this condition.
        """
        check_inputs(x, noise, LAYOUTS[self.style.dims], self.in_channels)
        self._check_resolution(x.shape[2:])
        by_kind = read_condition(cond, self.condition_sizes, x)
        condition = partial(self.condition, cond=by_kind)
        if self.condition_first:
            emb = F.silu(self.embedding(noise, condition))
        else:
            emb = F.silu(condition(self.embedding(noise)))
        x = self.fourier_inputs(x, noise)
        if "image" in by_kind:
            x = torch.cat([x, by_kind["image"]], dim=1)
        tokens = tokens_and_mask(by_kind, self.token_dim, x) if self.token_dim else ()
        h, stack = self._encode(x, emb, tokens)
        for block in self.middle:
            h = block(h, emb, *tokens)
        return self._decode(h, stack, emb, tokens)

    def _encode(self, x: Tensor, emb: Tensor, tokens: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """The features of the coarsest level, and the stack that the decoder reads."""
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
            h = blocks(h, emb, tokens, stack)
        return h, stack

    def _decode(self, h: Tensor, stack: list[Tensor], emb: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
        """The output, from the features of the middle and the stack."""
        pyramid = h  # assigned in the first level of a network with an output pyramid
        for i, blocks in enumerate(self.decoder):
            if i > 0:
                h = self.upsample[i - 1](h, emb)
            h = blocks(h, emb, tokens, stack)
            if self.output_pyramid == "skip":
                image = self.to_image[i](h)
                pyramid = image if i == 0 else self.style.up(pyramid) + image
            elif self.output_pyramid == "residual" and i == 0:
                pyramid = self.to_image[0](h)
            elif self.output_pyramid == "residual":
                h = pyramid = self.style.merge(self.grow[i - 1](pyramid), h)
        return pyramid if self.output_pyramid == "skip" else self.conv_out(F.silu(self.norm_out(h)))

    def recompute_blocks(self) -> None:
        """Makes the backward pass compute what is inside of blocks again, instead of keeping it in memory.

        Gradients stay the same, with dropout too (Training Deep Nets with Sublinear Memory Cost, Chen et al.,
        2016, https://arxiv.org/abs/1604.06174).
        """
        for module in self.modules():
            if isinstance(module, _Block):
                module.recompute = True

    def _check_resolution(self, size: Sequence[int]) -> None:
        divisor = 2 ** (len(self.encoder) - 1)
        if min(size) < SMALLEST_SIDE or any(side % divisor for side in size):
            raise ValueError(
                f"each side of x must be at least {SMALLEST_SIDE} and divisible by {divisor} for "
                f"{len(self.encoder)} levels, got {' x '.join(map(str, size))}; pad the images or use fewer "
                "levels"
            )


class _EncoderLevel(nn.ModuleList):
    """Blocks of one resolution; the output of each goes onto the stack."""

    def forward(self, h: Tensor, emb: Tensor, tokens: tuple[Tensor, ...], stack: list[Tensor]) -> Tensor:
        for block in self:
            h = block(h, emb, *tokens)
            stack.append(h)
        return h


class _DecoderLevel(nn.ModuleList):
    """Blocks of one resolution; each concatenates the top of the stack to its input."""

    def forward(self, h: Tensor, emb: Tensor, tokens: tuple[Tensor, ...], stack: list[Tensor]) -> Tensor:
        for block in self:
            h = block(torch.cat([h, stack.pop()], dim=1), emb, *tokens)
        return h


class _Block(nn.Module):
    """A residual block; with heads also attention to all pixels, and to the tokens if there are any."""

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
        self.cross = CrossAttention(out_channels, token_dim, heads, style) if heads and token_dim else None
        self.recompute = False

    def forward(self, h: Tensor, emb: Tensor, *tokens: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._run, h, emb, *tokens, use_reentrant=False)
        return self._run(h, emb, *tokens)

    def _run(self, h: Tensor, emb: Tensor, *tokens: Tensor) -> Tensor:
        h = self.attention(self.residual(h, emb))
        return h if self.cross is None else self.cross(h, *tokens)


class _Join(nn.Module):
    """Joins the input pyramid to the features, by a 1x1 convolution and a sum or a concatenation."""

    def __init__(self, style: Style, image_channels: int, channels: int, combine: str) -> None:
        super().__init__()
        self.conv = style.conv(image_channels, channels, 1)
        self.combine = combine

    def forward(self, image: Tensor, h: Tensor) -> Tensor:
        image = self.conv(image)
        return image + h if self.combine == "sum" else torch.cat([image, h], dim=1)


class _ToImage(nn.Module):
    """The contribution of a level to the output pyramid: conv(silu(norm(h)))."""

    def __init__(self, style: Style, in_channels: int, out_channels: int, zero: bool = True) -> None:
        super().__init__()
        self.norm = style.norm(in_channels)
        conv = style.conv(in_channels, out_channels)
        self.conv = zero_init(conv) if zero else conv

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(h)))


def _ddpm_initialization(net: UNet) -> None:
    """Initializes the weights as DDPM does: uniform with variance 1/(fan average), and biases of zero.

    Layers that start at zero stay so. The 1x1 projections of attention and the shortcuts of blocks other than
    BigGAN's start with a tenth of that variance, as in the papers' code.
    """
    small: set[nn.Module] = {m.qkv for m in net.modules() if isinstance(m, SelfAttention)}
    if net.style.resampling != "biggan":
        small |= {m.shortcut for m in net.modules() if isinstance(m, ResidualBlock)}
    for module in net.modules():
        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            continue
        if not getattr(module, "starts_at_zero", False) and module.bias is not None:
            nn.init.xavier_uniform_(module.weight, gain=math.sqrt(0.1) if module in small else 1.0)
            nn.init.zeros_(module.bias)


def _check_choices(**values: str) -> None:
    for name, value in values.items():
        if value not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}, got {value!r}")


def _condition_sizes(
    num_classes: int, vector_dim: int, token_dim: int, image_channels: int
) -> dict[str, int]:
    """The sizes of the conditions that the network takes, by kind."""
    arguments = dict(
        num_classes=num_classes, vector_dim=vector_dim, token_dim=token_dim, image_channels=image_channels
    )
    negative = [f"{name}={size}" for name, size in arguments.items() if size < 0]
    if negative:
        raise ValueError(f"a condition's size must be 0 for none or positive, got {' and '.join(negative)}")
    sizes = dict(label=num_classes, vector=vector_dim, tokens=token_dim, image=image_channels)
    return {kind: size for kind, size in sizes.items() if size}


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
            f"attention_levels must lie in 0..{len(multipliers) - 1} for {len(multipliers)} multipliers, "
            f"got {tuple(attention_levels)}"
        )
