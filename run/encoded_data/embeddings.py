"""Image embeddings of contrastive encoders in a data set, as unCLIP needs them.

    of the decoder    images as they are, conditioned on their embeddings: "vector"
    of the prior      embeddings in place of the images, conditioned on captions, "text", and on those of the
                      captions by the text encoder, "vector"

An embedding has length √E, so that its E entries are of unit size. It is not standardized: embeddings of
images and texts keep their angles.

Reference:
    Hierarchical Text-Conditional Image Generation with CLIP Latents (Ramesh et al., 2022),
        https://arxiv.org/abs/2204.06125: Section 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.encoded_data.cache import Encoder, encoded
from score_diffusion.run.errors import UserError

ENCODER = "encoder"
"""The name of the encoders in `Dataset.encoders`."""


@dataclass(frozen=True)
class ContrastiveEncoders(Encoder):
    """The encoders of another run: `encode` of images, (B, *shape) to (B, E), and one of texts."""

    encode_text: Callable[[Tensor], Tensor]
    """Embeddings (n, E) of texts, ids of words (n, L), both on the CPU."""
    info: DataInfo
    """The data that they were trained on."""

    def check_data(self, dataset: Dataset) -> None:
        """Refuses images of another size or scaling.

        Raises:
            UserError: If the data set has such.
        """
        if dataset.shape != self.info.shape or dataset.scaling != self.info.scaling:
            own, found = replace(self.info, num_train=0), DataInfo.of(dataset)
            raise UserError(f"the encoders of {self.run} are for {own}, and the data are {found}")

    def check_captions(self, dataset: Dataset) -> None:
        """Refuses a data set without captions, or with captions of another vocabulary.

        Raises:
            UserError: If the data set has such.
        """
        if dataset.vocabulary is None:
            raise UserError(
                f"data.embeddings=samples needs images with captions, and {dataset.name!r} has none: name "
                "data with captions"
            )
        if dataset.vocabulary != self.info.vocabulary:
            raise UserError(
                f"the encoders of {self.run} were trained on captions of other words than those of "
                f"{dataset.name!r}: train them on these data"
            )


def with_unit_entries(embeddings: Tensor) -> Tensor:
    """Embeddings (n, E) at length √E."""
    return embeddings.shape[1] ** 0.5 * F.normalize(embeddings, dim=1)


def with_embeddings(dataset: Dataset, encoders: ContrastiveEncoders) -> Dataset:
    """The same images, each conditioned on its embedding and on nothing else.

    Raises:
        UserError: If the images are not those that the encoders are for.
    """
    encoders.check_data(dataset)
    vectors = _embeddings(dataset, encoders)
    return replace(
        dataset,
        conditions={"vector": vectors["train"]},
        test_conditions={"vector": vectors["test"]},
        validation_conditions=_of_validation(vectors, lambda part: {"vector": vectors[part]}),
        vocabulary=None,
        digest=_digest(dataset, encoders, "conditions"),
        encoders={**dataset.encoders, ENCODER: encoders.weights},
    )


def of_embeddings(dataset: Dataset, encoders: ContrastiveEncoders) -> Dataset:
    """The embeddings of the images, points (N, E), each under its caption and the embedding of that.

    Raises:
        UserError: If images or captions are not such as the encoders are for.
    """
    encoders.check_data(dataset)
    encoders.check_captions(dataset)
    vectors = _embeddings(dataset, encoders)
    texts = {
        "train": dataset.conditions["text"],
        "test": dataset.test_conditions["text"],
        "validation": dataset.validation_conditions.get("text"),
    }

    def conditions(part: str) -> dict[str, Tensor]:
        text = texts[part]
        assert text is not None  # each part has captions where one has
        different, index = torch.unique(text, dim=0, return_inverse=True)
        return {"text": text, "vector": encoders.encode_text(different)[index]}

    return replace(
        dataset,
        train=vectors["train"],
        test=vectors["test"],
        validation=vectors.get("validation"),
        scaling=Scaling(),
        conditions=conditions("train"),
        test_conditions=conditions("test"),
        validation_conditions=_of_validation(vectors, conditions),
        classes=(),
        digest=_digest(dataset, encoders, "samples"),
        encoders={**dataset.encoders, ENCODER: encoders.weights},
    )


EMBEDDINGS: dict[str, Callable[[Dataset, ContrastiveEncoders], Dataset]] = {
    "conditions": with_embeddings,
    "samples": of_embeddings,
}
"""What embeddings are in a data set, by the value of data.embeddings."""


def _embeddings(dataset: Dataset, encoders: ContrastiveEncoders) -> dict[str, Tensor]:
    """The embeddings of each part of a data set, (N, E)."""
    held_out = {} if dataset.validation is None else {"validation": dataset.validation}
    return {
        part: torch.from_numpy(np.array(encoded(encoders, samples, dataset.scaling, dataset.content, part)))
        for part, samples in {"train": dataset.train, "test": dataset.test, **held_out}.items()
    }


def _of_validation(
    vectors: Mapping[str, Tensor], conditions: Callable[[str], dict[str, Tensor]]
) -> dict[str, Tensor]:
    return conditions("validation") if "validation" in vectors else {}


def _digest(dataset: Dataset, encoders: ContrastiveEncoders, use: str) -> str:
    """What distinguishes the encoded data set from others."""
    return hashlib.sha256(f"{dataset.content} {encoders.weights} {use}".encode()).hexdigest()[:32]
