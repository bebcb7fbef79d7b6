"""Inputs of inference: the user's files as samples of one shape, decoded by the readers of data sets.

image files, a folder or a zip file    brightness from -1 (black) to 1 (white)
whole numbers in a .npy or .npz file   the grey levels of the run's data
floating-point numbers                 the user's units: brightness from -1 to 1, or raw numbers
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.console import warn
from score_diffusion.run.data.array_files import read_array_files
from score_diffusion.run.data.checks import warn_of_unsigned_brightness
from score_diffusion.run.data.decoding import MODES, ImagePreparation, high_bits
from score_diffusion.run.data.image_source import image_split
from score_diffusion.run.data.images import FileImages, Files, Folder, Zip
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded

ARRAYS = (".npy", ".npz")
HELD_OUT = "held_out"
"""What may stand in place of files: held-out data of the run."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Inputs:
    """The first few of the samples that some files hold."""

    samples: Tensor
    """In the user's units, floating point (n, *shape)."""
    names: tuple[str, ...]
    found: int
    """How many there are in all."""


@dataclass(frozen=True)
class InputReader:
    """Reads inputs that are as the samples of a run.

    Args:
        options: How the run's images were prepared.
        scaling: The scaling of the run's data.
        most: Inputs to read at most.
    """

    options: DataOptions
    scaling: Scaling
    most: int

    def truth(self, text: str, shape: Shape) -> Inputs:
        """Samples of a shape; images are cropped and resized to it as those of the run were.

        Args:
            text: A file, a folder or a zip file of images, a .npy or .npz file, or several image files: with
                commas between them, or as a pattern with * or ?.
            shape: Of a sample.

        Raises:
            UserError: If a file is missing or cannot be read, or a sample does not have the shape or range.
        """
        paths = named_paths(text)
        what = "the model's samples"
        if is_array_file(paths):
            inputs = self._arrays(paths[0], shape, what, ("truth", "samples", "x_test"))
        else:
            inputs = self._images(paths, shape, what, fit=True)
        low, high = inputs.samples.min().item(), inputs.samples.max().item()
        if not torch.isfinite(inputs.samples).all():
            raise UserError(f"{text} holds NaN or infinite values: replace them")
        if self.scaling.levels and max(-low, high) > 1 + 1e-6:
            raise UserError(f"{text} must hold brightness from -1 to 1, got {low:g} to {high:g}")
        if is_array_file(paths):
            warn_of_unsigned_brightness(low, self.scaling, text)
        return inputs

    def measurements(self, text: str, shape: Shape, what: str, images: bool) -> Inputs:
        """Measurements of a shape, as they are; what is missing in them may be NaN.

        Args:
            text: As for `truth`.
            shape: Of a measurement.
            what: What they are, in messages.
            images: Whether they may be images.

        Raises:
            UserError: If a file is missing or cannot be read, or a measurement does not have the shape.
        """
        paths = named_paths(text)
        if is_array_file(paths):
            return self._arrays(paths[0], shape, what, ("measurement",))
        if not images:
            raise UserError(f"{what} are arrays of shape {shape} in a .npy or .npz file, not images")
        return self._images(paths, shape, what, fit=False)

    def _images(self, paths: Sequence[Path], shape: Shape, what: str, fit: bool) -> Inputs:
        if self.scaling.levels is None or len(shape) != 3 or shape[0] not in MODES:
            raise UserError(f"{what} are arrays of shape {shape} in a .npy or .npz file, not images")
        options, size = self.options, shape[1:]
        prepare = ImagePreparation(size if fit else None, options.crop, shape[0], options.bits)
        images = self._open(paths)
        if fit:
            warn_of_other_sizes(images, prepare, self.most)
        stream = image_split(images, None, prepare, options).samples
        if stream.shape[1:] != shape:
            (h, w), (height, width) = stream.shape[2:], size
            raise UserError(
                f"{images.name(0)} is {h}x{w}, and {what} are {height}x{width} (height x width): give images "
                "of this size"
            )
        kept = stream.indices[: self.most]
        samples = Scaling(prepare.levels).stored_to_model(stream[: self.most])
        return Inputs(samples, tuple(images.paths[i].name for i in kept.tolist()), len(stream))

    def _open(self, paths: Sequence[Path]) -> FileImages:
        options = self.options
        if len(paths) == 1 and paths[0].is_dir():
            images: FileImages = Folder(paths[0], options.max_megapixels)
        elif len(paths) == 1 and paths[0].suffix.lower() == ".zip":
            images = Zip(paths[0], options.max_megapixels, options.max_file_mib)
        else:
            images = Files(paths, options.max_megapixels)
        if not len(images):
            raise UserError(f"{paths[0]} holds no image")
        return images

    def _arrays(self, path: Path, shape: Shape, what: str, names: Sequence[str]) -> Inputs:
        arrays = read_array_files(path, self.options.memory_gib)
        found = [arrays[name] for name in names if name in arrays]
        if not found and len(arrays) > 1:
            raise UserError(
                f"{path} must hold a single array or one named {' or '.join(names)}, it holds "
                f"{', '.join(arrays)}"
            )
        array = with_shape([*found, *arrays.values()][0], shape, f"{path}: {what}")
        kept = np.asarray(array[: self.most])
        samples = self._from_array(kept, str(path))
        return Inputs(samples, tuple(f"{path.name} {k}" for k in range(len(kept))), len(array))

    def _from_array(self, array: np.ndarray, source: str) -> Tensor:
        """Samples in the user's units, of grey levels or of numbers."""
        levels = self.scaling.levels
        if np.issubdtype(array.dtype, np.floating):
            return torch.from_numpy(np.array(array, np.float64 if array.dtype.itemsize > 4 else np.float32))
        if levels is None or not np.issubdtype(array.dtype, np.integer):
            raise UserError(f"{source} must hold floating-point numbers, got dtype {array.dtype}")
        try:
            stored = high_bits(array, self.options.bits or 8)
        except ValueError as error:
            raise UserError(f"{source} has no such grey levels: {error}") from error
        if stored.max() >= levels:
            raise UserError(
                f"{source} must hold the run's grey levels, 0 to {levels - 1}, or numbers from -1 to 1; it "
                f"has {stored.max()}"
            )
        return self.scaling.stored_to_model(torch.from_numpy(stored))


def is_array_file(paths: Sequence[Path]) -> bool:
    """Whether a single array file is named."""
    return len(paths) == 1 and paths[0].suffix in ARRAYS


def named_paths(text: str) -> list[Path]:
    """The existing files that a text names: one, several with commas between them, or those of a pattern.

    Raises:
        UserError: If there is none.
    """
    whole = expanded(text)
    if os.path.exists(whole):  # unlike Path.exists also where a long list is no possible name
        return [whole]
    paths: list[Path] = []
    for part in text.split(","):
        path = expanded(part)
        matches = [path] if os.path.exists(path) else [Path(match) for match in sorted(glob.glob(str(path)))]
        if not matches:
            raise UserError(f"input {part!r} does not exist: give a file, a folder, a pattern or held_out")
        paths += matches
    return paths


def with_shape(array: np.ndarray, shape: Shape, what: str) -> np.ndarray:
    """An array as samples (n, *shape), from one with its channels last, or without an axis for one channel or
    one sample.

    Raises:
        UserError: If it has another shape.
    """
    last = (*shape[1:], shape[0])
    bare = shape[1:] if shape[0] == 1 else shape
    for candidate in (array, array[None]):
        found = candidate.shape[1:]
        if len(candidate) and found == shape:
            return candidate
        if len(candidate) and len(shape) > 1 and found == last:
            return np.moveaxis(candidate, -1, 1)
        if len(candidate) and found == bare:
            return candidate[:, None]
    raise UserError(f"{what} have shape (n, {', '.join(map(str, shape))}), got {array.shape}")


def warn_of_other_sizes(images: FileImages, prepare: ImagePreparation, most: int) -> None:
    """Says that images are cropped and resized, if some are."""
    natural, other = replace(prepare, size=None), []
    for i in range(min(most, len(images))):
        try:
            with images.open(i) as image:
                size = natural.shape(image)[1:]
        except Exception:  # reported when the image is read
            continue
        if size != prepare.size:
            other.append(f"{images.name(i)} is {size[0]}x{size[1]}")
    if other and prepare.size is not None:
        height, width = prepare.size
        warn(f"{len(other)} of the inputs are brought to {height}x{width} (height x width): {other[0]}")
