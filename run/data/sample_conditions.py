"""What the samples of a model are conditioned on, and the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.data.low_resolution import LOW_RESOLUTION, Augmentation
from score_diffusion.run.data.vocabulary import Vocabulary

NO_CLASS, NO_TEXT = "no class", "no text"


@dataclass(frozen=True)
class SampleConditions:
    """The condition of each sample by its index: sample k has row k mod n of each kind."""

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors (n, ...) under the names of models/conditions.py, n their own; empty for no conditions."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their indices; a class without a name has its index."""
    vocabulary: Vocabulary | None = None
    """What the ids of texts stand for; None without texts."""
    augmentation: Augmentation | None = None
    """The noise of small images that are enlarged, each sample's its own; None without such."""

    @classmethod
    def of_classes(cls, labels: Sequence[int], classes: tuple[str, ...] = ()) -> SampleConditions:
        """Classes in turn."""
        return cls({"label": torch.tensor(labels)}, classes)

    def of(self, indices: range, device: torch.device | None = None) -> dict[str, Tensor] | None:
        """What the network is given for the samples with these indices, a row for each; None for nothing."""
        cond = {kind: rows.to(device) for kind, rows in self.chosen(indices).items()}
        if "text" in cond and self.vocabulary is not None:
            cond |= self.vocabulary.conditions(cond.pop("text"))
        return cond or None

    def chosen(self, indices: range) -> dict[str, Tensor]:
        """The same before a frozen encoder has encoded texts."""
        index = torch.arange(indices.start, indices.stop)
        cond = {kind: rows[index % len(rows)] for kind, rows in self.rows.items()}
        return cond if self.augmentation is None else self.augmentation(cond, indices)

    def labels(self, count: int) -> Tensor | None:
        """The class indices of the first samples, int64 (count,), -1 for none; None without classes."""
        return self.chosen(range(count)).get("label")

    def names(self, count: int) -> list[str] | None:
        """The classes or the texts of the first samples; None without either."""
        texts = self.chosen(range(count)).get("text")
        if texts is not None and self.vocabulary is not None:
            return [self.vocabulary.decode(ids) or NO_TEXT for ids in texts]
        labels = self.labels(count)
        return None if labels is None else [class_name(label, self.classes) for label in labels.tolist()]

    def images(self, count: int) -> np.ndarray | None:
        """The images or the small images that the first samples are conditioned on, (count, C', *size); None
        without such.
        """
        cond = self.chosen(range(count))
        images = cond.get("image", cond.get(LOW_RESOLUTION))
        return None if images is None else images.numpy()


def class_name(label: int, classes: Sequence[str]) -> str:
    """The name of a class, its index if it has no name."""
    if label < 0:
        return NO_CLASS
    return classes[label] if label < len(classes) else str(label)
