"""The tasks of `--mode restore`: which operator measures a sample of a shape.

A task is a function (shape, seed, *, <options>) -> Task. Its options are keys `restore.TASK.OPTION`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from score_diffusion.run.data.decoding import ImagePreparation, open_image
from score_diffusion.run.data.image_source import reason
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.key_types import AUTO
from score_diffusion.samplers.inverse import (
    METHODS,
    Blur,
    Downsample,
    Fourier,
    JPEGQuantization,
    Operator,
    PhaseRetrieval,
    Radon,
    ToGrey,
    column_sampling,
    enlarge,
    gaussian_kernel,
    sdedit,
)
from score_diffusion.samplers.inverse import Mask as MaskOperator
from score_diffusion.sde_lib import generator_for

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the grey of image libraries
MASK_MEGAPIXELS = 100.0

BY_MODEL = "model"
RESTORERS: dict[str, Callable] = {**METHODS, "sdedit": sdedit, BY_MODEL: enlarge}
"""The methods by name."""


@dataclass(frozen=True)
class Task:
    """What is measured of a sample."""

    operator: Operator
    known: Tensor | None = None
    """For tasks that measure elements of a sample as they are: which, booleans of a sample's shape."""
    picture: Callable[[Tensor], Tensor] | None = None
    """From measurements of images to images, where measurements are none; None where they are images."""
    is_guide: bool = False
    """Whether the input is not measured, but a guide for samples near it."""


def inpaint(shape: Sequence[int], seed: int, *, mask: str = "center") -> Task:
    """Some elements are missing.

    Args:
        mask: What is missing: center, left, random:SHARE, or the black part of a black and white image file.
    """
    known = read_mask(mask, shape) if os.path.isfile(expanded(mask)) else named_mask(mask, shape, seed)
    return inpaint_known(known, shape, f"mask {mask}")


def inpaint_known(known: Tensor, shape: Sequence[int], what: str = "the mask") -> Task:
    """Elements of a sample, booleans that broadcast to its shape, are known and the others are missing.

    Raises:
        UserError: If no element is known, or none is missing.
    """
    if not known.any():
        raise UserError(f"{what} leaves no pixel known: there is nothing to restore from")
    if known.all():
        raise UserError(f"{what} leaves no pixel missing: there is nothing to restore")
    return Task(MaskOperator(known, shape), known.expand(tuple(shape)))


def denoise(shape: Sequence[int], seed: int) -> Task:
    """Every element is measured with noise."""
    known = torch.ones(tuple(shape), dtype=torch.bool)
    return Task(MaskOperator(known), known)


def superres(shape: Sequence[int], seed: int, *, factor: int = 2) -> Task:
    """Averages over blocks of pixels.

    Args:
        factor: The side of a block in pixels.
    """
    return Task(Downsample(shape, factor))


def deblur(shape: Sequence[int], seed: int, *, std: float = 1.0) -> Task:
    """A Gaussian blur with reflecting borders.

    Args:
        std: Standard deviation of the blur in pixels.
    """
    if not std > 0:
        raise UserError(f"restore.deblur.std must be above 0, the width of the blur in pixels, got {std:g}")
    spatial = shape[1:] if len(shape) > 1 else shape
    longest = min(spatial) - (min(spatial) + 1) % 2  # the largest odd size that fits
    size = min(2 * math.ceil(3 * std) + 1, longest)
    return Task(Blur(shape, gaussian_kernel(size, std, len(spatial))))


def colorize(shape: Sequence[int], seed: int) -> Task:
    """The grey of a colour image."""
    if shape[0] < 2 or len(shape) < 2:
        raise UserError(f"task colorize needs a model of colour images, and its samples have shape {shape}")
    return Task(ToGrey(shape, LUMA if shape[0] == 3 else None))


def mri(shape: Sequence[int], seed: int, *, acceleration: float = 2.0) -> Task:
    """Columns of the Fourier transform: a third of those that are measured are the lowest frequencies.

    Args:
        acceleration: Columns of an image over those that are measured.
    """
    if len(shape) != 3:
        raise UserError(f"task mri needs a model of images, and its samples have shape {tuple(shape)}")
    channels, height, width = shape
    centre = max(1, round(width / max(acceleration, 1) / 3))
    sampled = column_sampling(height, width, acceleration, centre, seed)
    operator = Fourier(sampled, channels)
    return Task(operator, picture=operator.adjoint)  # zeros for what is not measured


def ct(shape: Sequence[int], seed: int, *, angles: int = 8) -> Task:
    """Projections of an image from several angles.

    Args:
        angles: Number of angles, evenly over half a turn.
    """
    if len(shape) != 3 or shape[0] != 1 or shape[1] != shape[2]:
        raise UserError(
            f"task ct needs a model of square grey images, and its samples have shape {tuple(shape)}"
        )
    return Task(Radon(shape[1], angles), picture=_stretched)


def jpeg(shape: Sequence[int], seed: int, *, quality: int = 10) -> Task:
    """The rounded cosine coefficients of JPEG's blocks.

    Args:
        quality: JPEG's quality, 1 to 100.
    """
    operator = JPEGQuantization(shape, quality)
    return Task(operator, picture=operator.pseudo_inverse)


def phase(shape: Sequence[int], seed: int) -> Task:
    """The magnitudes of the Fourier transform of the image with zeros around it, without their phases."""
    return Task(PhaseRetrieval(shape), picture=lambda y: _stretched(torch.fft.fftshift(y, (-2, -1)).log1p()))


def _stretched(y: Tensor) -> Tensor:
    """Measurements (n, C, H, W) as images from -1 to 1."""
    low, high = (f(y.flatten(1), 1)[..., None, None, None] for f in (torch.amin, torch.amax))
    return 2 * (y - low) / (high - low).clamp_min(torch.finfo(y.dtype).tiny) - 1


def edit(shape: Sequence[int], seed: int) -> Task:
    """The whole sample, as a guide for samples near it."""
    return replace(denoise(shape, seed), is_guide=True)


TASKS: dict[str, Callable[..., Task]] = {
    "inpaint": inpaint,
    "superres": superres,
    "deblur": deblur,
    "colorize": colorize,
    "denoise": denoise,
    "mri": mri,
    "ct": ct,
    "jpeg": jpeg,
    "phase": phase,
    "edit": edit,
}
METHOD_OF = {"jpeg": "pigdm", "phase": "dps", "edit": "sdedit"}
"""What restore.method=auto is for tasks that moment matching does not fit."""


def method_of(task: str, method: str) -> str:
    """The method that a task is solved by; "auto" is moment matching where that fits.

    Raises:
        UserError: If the task has a method of its own and this is another.
    """
    if task == "edit" and method not in (AUTO, "sdedit"):
        raise UserError(f"task edit has the method sdedit only, got restore.method={method}")
    return METHOD_OF.get(task, "moment_matching") if method == AUTO else method


def named_mask(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """A mask by its name: booleans that broadcast to the shape, true where a pixel is known.

    Raises:
        UserError: If there is no such mask.
    """
    spatial = tuple(shape[1:]) if len(shape) > 1 else tuple(shape)
    known = torch.ones(spatial, dtype=torch.bool)
    if name == "center":
        known[tuple(slice((n - n // 2) // 2, (n - n // 2) // 2 + n // 2) for n in spatial)] = False
        return known
    if name == "left":
        known[..., : spatial[-1] // 2] = False
        return known
    kind, _, share = name.partition(":")
    if kind == "random" and _is_share(share):
        missing = round(float(share) * known.numel())
        order = torch.randperm(known.numel(), generator=generator_for(seed, "mask"))
        known.view(-1)[order[:missing]] = False
        return known
    raise UserError(
        "the mask must be center, left, random:SHARE with a share of missing pixels between 0 and 1, or an "
        f"image file that exists, got {name!r}"
    )


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def read_mask(name: str, shape: Sequence[int]) -> Tensor:
    """A mask from an image file, white where a pixel is known: booleans (H, W).

    Raises:
        UserError: If the file cannot be read, or has another size than the samples.
    """
    if len(shape) != 3:
        raise UserError(f"a mask in an image file needs samples that are images, got shape {tuple(shape)}")
    try:
        with open_image(expanded(name), MASK_MEGAPIXELS) as image:
            levels = ImagePreparation(channels=1)(image)[0]
    except Exception as error:  # decoders raise whatever they stumble upon
        raise UserError(f"mask {name} cannot be read ({reason(error)}): give another image file") from error
    if levels.shape != tuple(shape[1:]):
        (h, w), (height, width) = levels.shape, shape[1:]
        raise UserError(
            f"mask {name} is {h}x{w} (height x width), and the model's images are {height}x{width}: give a "
            "mask of this size"
        )
    return torch.from_numpy(levels >= 128)
