"""A residual multilayer perceptron for points: `net(x, noise) -> like x`, with x of shape (B, dim).

    h = W_in x,    h <- h + W_2 silu((1 + scale) · W_1 h + shift) in every block,    output = W_out h

(biases omitted). Every block computes its own scale and shift from the embedding of the noise and of the
condition. There is no norm on purpose: far from the data a score grows linearly with x, and a norm would
remove the length of h.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.conditions import Condition, ConditionEmbedding, read_condition
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
        num_classes: int = 0,  # classes of cond's label; 0 for none
        vector_dim: int = 0,  # size of cond's vector; 0 for none
    ) -> None:
        super().__init__()
        if dim < 1 or depth < 1:
            raise ValueError(f"dim and depth must be at least 1, got dim={dim} and depth={depth}")
        if num_classes < 0 or vector_dim < 0:
            raise ValueError(
                f"num_classes and vector_dim must not be negative, got {num_classes} and {vector_dim}"
            )
        self.dim = dim
        sizes = dict(label=num_classes, vector=vector_dim)
        self.condition_sizes = {kind: size for kind, size in sizes.items() if size}
        self.embedding = NoiseEmbedding(embedding, width, width)
        self.condition = ConditionEmbedding(num_classes, vector_dim, width)
        self.linear_in = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(depth))
        self.linear_out = zero_init(nn.Linear(width, dim))

    def forward(self, x: Tensor, noise: Tensor, cond: Condition | None = None) -> Tensor:
        """The network's output for noisy points.

        Args:
            x: Noisy points, shape (B, dim), in the dtype of the weights.
            noise: Noise levels log(σ/α), shape (B,).
            cond: The condition, see `models/conditions.py`: a label, a vector or both.

        Returns:
            A tensor like x.

        Raises:
            ValueError: If a shape or dtype is wrong, or the network does not take this condition.
        """
        check_inputs(x, noise, "B, dim", self.dim)
        by_kind = read_condition(cond, self.condition_sizes, x)
        emb = F.silu(self.condition(self.embedding(noise), by_kind))
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
