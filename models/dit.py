"""DiT, a transformer over patches of an image: `net(x, noise, cond=None) -> like x`, x of shape (B, C, H, W).

    h = patches(x) + positions,    c = embedding(noise) + embedding(class) + linear(vector)

    in every block, with shift, scale and gate linear in silu(c):
        h <- h + gate_1 · attention((1 + scale_1) · norm(h) + shift_1)
        h <- h + cross-attention(h, tokens)          with tokens, such as a text's
        h <- h + gate_2 · mlp((1 + scale_2) · norm(h) + shift_2)

    output = unpatch(linear((1 + scale) · norm(h) + shift))

All gates are zero at initialization (adaLN-Zero), and so is the output of the cross-attention, which is where
PixArt-α has it: every block starts as the identity, and the output is 0.
The positions are sines and cosines of a patch's coordinates. They are not learned and fix no size: images may
have one, two or three dimensions and any size that the patch divides.

`DIT_S` to `DIT_XL` are the paper's networks; `DiT(4, **DIT_XL, num_classes=1000, out_channels=8)` is DiT-XL/2
on latents. The paper conditions on the time step 0..999: set `embedding_scale=1.0` and ScoreModel's
prediction to "iddpm".

References:
    Scalable Diffusion Models with Transformers (Peebles & Xie, 2023), https://arxiv.org/abs/2212.09748:
        Section 3.2 and Table 1.
    PixArt-α: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis (Chen et al.,
        2024), https://arxiv.org/abs/2310.00426: Section 2.3, cross-attention.
    An Image Is Worth 16x16 Words (Dosovitskiy et al., 2021), https://arxiv.org/abs/2010.11929: patches.
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762: Section 3.5,
        positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.conditions import Condition, read_condition, tokens_and_mask
from score_diffusion.models.embeddings import NoiseEmbedding
from score_diffusion.models.layers import (
    CONVOLUTIONS,
    LAYOUTS,
    TokenAttention,
    check_inputs,
    zero_init,
)


class DiT(nn.Module):
    """A diffusion transformer, conditioned on the noise, and on a class, a vector or tokens.

    At initialization its output is 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,  # channels of the images
        patch: int = 2,  # pixels of a patch in each dimension
        width: int = 384,  # size of a token; divisible by heads and by 2 · dims
        depth: int = 12,  # number of blocks
        heads: int = 6,  # attention heads
        mlp_ratio: float = 4.0,  # hidden units of a block's perceptron in units of width
        dropout: float = 0.0,  # dropout probability at the end of both branches of a block
        num_classes: int = 0,  # classes of cond's label; 0 for none
        out_channels: int | None = None,  # channels of the output; None for in_channels
        *,
        embedding: str = "sinusoidal_adm",  # embedding of the noise: sinusoidal, sinusoidal_adm or fourier
        embedding_dim: int = 256,  # size of the noise's embedding
        embedding_scale: float | None = None,  # scale of its frequencies; None for the default, 1 for steps
        vector_dim: int = 0,  # size of cond's vector; 0 for none
        token_dim: int = 0,  # size of cond's tokens, for cross-attention; 0 for none
        dims: int = 2,  # dimensions of an image
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        sizes = dict(label=num_classes, vector=vector_dim, tokens=token_dim)
        _check_arguments(in_channels, out_channels, patch, width, depth, heads, mlp_ratio, sizes, dims)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.patch, self.width, self.dims, self.num_classes = patch, width, dims, num_classes
        self.token_dim = token_dim
        self.condition_sizes = {kind: size for kind, size in sizes.items() if size}
        self.embedding = NoiseEmbedding(embedding, embedding_dim, width, embedding_scale)
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None  # last row: no class
        self.vector = nn.Linear(vector_dim, width) if vector_dim else None
        self.patches = CONVOLUTIONS[dims](in_channels, width, patch, stride=patch)
        self.blocks = nn.ModuleList(
            _Block(width, heads, round(mlp_ratio * width), dropout, token_dim) for _ in range(depth)
        )
        self.norm_out = _norm(width)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.linear_out = nn.Linear(width, patch**dims * out_channels)
        self._initialize()

    def _initialize(self) -> None:
        """Xavier initialization, with small weights in the embeddings, as in the authors' code."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patches.weight.flatten(1))
        if self.patches.bias is not None:
            nn.init.zeros_(self.patches.bias)
        for module in (*self.embedding.layers, self.label, self.vector):
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, _Block):
                zero_init(module.modulation)
            if isinstance(module, TokenAttention):
                zero_init(module.project)
        zero_init(self.modulation_out)
        zero_init(self.linear_out)

    def forward(self, x: Tensor, noise: Tensor, cond: Condition | None = None) -> Tensor:
        """The output of the network for noisy images.

        Args:
            x: Noisy images, shape (B, C, H, W), in the dtype of the weights; the patch divides H and W.
            noise: Noise levels log(σ/α), shape (B,).
            cond: A dict with class indices, "label", int64 (B,), -1 for no class, vectors, "vector", (B, V),
                and tokens, "tokens", (B, L, D), with their "mask", bool (B, L); or the only one of them that
                the network takes. None for the null condition.

        Returns:
            A tensor like x, but with out_channels channels.

        Raises:
            ValueError: If a shape or dtype is wrong, or the network does not take this condition.
        """
        check_inputs(x, noise, LAYOUTS[self.dims], self.in_channels)
        by_kind = read_condition(cond, self.condition_sizes, x)
        if any(size == 0 or size % self.patch for size in x.shape[2:]):
            sizes = " x ".join(map(str, x.shape[2:]))
            raise ValueError(f"each side of x must be divisible by the patch, {self.patch}, got {sizes}")
        c = self.embedding(noise)
        if self.label is not None:
            c = c + self.label(self._label_rows(by_kind.get("label"), x))
        if self.vector is not None:
            c = c + self.vector(by_kind.get("vector", x.new_zeros(len(x), self.vector.in_features)))
        c = F.silu(c)
        tokens = tokens_and_mask(by_kind, self.token_dim, x) if self.token_dim else ()
        h = self.patches(x)  # (B, width, *grid)
        grid = h.shape[2:]
        h = h.flatten(2).mT + sincos_positions(grid, self.width, h)  # (B, tokens, width)
        for block in self.blocks:
            h = block(h, c, *tokens)
        shift, scale = self.modulation_out(c)[:, None].chunk(2, dim=2)  # (B, 1, width) each
        return self._unpatch(self.linear_out(_modulate(self.norm_out(h), shift, scale)), grid)

    def _label_rows(self, label: Tensor | None, x: Tensor) -> Tensor:
        if label is None:
            return torch.full((len(x),), self.num_classes, device=x.device)
        # The index num_classes is the row of no class. As a class index it is out of range: move it beyond
        # the table, because on a GPU nothing else checks it.
        return torch.where(label < 0, self.num_classes, label + (label >= self.num_classes))

    def _unpatch(self, h: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, tokens, patch^dims · out_channels), channels fastest, to images (B, out_channels, *size)."""
        h = h.unflatten(2, (*(self.patch,) * self.dims, self.out_channels)).unflatten(1, tuple(grid))
        axes = [axis for i in range(1, self.dims + 1) for axis in (i, i + self.dims)]  # grid_i, patch_i
        h = h.permute(0, 2 * self.dims + 1, *axes)
        return h.reshape(len(h), self.out_channels, *(self.patch * n for n in grid))


def sincos_positions(grid: Sequence[int], width: int, like: Tensor) -> Tensor:
    """Embeddings of the points of a grid: sin(ω_k n) and cos(ω_k n) for each coordinate n.

    ω_k = 10000^(-k/K), K = width/(2 · dims) (Vaswani et al., 2017). The last dimension comes first, as in the
    authors' code.

    Args:
        grid: Number of points in each dimension.
        width: Size of an embedding, divisible by 2 · len(grid).
        like: A tensor with the dtype and device of the result.

    Returns:
        The embeddings, shape (points, width).
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    size = width // (2 * len(grid))
    omega = torch.exp(torch.arange(size, dtype=dtype, device=like.device) * (-math.log(10_000) / size))
    coordinates = torch.meshgrid(
        *(torch.arange(n, dtype=dtype, device=like.device) for n in grid), indexing="ij"
    )
    angles = [n.flatten()[:, None] * omega for n in reversed(coordinates)]  # (points, size) each
    return torch.cat([f for a in angles for f in (a.sin(), a.cos())], dim=1).to(like.dtype)


class _Block(nn.Module):
    """Self-attention and a perceptron, with shifts, scales and gates from the conditioning vector.

    With tokens, cross-attention between the two.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, token_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.cross = TokenAttention(width, token_dim, heads) if token_dim else None
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, c: Tensor, *tokens: Tensor) -> Tensor:
        """Patches (B, patches, width) and conditioning vectors (B, width) to patches.

        Tokens and their mask are as for `TokenAttention`.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=2)
        h = torch.addcmul(h, gate1, self.dropout(self._attend(_modulate(self.norm1(h), shift1, scale1))))
        if self.cross is not None:
            h = h + self.cross(h.transpose(1, 2), *tokens).transpose(1, 2)  # (B, N, C), channels second
        return torch.addcmul(h, gate2, self.dropout(self.mlp(_modulate(self.norm2(h), shift2, scale2))))

    def _attend(self, h: Tensor) -> Tensor:
        qkv = self.qkv(h).unflatten(2, (3, self.heads, -1))  # (B, tokens, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, tokens, d) each
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def _modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, 1 + scale, h)


def _check_arguments(
    in_channels: int,
    out_channels: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    mlp_ratio: float,
    condition_sizes: Mapping[str, int],
    dims: int,
) -> None:
    if dims not in CONVOLUTIONS:
        raise ValueError(f"dims must be one of {', '.join(map(str, CONVOLUTIONS))}, got {dims!r}")
    if min(in_channels, out_channels, patch, depth) < 1:
        raise ValueError(
            f"in_channels, out_channels, patch and depth must be at least 1, got in_channels={in_channels}, "
            f"out_channels={out_channels}, patch={patch} and depth={depth}"
        )
    if width < 1 or heads < 1 or width % heads or width % (2 * dims):
        raise ValueError(
            f"width must be divisible by heads and by {2 * dims}, got width={width} and heads={heads}"
        )
    if not mlp_ratio * width >= 1:
        raise ValueError(f"mlp_ratio must be positive, got mlp_ratio={mlp_ratio}")
    if min(condition_sizes.values()) < 0:
        found = ", ".join(map(str, condition_sizes.values()))
        raise ValueError(f"num_classes, vector_dim and token_dim must not be negative, got {found}")


# The paper's sizes (Table 1), each with patches of 2 pixels, its best.
DIT_S = dict(width=384, depth=12, heads=6, patch=2)
DIT_B = dict(width=768, depth=12, heads=12, patch=2)
DIT_L = dict(width=1024, depth=24, heads=16, patch=2)
DIT_XL = dict(width=1152, depth=28, heads=16, patch=2)
