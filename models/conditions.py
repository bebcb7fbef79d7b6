"""What a network may be told beside the noise: `net(x, noise, cond)`.

`cond` is None, a dict with some of the keys

    label     class indices, int64 (B,); -1 for no class
    vector    an embedding of anything, (B, V)
    tokens    a sequence such as a text's, (B, L, D), for cross-attention
    mask      which of the tokens there are, bool (B, L); all where it is missing
    image     an image of the size of x, (B, C', H, W), beside it on the channels

or, for a network that takes one kind alone, that tensor itself. What is missing says nothing: no class, a
zero vector, no tokens; which is what classifier-free guidance trains on. An image cannot be missing. All
weights take part in any case, as training by several processes demands.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Condition = Tensor | Mapping[str, Tensor]


def read_condition(cond: Condition | None, sizes: Mapping[str, int], x: Tensor) -> dict[str, Tensor]:
    """The condition by its kinds, checked.

    Args:
        cond: What the network was given.
        sizes: The kinds that it takes, with the number of classes, V, D and C'.
        x: Its noisy samples, shape (B, C, *size).

    Returns:
        The tensors by kind, floating-point ones in the dtype of x.

    Raises:
        ValueError: If a kind is not the network's, a shape or dtype is wrong, an image is missing, or a class
            index on the CPU is out of range (on a GPU its own error comes, without waiting for each call).
    """
    if cond is None:
        given: dict[str, Tensor] = {}
    elif isinstance(cond, Tensor):
        if len(sizes) != 1:
            raise ValueError(f"cond must be {_names(sizes)}, got a Tensor")
        given = {next(iter(sizes)): cond}
    elif isinstance(cond, Mapping):
        given = dict(cond)
    else:
        raise ValueError(f"cond must be None, a Tensor or a dict of them, got a {type(cond).__name__}")
    accepted = {*sizes, *(["mask"] if "tokens" in sizes else [])}
    if not set(given) <= accepted:
        raise ValueError(f"cond must be {_names(sizes)}, got keys {', '.join(sorted(given))}")
    if "image" in sizes and "image" not in given:
        raise ValueError("cond must have an image, which this network sees beside x, and got none")
    for kind, value in given.items():
        _check(kind, value, sizes.get(kind, 0), x, given)
    return {kind: value.to(x.dtype) if value.is_floating_point() else value for kind, value in given.items()}


def _names(sizes: Mapping[str, int]) -> str:
    return f"a dict with keys of {', '.join(sizes)}" if sizes else "None, this network takes no condition"


def _check(kind: str, value: Tensor, size: int, x: Tensor, given: Mapping[str, Tensor]) -> None:
    B = len(x)
    wanted = {
        "label": (B,),
        "vector": (B, size),
        "tokens": (B, value.shape[1] if value.ndim == 3 else "L", size),
        "mask": tuple(given["tokens"].shape[:2]) if "tokens" in given else ("B", "L"),
        "image": (B, size, *x.shape[2:]),
    }[kind]
    if tuple(value.shape) != wanted:
        text = ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "")
        raise ValueError(f"the {kind} of cond must have shape ({text}), got {tuple(value.shape)}")
    dtypes = {"label": (torch.int64,), "mask": (torch.bool,)}
    if not (value.dtype in dtypes[kind] if kind in dtypes else value.is_floating_point()):
        expected = {"label": "int64", "mask": "bool"}.get(kind, "floating point")
        raise ValueError(f"the {kind} of cond must be {expected}, got {value.dtype}")
    if kind == "label" and value.device.type == "cpu" and not torch.compiler.is_compiling():
        if not ((value >= -1) & (value < size)).all():
            raise ValueError(
                f"the label of cond must lie in 0..{size - 1}, or be -1 for no class, got {value.tolist()}"
            )


class ConditionEmbedding(nn.Module):
    """The part of a condition that is added to the noise embedding: a class's row, a vector's projection.

    Args:
        num_classes: Number of classes; 0 for none.
        vector_dim: Size of the vectors; 0 for none.
        width: Size of the result.
    """

    def __init__(self, num_classes: int, vector_dim: int, width: int) -> None:
        super().__init__()
        self.label = nn.Embedding(num_classes, width) if num_classes else None
        self.vector = nn.Linear(vector_dim, width) if vector_dim else None

    def forward(self, emb: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The embedding (B, width) with what the condition adds to it."""
        if self.label is not None:
            label = cond.get("label", torch.full((len(emb),), -1, device=emb.device))
            row = self.label(label.clamp_min(0))
            emb = emb + torch.where(label[:, None] >= 0, row, torch.zeros_like(row)).to(emb.dtype)
        if self.vector is not None:
            emb = emb + self.vector(cond.get("vector", emb.new_zeros(len(emb), self.vector.in_features)))
        return emb
