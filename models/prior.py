"""unCLIP's prior: a transformer that denoises the embedding of an image, given a text, `net(x, noise, cond)`.

    sequence = [text words, text embedding, noise level, noised image embedding x, query]

    in every block, a position attends to itself and to the words and positions before it:
        h <- h + attention(norm(h)),    h <- h + mlp(norm(h))

    output = W norm(h_query)

With `model.prediction=x0` the output is the image embedding itself, which the paper found better than the
noise. Nothing attends to padding. The null condition has no words and a zero text embedding.

Reference:
    Hierarchical Text-Conditional Image Generation with CLIP Latents (Ramesh et al., 2022),
        https://arxiv.org/abs/2204.06125: Section 2.2, the diffusion prior.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.conditions import Condition, read_condition
from score_diffusion.models.dit import sincos_positions
from score_diffusion.models.embeddings import NoiseEmbedding
from score_diffusion.models.layers import check_inputs, zero_init
from score_diffusion.models.text_encoder import PADDING, TransformerBlock


class Prior(nn.Module):
    """A transformer over a text, a noise level and a noised embedding. At initialization its output is 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,  # size of an image embedding
        width: int = 128,  # width of the layers; even, and divisible by heads
        depth: int = 4,  # transformer blocks
        heads: int = 4,  # attention heads
        embedding: str = "fourier",  # embedding of the noise: sinusoidal, sinusoidal_adm or fourier
        encoder_words: int = 0,  # words of the data's captions, from which it follows; 0 for no text
        vector_dim: int = 0,  # size of cond's vector, the embedding of the text; 0 for none
    ) -> None:
        super().__init__()
        if dim < 1 or depth < 1:
            raise ValueError(f"dim and depth must be at least 1, got dim={dim} and depth={depth}")
        if width < 2 or width % 2 or heads < 1 or width % heads:
            raise ValueError(
                f"width must be even and divisible by heads, got width={width} and heads={heads}"
            )
        if encoder_words < 0 or vector_dim < 0:
            raise ValueError(
                f"encoder_words and vector_dim must not be negative, got {encoder_words} and {vector_dim}"
            )
        self.dim, self.width = dim, width
        sizes = dict(text=encoder_words, vector=vector_dim)
        self.condition_sizes = {kind: size for kind, size in sizes.items() if size}
        self.word = nn.Embedding(encoder_words, width) if encoder_words else None
        self.vector = nn.Linear(vector_dim, width) if vector_dim else None
        self.embedding = NoiseEmbedding(embedding, width, width)
        self.linear_in = nn.Linear(dim, width)
        self.places = nn.Parameter(torch.zeros(3 + bool(vector_dim), width))  # of what follows the words
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = zero_init(nn.Linear(width, dim))
        nn.init.normal_(self.places, std=0.5)
        if self.word is not None:
            nn.init.normal_(self.word.weight, std=0.5)

    def forward(self, x: Tensor, noise: Tensor, cond: Condition | None = None) -> Tensor:
        """The output of the network for noised embeddings.

        Args:
            x: Noised embeddings, shape (B, dim), in the dtype of the weights.
            noise: Noise levels log(σ/α), shape (B,).
            cond: Ids of words as "text", int64 (B, L), and the embedding of the text as "vector"; None for
                the null condition.

        Returns:
            A tensor like x.

        Raises:
            ValueError: If a shape or dtype is wrong, or the network does not take this condition.
        """
        check_inputs(x, noise, "B, dim", self.dim)
        by_kind = read_condition(cond, self.condition_sizes, x)
        words, valid = self._words(by_kind, x)
        others = [self.embedding(noise).to(x.dtype), self.linear_in(x), x.new_zeros(len(x), self.width)]
        if self.vector is not None:
            vector = by_kind.get("vector", x.new_zeros(len(x), self.vector.in_features))
            others.insert(0, self.vector(vector))
        h = torch.cat([words, torch.stack(others, 1) + self.places], dim=1)  # (B, L + others, width)
        attended = attention_mask(F.pad(valid, (0, len(others)), value=True))
        for block in self.blocks:
            h = block(h, attended)
        return self.linear_out(self.norm_out(h[:, -1]))

    def _words(self, by_kind: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """The embedded words (B, L, width), and which of them are there, bool (B, L)."""
        if self.word is None:
            return x.new_zeros(len(x), 0, self.width), torch.ones(
                len(x), 0, dtype=torch.bool, device=x.device
            )
        # Without a text the words are embedded all the same: each weight must have a gradient.
        ids = by_kind.get("text", torch.full((len(x), 1), PADDING, device=x.device))
        h = self.word(ids)
        return h + sincos_positions((ids.shape[1],), self.width, h), ids != PADDING


def attention_mask(valid: Tensor) -> Tensor:
    """Which positions attend to which: to themselves, and to the valid ones before them.

    Args:
        valid: Positions that are there, bool (B, L).

    Returns:
        Bool (B, 1, L, L), rows attending to columns. Each row has a true value, also in a text without words.
    """
    before = torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool, device=valid.device).tril(-1)
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    return (before & valid[:, None] | itself)[:, None]
