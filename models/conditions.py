"""Conditions of a network besides the noise: `net(x, noise, cond)`.

`cond` is None or a dict with any of these keys:

    label     class indices, int64 (B,); -1 for no class
    vector    one embedding per sample, floating point (B, V)
    tokens    a sequence of embeddings, such as a text's, floating point (B, L, D), for cross-attention
    mask      which of the tokens are valid, bool (B, L); by default all
    image     an image of the size of x, (B, C', H, W), concatenated to x along the channels
    text      ids of the words of a text, int64 (B, L), 0 for none; see text_encoder.py
    low_resolution    a smaller image, (B, C, *size/factor); see super_resolution.py
    augmentation      the level of the noise in it, floating point (B,)

A network that takes only one kind of condition also accepts that tensor itself. A missing kind is the null
condition: no class, a zero vector, no tokens, a text without words. Classifier-free guidance trains on it.
Images and smaller images cannot be missing, and the latter are never replaced by a null condition. Every
weight takes part in every forward pass, with or without a condition, because DistributedDataParallel waits
for the gradient of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

Condition = Tensor | Mapping[str, Tensor]

KEPT = ("low_resolution", "augmentation")
"""Kinds that are the same with and without a condition: what an image is made of stays."""
DTYPES = {"label": torch.int64, "mask": torch.bool, "text": torch.int64}  # of the other kinds: floating point


def read_condition(cond: Condition | None, sizes: Mapping[str, int], x: Tensor) -> dict[str, Tensor]:
    """The condition as a checked dict.

    Args:
        cond: The third argument of the network.
        sizes: The kinds that the network takes, with the number of classes, V, D and C'.
        x: The first argument of the network, noisy samples of shape (B, C, *size).

    Returns:
        The tensors by kind; floating-point ones have the dtype of x.

    Raises:
        ValueError: If the network does not take a kind, a shape or dtype is wrong, the image is missing, or a
            class index on the CPU is out of range. On a GPU such an index raises CUDA's own error: checking
            it here would wait for the device in every call.
    """
    by_kind = _by_kind(cond, sizes)
    unknown = set(by_kind) - {*sizes, *(["mask"] if "tokens" in sizes else [])}
    if unknown:
        raise ValueError(f"cond must be {_accepted(sizes)}, got ({', '.join(by_kind)})")
    for kind, name in (("image", "an image"), ("low_resolution", "a low_resolution image")):
        if kind in sizes and kind not in by_kind:
            raise ValueError(f"cond must have {name}: this network concatenates it to x; got none")
    for kind, value in by_kind.items():
        _check_shape(kind, value, sizes.get(kind, 0), x, by_kind)
        _check_values(kind, value, sizes.get(kind, 0))
    return {
        kind: value.to(x.dtype) if value.is_floating_point() else value for kind, value in by_kind.items()
    }


def _by_kind(cond: Condition | None, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    if cond is None:
        return {}
    if isinstance(cond, Tensor):
        if len(sizes) != 1:
            raise ValueError(f"cond must be {_accepted(sizes)}, got a Tensor")
        return {kind: cond for kind in sizes}
    if isinstance(cond, Mapping):
        return dict(cond)
    raise ValueError(f"cond must be None, a Tensor or a dict of Tensors, got {type(cond).__name__}")


def _accepted(sizes: Mapping[str, int]) -> str:
    if not sizes:
        return "None, because this network takes no condition"
    return f"None or a dict with keys from ({', '.join(sizes)})"


def _check_shape(kind: str, value: Tensor, size: int, x: Tensor, by_kind: Mapping[str, Tensor]) -> None:
    B = len(x)
    required: tuple[int | str, ...] = {
        "label": (B,),
        "vector": (B, size),
        "tokens": (B, value.shape[1] if value.ndim == 3 else "L", size),
        "mask": tuple(by_kind["tokens"].shape[:2]) if "tokens" in by_kind else ("B", "L"),
        "image": (B, size, *x.shape[2:]),
        "text": (B, value.shape[1] if value.ndim == 2 else "L"),
        "low_resolution": (B, x.shape[1], *(side // max(size, 1) for side in x.shape[2:])),
        "augmentation": (B,),
    }[kind]
    if tuple(value.shape) != required:
        text = ", ".join(map(str, required)) + ("," if len(required) == 1 else "")
        raise ValueError(f"the {kind} of cond must have shape ({text}), got {tuple(value.shape)}")


def _check_values(kind: str, value: Tensor, size: int) -> None:
    dtype = DTYPES.get(kind)
    if value.dtype != dtype if dtype else not value.is_floating_point():
        required = str(dtype).removeprefix("torch.") if dtype else "floating point"
        raise ValueError(f"the {kind} of cond must be {required}, got {value.dtype}")
    if kind == "label" and value.device.type == "cpu" and not torch.compiler.is_compiling():
        if not ((value >= -1) & (value < size)).all():
            raise ValueError(
                f"the label of cond must lie in 0..{size - 1}, or be -1 for no class, got {value.tolist()}"
            )
    if kind == "text" and value.device.type == "cpu" and not torch.compiler.is_compiling():
        if not ((value >= 0) & (value < size)).all():
            raise ValueError(f"the text of cond must be ids in 0..{size - 1}, got up to {int(value.max())}")


def condition_sizes(model: object) -> dict[str, int]:
    """The kinds of conditions that a network, or that of a `ScoreModel`, takes, with their sizes."""
    return getattr(getattr(model, "net", model), "condition_sizes", {})


def null_condition(sizes: Mapping[str, int], shape: Sequence[int] = ()) -> dict[str, Tensor]:
    """The null condition of one sample, every kind of it spelled out; smaller images are 0.

    Args:
        sizes: The kinds that a network takes, with the number of classes, V, D, C', of ids, and the factor.
        shape: Of a sample, (C, *size), for conditions that are images.
    """
    channels, *sides = shape or (0,)
    null = {
        "label": torch.tensor([-1]),
        "vector": torch.zeros(1, sizes.get("vector", 0)),
        "tokens": torch.zeros(1, 0, sizes.get("tokens", 0)),
        "image": torch.zeros(1, sizes.get("image", 0), *sides),
        "text": torch.zeros(1, 1, dtype=torch.int64),
        "low_resolution": torch.zeros(
            1, channels, *(side // sizes.get("low_resolution", 1) for side in sides)
        ),
        "augmentation": torch.zeros(1),
    }
    return {kind: null[kind] for kind in sizes}


def drop_conditions(cond: Mapping[str, Tensor], dropped: Tensor) -> dict[str, Tensor]:
    """Conditions with the null condition, of all kinds together, where `dropped`, bool (B,), is true.

    Dropped tokens stay where they are and become invalid; a dropped image is 0, a dropped text has no words.
    Smaller images stay.
    """
    cond = dict(cond)
    if "tokens" in cond:
        cond.setdefault("mask", torch.ones(cond["tokens"].shape[:2], dtype=torch.bool, device=dropped.device))
    null: dict[str, int | bool] = {"label": -1, "vector": 0, "mask": False, "image": 0, "text": 0}
    return {
        kind: value
        if kind in ("tokens", *KEPT)
        else value.masked_fill(dropped.view(-1, *[1] * (value.ndim - 1)), null[kind])
        for kind, value in cond.items()
    }


def tokens_and_mask(cond: Mapping[str, Tensor], token_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of a checked condition (B, L, token_dim) and which are valid, bool (B, L); L is 0 without.

    Args:
        cond: The condition by kind.
        token_dim: Size of the tokens.
        like: A tensor of B samples with the dtype and device of the tokens.
    """
    tokens = cond.get("tokens", like.new_zeros(len(like), 0, token_dim))
    all_valid = torch.ones(tokens.shape[:2], dtype=torch.bool, device=like.device)
    return tokens, cond.get("mask", all_valid)


class ConditionEmbedding(nn.Module):
    """Adds a condition to the noise embedding: the class's row of a table, a linear map of the vector.

    Args:
        num_classes: Number of classes; 0 for none.
        vector_dim: Size of the vectors; 0 for none.
        width: Size of the embedding.
    """

    def __init__(self, num_classes: int, vector_dim: int, width: int) -> None:
        super().__init__()
        self.label = nn.Embedding(num_classes, width) if num_classes else None
        self.vector = nn.Linear(vector_dim, width) if vector_dim else None

    def forward(self, emb: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The noise embedding (B, width) plus the embedding of the condition."""
        if self.label is not None:
            label = cond.get("label", torch.full((len(emb),), -1, device=emb.device))
            row = self.label(label.clamp_min(0))
            emb = emb + torch.where(label[:, None] >= 0, row, torch.zeros_like(row)).to(emb.dtype)
        if self.vector is not None:
            emb = emb + self.vector(cond.get("vector", emb.new_zeros(len(emb), self.vector.in_features)))
        return emb
