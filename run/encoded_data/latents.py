"""A data set in the latent space of an autoencoder: the codes of its samples in place of the samples.

The codes are standardized by the training set as all numbers are: their deviation is measured, not guessed
(Rombach et al., 2022, Section G), and becomes the `scaling` of the data set.

Reference:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022),
        https://arxiv.org/abs/2112.10752.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from score_diffusion.run.data.arrays import NumberArray, standardize
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.load import load_or_stream
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.sources import Samples, Stream
from score_diffusion.run.data.splits import Split, Splits
from score_diffusion.run.encoded_data.cache import Encoder, encoded
from score_diffusion.run.errors import UserError

AUTOENCODER = "autoencoder"
"""The name of the encoder in `Dataset.encoders`."""


def in_latent_space(
    dataset: Dataset, encoder: Encoder, options: DataOptions, scaling: Scaling | None = None
) -> Dataset:
    """The same data set with codes (N, *code) in place of samples; conditions and splits stay.

    Args:
        dataset: The data set.
        encoder: The autoencoder.
        options: How numbers are standardized, and how much memory they may take.
        scaling: The scaling of the run that will use the data; by default the training set decides it.

    Raises:
        UserError: If images are to be mirrored, or all codes are the same.
    """
    if options.flip:
        raise UserError(
            "data.flip mirrors images, and the latents of an image are not mirrored with it: leave it false "
            "with data.autoencoder"
        )
    source = f"the latent space of {encoder.run}"
    held_out = {} if dataset.validation is None else {"validation": dataset.validation}
    parts: dict[str, Samples] = {"train": dataset.train, "test": dataset.test, **held_out}
    streams = {
        name: Split(
            Stream.of_all(
                NumberArray(encoded(encoder, samples, dataset.scaling, dataset.content, name)),
                options.workers,
            )
        )
        for name, samples in parts.items()
    }
    splits, found = standardize(Splits(streams, None), options.standardize, source, scaling)
    codes = load_or_stream([part.samples for part in splits.parts.values()], options.memory_gib)
    loaded = dict(zip(splits.parts, codes, strict=True))
    return replace(
        dataset,
        train=loaded["train"],
        test=loaded["test"],
        validation=loaded.get("validation"),
        scaling=found,
        digest=hashlib.sha256(f"{dataset.content} {encoder.weights}".encode()).hexdigest()[:32],
        encoders={**dataset.encoders, AUTOENCODER: encoder.weights},
        decoded=dataset,
    )
