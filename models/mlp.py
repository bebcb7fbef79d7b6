"""A residual multilayer perceptron for points: `net(x, noise) -> like x`, with x of shape (B, dim).

    h = W_in x,    h <- h + W_2 silu((1 + scale) · W_1 h + shift) in every block,    output = W_out h

(biases omitted). Every block computes its own scale and shift from the noise embedding. There is no norm on
purpose: far from the data a score grows linearly with x, and a norm would remove the length of h.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.conditions import read_condition
from score_diffusion.models.embeddings import NoiseEmbedding
from score_diffusion.models.layers import check_inputs, zero_init


class MLP(nn.Module):
    """A residual SiLU perceptron, conditioned on the noise in every block. At initialization its output is 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,  # dimension of the points
        width: int = 256,  # hidden units, and the size of the noise embedding; even
        depth: int = 4,  # residual blocks
        embedding: str = "fourier",  # embedding of the noise: sinusoidal, sinusoidal_adm or fourier
        dropout: float = 0.0,  # dropout probability inside the blocks
    ) -> None:
        super().__init__()
        if dim < 1 or depth < 1:
            raise ValueError(f"dim and depth must be at least 1, got dim={dim} and depth={depth}")
        self.dim = dim
        self.embedding = NoiseEmbedding(embedding, width, width)
        self.linear_in = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(depth))
        self.linear_out = zero_init(nn.Linear(width, dim))

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's output for noisy points.

        Args:
            x: Noisy points, shape (B, dim), in the dtype of the weights.
            noise: Noise levels log(σ/α), shape (B,).
            cond: Must be None. Every network of the project has this argument.

        Returns:
            A tensor like x.

        Raises:
            ValueError: If a shape or dtype is wrong, or cond is not None.
        """
        check_inputs(x, noise, "B, dim", self.dim)
        read_condition(cond, {}, x)
        emb = F.silu(self.embedding(noise))
        h = self.linear_in(x)
        for block in self.blocks:
            h = block(h, emb)
        return self.linear_out(h)


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width)
        self.scale_shift = nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = zero_init(nn.Linear(width, width))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.scale_shift(emb).chunk(2, dim=1)  # (B, width) each
        out = torch.addcmul(shift, 1 + scale, self.linear1(h))
        return h + self.linear2(self.dropout(F.silu(out)))
