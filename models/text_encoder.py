"""Text conditions: a transformer over the words of a caption, trained with the network that it conditions.

    h_0 = start,    h_k = word(id_k) + position k,    k = 1..L

    in every block, over the start and the words that are there:
        h <- h + attention(norm(h)),    h <- h + mlp(norm(h))

    tokens = norm(h_1..L) for cross-attention,    vector = norm(h_0), added to the noise embedding

As in GLIDE, the network attends to the tokens in its attention blocks and has one vector of the whole text
besides. `TextConditioned` is a network that takes texts: both parts are trained, averaged and saved as one.
Ids of 0 are padding. A text of nothing else is the null condition: no valid token, a zero vector.

References:
    GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided Diffusion Models (Nichol et
        al., 2022), https://arxiv.org/abs/2112.10741: Section 3.1.
    Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022),
        https://arxiv.org/abs/2205.11487: Section 2.1, pooled and attended text embeddings.
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.conditions import Condition, read_condition
from score_diffusion.models.dit import sincos_positions

PADDING = 0  # the id of no word
FROM_TEXT = ("tokens", "vector")  # kinds of conditions that a text becomes


class TextEncoder(nn.Module):
    """A transformer from the ids of texts to a sequence and a vector.

    Args:
        words: Number of different ids, padding included.
        width: Size of a token, divisible by heads and by 2.
        depth: Number of blocks.
        heads: Attention heads.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, words: int, width: int = 128, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        if words < 2 or depth < 1:
            raise ValueError(f"words must be at least 2 and depth at least 1, got {words} and {depth}")
        if width < 2 or width % 2 or heads < 1 or width % heads:
            raise ValueError(f"width must be even and divisible by heads, got {width} and {heads}")
        self.words, self.width = words, width
        self.word = nn.Embedding(words, width)
        self.start = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.word.weight, std=0.5)
        nn.init.normal_(self.start, std=0.5)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The encodings of texts.

        Args:
            ids: Of words, int64 (B, L); 0 for none.

        Returns:
            The tokens (B, L, width), which of them are valid, bool (B, L), and a vector for each text,
            (B, width), 0 for texts without words.
        """
        valid = ids != PADDING
        h = self.word(ids)  # (B, L, width)
        h = h + sincos_positions((ids.shape[1],), self.width, h)
        h = torch.cat([self.start.expand(len(ids), 1, -1).to(h.dtype), h], dim=1)
        attended = F.pad(valid, (1, 0), value=True)[:, None, None]  # the start is always there
        for block in self.blocks:
            h = block(h, attended)
        h = self.norm(h)
        return h[:, 1:], valid, h[:, 0] * valid.any(1, keepdim=True)


class TransformerBlock(nn.Module):
    """Self-attention and a perceptron, each on normalized input.

    Args:
        width: Size of the tokens, divisible by heads.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, attended: Tensor) -> Tensor:
        """Tokens (B, L, width) to tokens; which attend to which, bool, broadcast to (B, heads, L, L)."""
        q, k, v = self.qkv(self.norm_1(h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attended)  # (B, heads, L, d)
        h = h + self.project(out.transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm_2(h))


class TextConditioned(nn.Module):
    """A network conditioned on texts: `net(x, noise, {"text": ids})`.

    Args:
        net: A network that takes tokens, a vector, or both, of the encoder's width.
        encoder: The text encoder.

    Raises:
        ValueError: If the network takes neither, or of another size.
    """

    def __init__(self, net: nn.Module, encoder: TextEncoder) -> None:
        super().__init__()
        sizes = cast(Mapping[str, int], getattr(net, "condition_sizes", {}))
        self.kinds = [kind for kind in FROM_TEXT if kind in sizes]
        if not self.kinds or any(sizes[kind] != encoder.width for kind in self.kinds):
            raise ValueError(
                f"the network must take tokens or a vector of the text encoder's width, {encoder.width}: it "
                f"takes {dict(sizes) or 'no condition'}"
            )
        self.net, self.encoder = net, encoder
        others = {kind: size for kind, size in sizes.items() if kind not in FROM_TEXT}
        self.condition_sizes = {**others, "text": encoder.words}

    def forward(self, x: Tensor, noise: Tensor, cond: Condition | None = None) -> Tensor:
        """The output of the network.

        Args:
            x: Noisy samples, shape (B, *shape).
            noise: Noise levels, shape (B,).
            cond: Ids of words, int64 (B, L), or a dict with these as "text" and what else the network takes;
                None for the null condition.

        Raises:
            ValueError: If a shape or dtype is wrong, or the network does not take this condition.
        """
        by_kind = read_condition(cond, self.condition_sizes, x)
        # Without a text the encoder computes all the same: each of its weights must have a gradient.
        ids = by_kind.pop("text", torch.zeros(len(x), 1, dtype=torch.int64, device=x.device))
        tokens, valid, vector = self.encoder(ids)
        if "tokens" in self.kinds:
            by_kind |= {"tokens": tokens, "mask": valid}
        if "vector" in self.kinds:
            by_kind["vector"] = vector
        return self.net(x, noise, by_kind)
