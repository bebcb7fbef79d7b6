"""Whether images may be mirrored left to right in training, although what they are conditioned on is not."""

from __future__ import annotations

import torch

from score_diffusion.run.console import warn
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.vocabulary import words_of
from score_diffusion.run.errors import UserError

SIDES = frozenset({"left", "leftmost", "leftward", "right", "rightmost", "rightward"})
FIXED = ("vector", "tokens")
"""Kinds of conditions that stay as they are when an image is mirrored."""


def check_mirroring(dataset: Dataset, with_conditions: bool) -> None:
    """Refuses to mirror images where what goes with them is true of the unmirrored image only.

    Args:
        dataset: The data that are mirrored.
        with_conditions: Whether they are used with their conditions.

    Raises:
        UserError: If the data are embeddings of images or conditioned on such, or captions name a side.
    """
    if "encoder" in dataset.encoders:
        raise UserError(
            "data.flip mirrors images, and their embeddings of data.encoder are those of the images as they "
            "are: leave it false"
        )
    if not with_conditions:
        return
    side = _side_in_captions(dataset)
    if side is not None:
        raise UserError(
            f"data.flip mirrors images, and captions of the data name a side ({side!r}), which would be "
            "wrong of half of the images: leave it false"
        )
    kept = [f"cond_{kind}" for kind in FIXED if kind in dataset.conditions]
    if kept:
        warn(
            f"data.flip mirrors images and leaves their {' and '.join(kept)} as they are: set it to false "
            "unless these are true of the mirrored images, too"
        )


def _side_in_captions(dataset: Dataset) -> str | None:
    """A word of the captions that names a side; None if none does."""
    vocabulary, ids = dataset.vocabulary, dataset.conditions.get("text")
    if vocabulary is None or ids is None:
        return None
    words = set(vocabulary.words)
    if not words:  # read as bytes
        words = {word for row in torch.unique(ids, dim=0) for word in words_of(vocabulary.decode(row))}
    return min(words & SIDES, default=None)
