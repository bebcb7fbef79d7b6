"""Smaller copies of images, and the noise of their conditioning augmentation.

A pixel of the smaller image is the mean of a block of pixels, rounded to a grey level where images have such.
A model that enlarges images is conditioned on the smaller image z with noise of a level s in [0, 1],

    x_low = cos(πs/2) z + sin(πs/2) ε,

so that what an earlier model drew, which is not quite an image made smaller, is nothing new to it. Training
draws s evenly (Imagen, Section 2.3); samples have the level that the user chooses.

References:
    Cascaded Diffusion Models for High Fidelity Image Generation (Ho et al., 2021),
        https://arxiv.org/abs/2106.15282: Section 4, Gaussian noise and blur.
    Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022),
        https://arxiv.org/abs/2205.11487: Section 2.3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from score_diffusion.models.super_resolution import augmentation_scales
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.sources import Samples, Source
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import SampleNoise, expand

LOW_RESOLUTION, LEVEL = "low_resolution", "augmentation"
"""The conditions of a model that enlarges images, see models/conditions.py."""
AT_ONCE = 256  # images


def shrink(images: Tensor, factor: int) -> Tensor:
    """Images (N, C, *size) made smaller by the means of blocks, (N, C, *size/factor), in their dtype."""
    blocks = images if images.is_floating_point() else images.double()
    for axis in range(2, images.ndim):
        blocks = blocks.unflatten(axis, (-1, factor)).mean(axis + 1)
    return blocks if images.is_floating_point() else blocks.round().to(images.dtype)


def small_copies(samples: Samples, factor: int, scaling: Scaling, count: int) -> Tensor:
    """The first of some stored samples made smaller, in the units of the model, (count, C, *size/factor)."""
    return scaling.stored_to_model(shrink(samples[:count], factor))


def shrunk(dataset: Dataset, factor: int) -> Dataset:
    """A data set with its images made smaller.

    Raises:
        UserError: If they are no images, or a side is no multiple of the factor.
    """
    if factor == 1:
        return dataset
    if len(dataset.shape) < 2 or any(side % factor for side in dataset.shape[1:]):
        raise UserError(
            f"data.shrink={factor} must divide the sides of images, and the samples of {dataset.name!r} have "
            f"shape {dataset.shape}"
        )
    validation = None if dataset.validation is None else _shrunk(dataset.validation, factor)
    content = f"{dataset.digest} shrunk by {factor}".encode()
    return replace(
        dataset,
        digest=hashlib.sha256(content).hexdigest() if dataset.digest else "",
        train=_shrunk(dataset.train, factor),
        test=_shrunk(dataset.test, factor),
        validation=validation,
    )


def _shrunk(samples: Samples, factor: int) -> Samples:
    if isinstance(samples, Tensor):  # in parts: the means are taken in float64
        return torch.cat([shrink(part, factor) for part in samples.split(AT_ONCE)])
    return replace(samples, source=_ShrunkSource(samples.source, factor))


class _ShrunkSource(Source):
    """The images of another source, made smaller when they are read."""

    def __init__(self, source: Source, factor: int) -> None:
        channels, *sides = source.shape
        self.shape = (channels, *(side // factor for side in sides))
        self.dtype, self._source, self._factor = source.dtype, source, factor

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Tensor) -> Tensor:
        return shrink(self._source.read(indices), self._factor)

    def fingerprints(self, indices: Tensor) -> Iterator[bytes]:
        yield from self._source.fingerprints(indices)

    def check_before_streaming(self) -> None:
        self._source.check_before_streaming()


@dataclass(frozen=True)
class Augmentation:
    """The noise of the small images that samples are drawn under: a function of (seed, index of the sample).

    Called with the conditions of samples, tensors with one row for each, and their indices.
    """

    level: float
    """s in [0, 1]; 0 for no noise."""
    seed: int

    def __call__(self, cond: dict[str, Tensor], indices: range) -> dict[str, Tensor]:
        small = cond[LOW_RESOLUTION]
        level = torch.full((len(small),), self.level)
        if self.level:
            noise = SampleNoise(self.seed, indices.start, small.shape, purpose="augmentation").normal()
            small = with_noise(small, level, noise)
        return {**cond, LOW_RESOLUTION: small, LEVEL: level}


def with_noise(small: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Small images (B, C, *size) with noise like them, of the levels (B,)."""
    alpha, sigma = augmentation_scales(level)
    return expand(alpha, small) * small + expand(sigma, small) * noise


def blurred(images: Tensor, width: Tensor, widest: float) -> Tensor:
    """Images (B, C, *size) blurred by Gaussians of standard deviations (B,) in pixels, edge pixels repeated.

    Args:
        images: The images.
        width: The standard deviations; 0 leaves an image as it is.
        widest: An upper bound of them, which decides how far a Gaussian reaches.
    """
    reach = math.ceil(3 * widest)
    offset = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = (-0.5 * (offset / width.clamp_min(1e-3)[:, None]).square()).softmax(1)  # (B, K)
    for axis in range(2, images.ndim):
        rows = images.movedim(axis, -1)
        shape = rows.shape
        padded = F.pad(rows.reshape(len(images), -1, shape[-1]), (reach, reach), mode="replicate")
        windows = padded.unfold(2, 2 * reach + 1, 1)  # (B, rows, pixels, K)
        images = torch.einsum("brpk,bk->brp", windows, weights).reshape(shape).movedim(-1, axis)
    return images
