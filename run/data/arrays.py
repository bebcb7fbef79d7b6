"""Samples from arrays: .npy and .npz files, a folder of .npy files, archives, a user's function.

    x_train            uint8 images (N, H, W) or (N, H, W, C) with C = 1 to 4, or floating-point points (N, D)
    y_train            class indices (N,), optional
    x_test, y_test     held-out samples and their classes, optional

An array that is alone may have any name. An .npy file is mapped: one that is larger than memory is read
sample by sample.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.console import progress_bar
from score_diffusion.run.data.decoding import ImagePreparation
from score_diffusion.run.data.images import ArrayImages, hold_or_stream_pictures
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.sources import GIB, Samples, Source, Splits, hold_or_stream
from score_diffusion.run.errors import UserError

NAMES = ("x_train", "y_train", "x_test", "y_test")
CHUNK = 4096  # samples of a mapped array that are looked at together


class ArraySource(Source):
    """The samples of an array as they stand there.

    Args:
        array: uint8 (N, H, W, C) or floating-point (N, D).
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = np.asarray(array)
        images = array.ndim == 4
        self.shape = tuple(array.shape[index] for index in ((3, 1, 2) if images else (1,)))
        self.dtype = torch.uint8 if images else torch.float32

    def __len__(self) -> int:
        return len(self._array)

    def read(self, indices: Tensor) -> Tensor:
        return self._samples(self._array.take(indices.numpy(), axis=0))  # without Python's lock

    def read_all(self, workers: int) -> Tensor:  # a copy needs no threads
        return self._samples(self._array)

    def chunks(self, title: str) -> Iterator[Tensor]:
        with progress_bar(len(self), title, "sample", delay=1) as bar:
            for first in range(0, len(self), CHUNK):
                chunk = self._samples(self._array[first : first + CHUNK])
                yield chunk
                bar.update(len(chunk))

    def fingerprints(self) -> Iterator[bytes]:
        for chunk in self.chunks("reading samples"):
            yield from (sample.tobytes() for sample in chunk.numpy())

    def _samples(self, part: np.ndarray) -> Tensor:
        if part.ndim == 4:
            return torch.from_numpy(np.array(part.transpose(0, 3, 1, 2), order="C"))  # not the mapped file
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            return torch.from_numpy(part.astype(np.float32))


def find_arrays(arrays: dict[str, np.ndarray], source: str, options: DataOptions) -> Splits:
    """Arrays as samples: brought to the size and channels of the options, in memory or as streams.

    Args:
        arrays: As above.
        source: What to call them in a message.
        options: How to prepare images, and how much memory to use.

    Raises:
        UserError: If they are not such arrays.
    """
    key = "x_train" if "x_train" in arrays else next(iter(arrays))
    if len(arrays) > 1 and key != "x_train":
        raise UserError(
            f"{source} must hold x_train (and x_test) or a single array, it holds {', '.join(arrays)}"
        )
    train, levels = _samples(arrays[key], f"{source}:{key}", options)
    labels = _labels(arrays, "y_train", train, source)
    classes = () if labels is None else tuple(map(str, range(int(labels.max()) + 1)))
    found = Splits(train, levels, labels, classes)
    if "x_test" not in arrays or key != "x_train":
        return found
    test, test_levels = _samples(arrays["x_test"], f"{source}:x_test", options)
    if (test.shape[1:], test_levels) != (train.shape[1:], levels):
        raise UserError(
            f"x_train and x_test of {source} must agree in dtype and shape, got samples of "
            f"{tuple(train.shape[1:])} and {tuple(test.shape[1:])}"
        )
    test_labels = _labels(arrays, "y_test", test, source)
    if labels is not None and test_labels is not None and test_labels.max() >= len(classes):
        raise UserError(
            f"y_test of {source} holds the class {int(test_labels.max())}, and y_train none above "
            f"{len(classes) - 1}"
        )
    return replace(found, test=test, test_labels=test_labels)


def read_array_files(path: Path, memory_gib: float) -> dict[str, np.ndarray]:
    """The arrays of a .npy file, mapped, or of a folder of them; those of a .npz file, read.

    Raises:
        UserError: If a file is missing, damaged, or a .npz file takes more memory than `memory_gib`.
    """
    if path.is_dir():
        return {file.stem: _load(file) for file in sorted(path.glob("*.npy")) if file.stem in NAMES}
    if not path.is_file():
        raise UserError(f"data file {path} does not exist")
    loaded = _load(path) if path.suffix == ".npy" else _load_npz(path, memory_gib)
    arrays = {"array": loaded} if isinstance(loaded, np.ndarray) else loaded
    if not arrays:
        raise UserError(f"data file {path} holds no array")
    return arrays


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error


def _load_npz(path: Path, memory_gib: float) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist()) / GIB
        arrays = dict(np.load(path, allow_pickle=False)) if size <= memory_gib else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from error
    if arrays is None:
        raise UserError(
            f"data file {path} takes {size:.3g} GiB and data.memory_gib is {memory_gib:g}: save its arrays "
            "as x_train.npy, ... in a folder, where they are not read whole, or raise data.memory_gib"
        )
    return arrays


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = str(error).split("\n")[0]
    return UserError(
        f"data file {path} cannot be read ({reason}): write it again with numpy.save or numpy.savez"
    )


def _labels(arrays: dict[str, np.ndarray], key: str, samples: Samples, source: str) -> Tensor | None:
    """Class indices beside samples, if there are any."""
    if key not in arrays:
        return None
    labels = arrays[key]
    whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == (len(samples),)
    if not whole or (len(labels) and labels.min() < 0):
        raise UserError(
            f"{key} of {source} must be class indices from 0, integers of shape ({len(samples)},), got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _samples(array: np.ndarray, source: str, options: DataOptions) -> tuple[Samples, int | None]:
    """The array as (grey levels or points, number of levels), or one sentence about what is wrong with it."""
    images, points = array.dtype == np.uint8, np.issubdtype(array.dtype, np.floating)
    if not images and not points:
        raise UserError(f"{source} must be uint8 images or floating-point points, got dtype {array.dtype}")
    if array.size == 0:
        raise UserError(f"{source} is empty: its shape is {array.shape}")
    if points:
        return _points(array, source, options), None
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] > 4):
        raise UserError(
            f"{source} must be images of shape (N, H, W) or (N, H, W, C) with C at most 4, got {array.shape}"
        )
    array = array if array.ndim == 4 else array[..., None]
    prepare = ImagePreparation.of(options)
    _, height, width, channels = array.shape
    as_they_are = prepare.size in (None, (height, width)) and prepare.channels in (0, channels)
    if not as_they_are:
        prepare = replace(prepare, channels=prepare.channels or channels)
        return hold_or_stream_pictures(ArrayImages(array, source), options, prepare), 256
    return hold_or_stream(ArraySource(array), options), 256


def _points(array: np.ndarray, source: str, options: DataOptions) -> Samples:
    if array.ndim != 2:
        raise UserError(
            f"{source} of dtype {array.dtype} must be points of shape (N, D), got {array.shape}; "
            "images must be uint8"
        )
    samples = hold_or_stream(ArraySource(array), options)
    chunks = [samples] if isinstance(samples, Tensor) else samples.source.chunks("checking points")
    if not all(chunk.isfinite().all() for chunk in chunks):
        raise UserError(f"{source} holds NaN or infinite values: remove those rows")
    return samples
