"""A user's own conditions: arrays with one row for each sample, under names that begin with cond_.

    cond_vector    numbers (N, V), or (N,) for V = 1
    cond_tokens    sequences of embeddings (N, L, D), such as texts
    cond_mask      which of the tokens are valid, (N, L), true or false; optional
    cond_image     images of the size of the samples: uint8 (N, H, W) or (N, H, W, C), which become -1 to 1,
                   or numbers (N, C, H, W), which stay as they are

Numbers are not standardized: 0 is the null condition, and a network learns best from values of about unit
scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.data.arrays import check_finite
from score_diffusion.run.errors import UserError

KINDS = ("vector", "tokens", "mask", "image")
PREFIX = "cond_"

Named = tuple[str, np.ndarray]
"""An array with its name in messages."""


def check_conditions(arrays: Mapping[str, Named], count: int, shape: Sequence[int]) -> dict[str, Tensor]:
    """Conditions as tensors of `count` rows: float32, and bool for the mask.

    Args:
        arrays: The arrays by kind.
        count: Number of samples.
        shape: Shape of a sample, channels first.

    Raises:
        UserError: If an array has another shape or dtype, or is not finite.
    """
    checks = {"vector": _vector, "tokens": _tokens, "mask": _mask, "image": _image}
    checked = {kind: checks[kind](name, array, count, shape) for kind, (name, array) in arrays.items()}
    if "mask" in checked:
        name, mask = arrays["mask"]
        if "tokens" not in checked:
            raise UserError(f"{name} says which tokens are valid: give {PREFIX}tokens, too, or leave it out")
        if checked["mask"].shape != checked["tokens"].shape[:2]:
            expected = tuple(checked["tokens"].shape[:2])
            raise UserError(f"{name} must have the shape {expected} of the tokens, got {mask.shape}")
    return checked


def check_same_sizes(first: Mapping[str, Tensor], other: Mapping[str, Tensor], source: str) -> None:
    """Refuses conditions of one part of the data that differ in kind or size from those of another.

    Raises:
        UserError: If they do.
    """
    sizes = {kind: tuple(values.shape[1:]) for kind, values in first.items()}
    others = {kind: tuple(values.shape[1:]) for kind, values in other.items()}
    if others and others != sizes:
        raise UserError(
            f"the conditions of {source} must have the same sizes in each part, got {sizes} and {others}"
        )


def _numbers(name: str, array: np.ndarray, count: int, ndim: int, shape: str) -> Tensor:
    if array.ndim != ndim or len(array) != count or array.size == 0 or array.dtype.kind not in "fiub":
        raise UserError(
            f"{name} must be numbers of shape {shape} with N = {count}, the number of samples, got "
            f"{array.dtype} of shape {array.shape}"
        )
    check_finite(array, name)
    values = np.array(array, np.float32, order="C")  # a copy: a mapped file cannot be written to
    return torch.from_numpy(values)


def _vector(name: str, array: np.ndarray, count: int, shape: Sequence[int]) -> Tensor:
    return _numbers(name, array[:, None] if array.ndim == 1 else array, count, 2, "(N, V)")


def _tokens(name: str, array: np.ndarray, count: int, shape: Sequence[int]) -> Tensor:
    return _numbers(name, array, count, 3, "(N, L, D)")


def _mask(name: str, array: np.ndarray, count: int, shape: Sequence[int]) -> Tensor:
    if array.ndim != 2 or len(array) != count or not np.isin(array, (0, 1)).all():
        raise UserError(
            f"{name} must be true or false for each token, of shape (N, L) with N = {count}, the number of "
            f"samples, got {array.dtype} of shape {array.shape}"
        )
    return torch.from_numpy(np.array(array, bool, order="C"))


def _image(name: str, array: np.ndarray, count: int, shape: Sequence[int]) -> Tensor:
    given, grey_levels = array, array.dtype == np.uint8
    if grey_levels:
        array = np.moveaxis(array if array.ndim == len(shape) + 1 else array[..., None], -1, 1)
    axes = "C, " + ", ".join(map(str, shape[1:]))
    if len(shape) < 2 or array.ndim != len(shape) + 1 or array.shape[2:] != tuple(shape[1:]):
        raise UserError(
            f"{name} must be images of the size of the samples, {tuple(shape[1:])}: numbers (N, {axes}), or "
            f"uint8 with the channels last, got {given.dtype} of shape {given.shape}"
        )
    values = _numbers(name, array, count, len(shape) + 1, f"(N, {axes})")
    return values / 127.5 - 1 if grey_levels else values
