"""A contrastive pair of encoders, of images and of captions, `net(x, noise, captions)`.

Both give vectors of length 1, whose dot products, divided by a learned temperature, are trained to tell which
caption belongs to which image (Radford et al., 2021). Captions are rows of ids: the words of a vocabulary, or
bytes (UTF-8), for which there is no vocabulary to keep. The image encoder is conditioned on the noise, as
guidance needs it (Nichol et al., 2022); encoders of images without noise see one noise level only.

References:
    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021),
        https://arxiv.org/abs/2103.00020.
    GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided Diffusion Models (Nichol et
        al., 2022), https://arxiv.org/abs/2112.10741: Section 2.3, noised CLIP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.classifier import NoisyImageEncoder

BYTES = 256  # ids of captions that are read byte by byte
LONGEST = 128  # ids of a caption
LARGEST_SCALE = 100.0  # of the dot products, as CLIP's


def caption_bytes(captions: Sequence[str]) -> Tensor:
    """Captions as bytes, int64 (number of captions, longest), 0 after their ends.

    Raises:
        ValueError: If one is empty, or longer than `LONGEST` bytes.
    """
    encoded = [caption.encode() for caption in captions]
    for caption, text in zip(captions, encoded, strict=True):
        if not 1 <= len(text) <= LONGEST:
            raise ValueError(f"a caption must have 1 to {LONGEST} bytes, got {len(text)}: {caption[:40]!r}")
    longest = max(map(len, encoded))
    return torch.tensor([list(text.ljust(longest, b"\0")) for text in encoded])


class CaptionEncoder(nn.Module):
    """A transformer over the bytes or the words of a caption, averaged over them.

    Args:
        features: Size of the result.
        width: Width of the layers; divisible by 4.
        layers: Number of layers.
        ids: Number of different ids, 0 for the end included.
    """

    def __init__(self, features: int, width: int, layers: int, ids: int = BYTES) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ids, width)
        self.positions = nn.Parameter(0.02 * torch.randn(LONGEST, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.project = nn.Linear(width, features)

    def forward(self, captions: Tensor) -> Tensor:
        """Ids (n, L), 0 after the end, to vectors (n, features)."""
        valid = captions > 0
        h = self.embedding(captions) + self.positions[: captions.shape[1]]
        h = self.layers(h, src_key_padding_mask=~valid)
        weights = valid.to(h.dtype)[..., None]
        return self.project((h * weights).sum(1) / weights.sum(1))


class Clip(nn.Module):
    """A contrastive pair of encoders.

    Raises:
        ValueError: If an argument is out of its range.
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
        features: int = 64,  # size of the embeddings of images and captions
        text_width: int = 64,  # width of the text encoder; divisible by 4
        text_layers: int = 2,  # layers of the text encoder
        encoder_words: int = 0,  # words of the data's captions, from which it follows; 0 for bytes
    ) -> None:
        super().__init__()
        if text_width % 4:
            raise ValueError(f"text_width must be divisible by 4, got {text_width}")
        if encoder_words < 0:
            raise ValueError(f"encoder_words must not be negative, got {encoder_words}")
        self.image = NoisyImageEncoder(
            in_channels,
            features,
            channels=channels,
            multipliers=multipliers,
            blocks_per_level=blocks_per_level,
            attention_levels=attention_levels,
            heads=heads,
            dropout=dropout,
            embedding=embedding,
            dims=dims,
        )
        self.encoder_words = encoder_words
        self.text = CaptionEncoder(features, text_width, text_layers, encoder_words or BYTES)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """1/temperature, shape ()."""
        return self.log_scale.exp()

    @torch.no_grad()
    def bound_scale(self) -> None:
        """Brings 1/temperature back to at most `LARGEST_SCALE`, after a step of training (Radford et al.,
        2021, Section 2.5).
        """
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))

    def forward(self, x: Tensor, noise: Tensor, captions: Tensor | None = None) -> Tensor:
        """The logits, scale · f(x) · g(caption), of every image with every caption.

        Args:
            x: Noisy images, shape (B, C, *size).
            noise: Noise levels log(σ/α), shape (B,).
            captions: Ids of words, or `caption_bytes`, shape (n, L); None for the images' embeddings.

        Returns:
            The logits, shape (B, n), or the embeddings of the images, scale · f(x), shape (B, features).

        Raises:
            ValueError: If a shape or dtype is wrong.
        """
        image = self.scale * F.normalize(self.image(x, noise), dim=1)
        return image if captions is None else image @ self.encode_text(captions).T

    def encode_text(self, captions: Tensor) -> Tensor:
        """Embeddings g of captions, length 1, shape (n, features)."""
        return F.normalize(self.text(captions), dim=1)
