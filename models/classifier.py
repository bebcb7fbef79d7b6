"""A noise-conditional classifier: half of a U-Net, then attention pooling, `net(x, noise) -> logits`.

    conv_in -> encoder -> middle -> attention pooling -> logits (B, K)

Encoder and middle are those of `UNet`. Attention pooling is one step of attention whose query is the mean of
all positions (Radford et al., 2021): images may have any size that the U-Net takes.

References:
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233:
        Section 4.
    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021),
        https://arxiv.org/abs/2103.00020: Section 2.4, attention pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.conditions import Condition, read_condition
from score_diffusion.models.layers import LAYOUTS, check_inputs
from score_diffusion.models.unet import UNet


class NoisyImageEncoder(UNet):
    """The encoder and the middle of a U-Net, pooled to a vector.

    Args:
        in_channels: Channels of the images.
        features: Size of the vector.
        channels, multipliers, blocks_per_level, attention_levels, heads, dropout, embedding, dims: As for
            `UNet`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks_per_level: int,
        attention_levels: Sequence[int],
        heads: int,
        dropout: float,
        embedding: str,
        dims: int,
    ) -> None:
        self.features = features
        super().__init__(
            in_channels,
            channels,
            multipliers,
            blocks_per_level,
            attention_levels,
            heads,
            dropout,
            embedding,
            dims=dims,
        )

    def _add_decoder(
        self,
        stack: list[int],
        widths: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        decoder_attention: str,
    ) -> None:
        """Adds the pooling in place of the decoder."""
        self.norm_out = self.style.norm(widths[-1])
        self.pool = AttentionPool(widths[-1], self.features, self.heads)

    def forward(self, x: Tensor, noise: Tensor, cond: Condition | None = None) -> Tensor:
        """A vector (B, features) for each image.

        Args:
            x: Noisy images, shape (B, C, *size), as for `UNet`.
            noise: Noise levels log(σ/α), shape (B,).
            cond: None, it takes no condition.

        Raises:
            ValueError: If a shape or dtype is wrong, or there is a condition.
        """
        check_inputs(x, noise, LAYOUTS[self.style.dims], self.in_channels)
        self._check_resolution(x.shape[2:])
        read_condition(cond, self.condition_sizes, x)
        emb = F.silu(self.embedding(noise))
        h, _ = self._encode(x, emb, ())
        for block in self.middle:
            h = block(h, emb)
        return self.pool(F.silu(self.norm_out(h)))


class AttentionPool(nn.Module):
    """Attention of the mean of all positions to the positions.

    Args:
        channels: Channels of the features.
        out: Size of the result.
        heads: Attention heads; must divide the channels.
    """

    def __init__(self, channels: int, out: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.project = nn.Linear(channels, out)

    def forward(self, h: Tensor) -> Tensor:
        """Features (B, C, *size) to (B, out)."""
        tokens = h.flatten(2).mT  # (B, pixels, C)
        mean = tokens.mean(1, keepdim=True)
        pooled = mean + self.attention(mean, tokens, tokens, need_weights=False)[0]
        return self.project(pooled[:, 0])


class Classifier(NoisyImageEncoder):
    """A noise-conditional classifier.

    Raises:
        ValueError: If there are fewer than two classes, or an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,  # channels of the images
        channels: int = 32,  # width of the finest level for a multiplier of 1; even
        multipliers: Sequence[int] = (1, 2),  # width of each level in units of channels, finest first
        blocks_per_level: int = 2,  # residual blocks per level
        attention_levels: Sequence[int] = (1,),  # levels whose blocks end in self-attention; 0 is the finest
        heads: int = 4,  # attention heads; must divide the widths of these levels and of the last
        dropout: float = 0.0,  # dropout probability inside the residual blocks
        embedding: str = "fourier",  # embedding of the noise: sinusoidal, sinusoidal_adm or fourier
        dims: int = 2,  # dimensions of an image
        num_classes: int = 0,  # classes; 0 for those of the data
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2 for a classifier, got {num_classes}")
        super().__init__(
            in_channels,
            num_classes,
            channels=channels,
            multipliers=multipliers,
            blocks_per_level=blocks_per_level,
            attention_levels=attention_levels,
            heads=heads,
            dropout=dropout,
            embedding=embedding,
            dims=dims,
        )
        self.num_classes = num_classes
