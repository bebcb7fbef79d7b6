"""Class indices from labels of any kind: the classes are the distinct labels of the training set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.errors import UserError


def check_labels(labels: np.ndarray, count: int, source: str) -> np.ndarray:
    """Labels as an array (N,) of whole numbers, truth values or names.

    Args:
        labels: Shape (N,) or (N, 1).
        count: N, the number of samples.
        source: What to call them in a message.

    Raises:
        UserError: If they are of another shape or kind, or negative.
    """
    kinds = (np.integer, np.bool_, np.str_)
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,) or not any(np.issubdtype(labels.dtype, kind) for kind in kinds):
        raise UserError(
            f"{source} must be class indices or names, whole numbers or strings of shape ({count},), got "
            f"{labels.dtype} of shape {labels.shape}: leave it out if it is something else, or name it "
            "cond_vector_train if a network is to be conditioned on these numbers"
        )
    if np.issubdtype(labels.dtype, np.signedinteger) and len(labels) and labels.min() < 0:
        raise UserError(
            f"{source} must be class indices that are not negative, got {labels.min()}: give samples "
            "without a class one of their own, or leave the labels out"
        )
    return np.ascontiguousarray(labels)


def distinct_classes(labels: np.ndarray) -> np.ndarray:
    """The distinct labels in ascending order: class k is number k of them."""
    return np.unique(labels)


def class_indices(labels: np.ndarray, distinct: np.ndarray, source: str) -> Tensor:
    """The index of each label among the distinct ones, int64 (N,).

    Raises:
        UserError: If a label is none of them.
    """
    if labels.dtype.kind != distinct.dtype.kind and "U" in (labels.dtype.kind, distinct.dtype.kind):
        raise UserError(
            f"{source} must be labels as those of the training set, {distinct.dtype}, got {labels.dtype}"
        )
    indices = np.searchsorted(distinct, labels).clip(max=len(distinct) - 1)
    unknown = labels[distinct[indices] != labels]
    if len(unknown):
        raise UserError(f"{source} holds the class {unknown[0]}, which no sample of the training set has")
    return torch.from_numpy(indices.astype(np.int64))
