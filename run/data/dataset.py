"""A data set: what training, scoring and evaluation read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.sources import Samples
from score_diffusion.run.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Dataset:
    """A training set and held-out sets of one kind, each in memory or streamed.

    Images of grey levels are stored as integers k in 0..levels-1, uint8 (N, C, H, W). Everything else is
    stored as standardized numbers, float32: points (N, D), signals (N, C, L), images (N, C, H, W) and fields
    (N, C, D, H, W). `scaling` turns them into model inputs and into the user's units.
    """

    name: str
    train: Samples
    test: Samples
    """Held-out samples that likelihoods and distances are measured on."""
    scaling: Scaling
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    """What a network may be conditioned on, under the names of models/conditions.py, indexed as `train` is:
    class indices, "label", int64 (N,), the ids of captions, "text", int64 (N, L), and the user's own
    conditions; empty if the source has none.
    """
    test_conditions: Mapping[str, Tensor] = field(default_factory=dict)
    """Those of the test set."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""
    digest: str = ""
    """Of all contents and classes; empty for built-in data sets."""
    validation: Samples | None = None
    """Held-out samples for the loss during training; None where the source has no third part."""
    validation_conditions: Mapping[str, Tensor] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    """What the ids of captions stand for; None without captions."""
    encoders: Mapping[str, str] = field(default_factory=dict)
    """The digests of the networks of other runs that parts of the data were computed by, by the keys of the
    section `data` that name the runs; see encoded_data/.
    """
    decoded: Dataset | None = None
    """Of latents, the data that an autoencoder has encoded; None for others."""

    @cached_property
    def content(self) -> str:
        """Digest of the contents; of the samples themselves for built-in data sets, which lack one."""
        if self.digest:
            return self.digest
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(part[:].numpy().tobytes())
        return digest.hexdigest()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (D,), (C, L), (C, H, W) or (C, D, H, W)."""
        return tuple(self.train.shape[1:])

    @property
    def levels(self) -> int | None:
        """Number of grey levels; None for numbers."""
        return self.scaling.levels

    @property
    def held_out(self) -> Samples:
        """What the loss during training is measured on: the validation set, else the test set."""
        return self.test if self.validation is None else self.validation

    @property
    def held_out_conditions(self) -> Mapping[str, Tensor]:
        return self.test_conditions if self.validation is None else self.validation_conditions

    @property
    def labels(self) -> Tensor | None:
        """Class indices of the training set, int64 (N,); None if the source has none."""
        return self.conditions.get("label")

    @property
    def test_labels(self) -> Tensor | None:
        """Those of the test set."""
        return self.test_conditions.get("label")

    @property
    def condition_sizes(self) -> dict[str, int]:
        """The kinds of conditions with their sizes: the number of classes, of the entries of a vector or a
        token, of the channels of an image, of the ids of a vocabulary.
        """
        sizes = {
            kind: value.shape[-1] for kind, value in self.conditions.items() if kind in ("vector", "tokens")
        }
        if "label" in self.conditions:
            sizes["label"] = max(len(self.classes), int(self.conditions["label"].max()) + 1)
        if "image" in self.conditions:
            sizes["image"] = self.conditions["image"].shape[1]
        if self.vocabulary is not None:
            sizes |= self.vocabulary.condition_sizes
        return sizes
