"""Data sets: handwritten digits, 2-D toys, and a user's own arrays and images (see image_files.py).

Images are kept as integer grey levels k in 0..levels-1 of shape (N, C, H, W). The model sees them
dequantized, with fresh uniform noise at every step. Pictures, sample files and distances use the raw pixels
2k/(levels - 1) - 1 in [-1, 1]. Points are kept as they are: float32 (N, D).
"""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from run.errors import UserError
from run.image_files import read_images
from sde_lib import dequantize, generator_for, quantize


@dataclass(frozen=True)
class Dataset:
    """A training set and a held-out set of one kind."""

    name: str
    train: Tensor
    """Grey levels, uint8 (N, C, H, W), or points, float32 (N, D)."""
    test: Tensor
    """Held-out data of the same kind."""
    levels: int | None
    """Number of grey levels; None for points."""
    labels: Tensor | None = None
    """Classes of the training set, int64 (N,); None where the source has none."""
    test_labels: Tensor | None = None
    """Classes of the held-out set."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, (C, H, W) or (D,)."""
        return tuple(self.train.shape[1:])


def to_continuous(batch: Tensor, levels: int | None, u: Tensor) -> Tensor:
    """What the model sees: images dequantized with u in [0, 1), of their shape; points as they are."""
    return dequantize(batch, levels, u) if levels else batch


def bin_width(levels: int | None) -> float:
    """Distance of neighbouring grey levels in what the model sees; 1 for points, which have a density."""
    if not levels:
        return 1.0
    ends = dequantize(torch.tensor([0, 1]), levels, torch.zeros(2, dtype=torch.float64))
    return float(ends[1] - ends[0])


def to_raw(batch: Tensor, levels: int | None) -> Tensor:
    """Raw pixels in [-1, 1] of a batch of grey levels; points as they are."""
    return 2 * batch.float() / (levels - 1) - 1 if levels else batch


def samples_to_raw(x: Tensor, levels: int | None) -> Tensor:
    """Raw pixels of continuous samples, each at the grey level whose bin holds it; points as they are."""
    return to_raw(quantize(x, levels), levels) if levels else x


def load_dataset(section: ConfigDict) -> Dataset:
    """The data set of a `data` section.

    Raises:
        UserError: If the name is unknown, or the file cannot be used.
    """
    if section.path:
        path = Path(section.path)
        if path.suffix in (".npy", ".npz"):
            return load_arrays(path, section.seed)
        return load_images(path, section.seed, section.image_size, section.crop)
    if section.name == "digits":
        return load_digits()
    if section.name not in TOYS:
        raise UserError(
            f"unknown data set {section.name!r}; choose one of digits, {', '.join(TOYS)}, or set data.path"
        )
    draw = TOYS[section.name]
    train, test = (
        draw(_numpy_generator(section.seed, section.name, part), section.num_points)
        for part in ("train", "test")
    )
    return Dataset(section.name, _points(train), _points(test), None)


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 grey levels, one half of them held out."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    digits = load()
    halves = train_test_split(
        digits.images, digits.target, test_size=0.5, random_state=0, stratify=digits.target
    )
    train, test = (torch.from_numpy(half.astype(np.uint8))[:, None] for half in halves[:2])
    labels, test_labels = (torch.from_numpy(half).long() for half in halves[2:])
    return Dataset("digits", train, test, 17, labels, test_labels, tuple("0123456789"))


# 2-D toys, centred and scaled to about unit variance by fixed numbers, so that both sets share one law.


def _numpy_generator(seed: int, *keys: str) -> np.random.Generator:
    return np.random.default_rng(generator_for(seed, *keys).initial_seed())


def _swiss_roll(rng: np.random.Generator, n: int) -> np.ndarray:
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(n, noise=0.4, random_state=int(rng.integers(2**32)))
    return (points[:, [0, 2]] - [2.0, 0.0]) / 6.8


def _moons(rng: np.random.Generator, n: int) -> np.ndarray:
    from sklearn.datasets import make_moons

    points, _ = make_moons(n, noise=0.05, random_state=int(rng.integers(2**32)))
    return (points - [0.5, 0.25]) / [0.87, 0.5]


def _checkerboard(rng: np.random.Generator, n: int) -> np.ndarray:
    column, half_row = rng.integers(4, size=n), rng.integers(2, size=n)
    corner = np.stack([column, 2 * half_row + column % 2], 1)
    return (corner + rng.random((n, 2)) - 2) * math.sqrt(12) / 4


def _eight_gaussians(rng: np.random.Generator, n: int) -> np.ndarray:
    angle = rng.integers(8, size=n) * math.pi / 4
    return 1.4 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.14 * rng.standard_normal((n, 2))


TOYS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "swiss_roll": _swiss_roll,
    "moons": _moons,
    "checkerboard": _checkerboard,
    "8gaussians": _eight_gaussians,
}


# A user's own arrays.


def load_images(path: Path, seed: int, size: int, crop: str) -> Dataset:
    """Images of a folder, a zip file or an archive; a tenth of them is held out.

    Args:
        path: The source, see image_files.py.
        seed: Seed of the held-out split.
        size: Height and width to bring the images to; 0 to keep them.
        crop: "center" or "none", before resizing.

    Raises:
        UserError: As for `read_images`, or if there is only one image.
    """
    images = read_images(path, size, crop)
    pixels = torch.from_numpy(np.ascontiguousarray(images.pixels.transpose(0, 3, 1, 2)))
    labels = None if images.labels is None else torch.from_numpy(images.labels)
    name = path.name.split(".")[0]
    return _split(name, pixels, 256, labels, images.classes, seed, str(path))


def _split(
    name: str,
    samples: Tensor,
    levels: int | None,
    labels: Tensor | None,
    classes: tuple[str, ...],
    seed: int,
    source: str,
) -> Dataset:
    """Holds out the samples with a hash in the lowest tenth: a sample stays on its side as others come."""
    if len(samples) < 2:
        raise UserError(f"{source} must hold at least 2 samples, one of them to hold out, got {len(samples)}")
    key = generator_for(seed, "held-out split").initial_seed().to_bytes(8, "big")
    hashes = [
        int.from_bytes(hashlib.blake2b(sample.tobytes(), digest_size=8, key=key).digest(), "big")
        for sample in samples.numpy()
    ]
    held_out = torch.tensor([h < 2**64 // 10 for h in hashes])
    if held_out.all() or not held_out.any():  # of very few samples: the one with the lowest hash
        held_out = torch.zeros(len(samples), dtype=torch.bool)
        held_out[min(range(len(hashes)), key=hashes.__getitem__)] = True
    parts = [None, None] if labels is None else [labels[~held_out], labels[held_out]]
    return Dataset(name, samples[~held_out], samples[held_out], levels, *parts, classes)


def load_arrays(path: Path, seed: int) -> Dataset:
    """A .npy array, or a .npz with x_train (and y_train, x_test, y_test) or one array; without x_test a
    tenth is held out.

    Args:
        path: The file: uint8 images (N, H, W) or (N, H, W, C), or floating-point points (N, D).
        seed: Seed of the held-out split.

    Raises:
        UserError: If the file is missing, damaged, or does not hold such an array.
    """
    arrays = _read_arrays(path)
    key = "x_train" if "x_train" in arrays else next(iter(arrays))
    if len(arrays) > 1 and key != "x_train":
        raise UserError(
            f"{path} must hold x_train (and x_test) or a single array, it holds {', '.join(arrays)}"
        )
    train, levels = _check_array(arrays[key], f"{path}:{key}")
    labels = _check_labels(arrays, "y_train", train, path)
    classes = () if labels is None else tuple(map(str, range(int(labels.max()) + 1)))
    if "x_test" in arrays and key == "x_train":
        test, test_levels = _check_array(arrays["x_test"], f"{path}:x_test")
        if (test.shape[1:], test_levels) != (train.shape[1:], levels):
            raise UserError(
                f"x_train and x_test of {path} must agree in dtype and shape, got samples of "
                f"{tuple(train.shape[1:])} and {tuple(test.shape[1:])}"
            )
        test_labels = _check_labels(arrays, "y_test", test, path)
        return Dataset(path.stem, train, test, levels, labels, test_labels, classes)
    return _split(path.stem, train, levels, labels, classes, seed, str(path))


def _check_labels(arrays: dict[str, np.ndarray], key: str, samples: Tensor, path: Path) -> Tensor | None:
    """Class indices beside samples, if the file has them."""
    if key not in arrays:
        return None
    labels = arrays[key]
    whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == (len(samples),)
    if not whole or (len(labels) and labels.min() < 0):
        raise UserError(
            f"{key} of {path} must be class indices from 0, integers of shape ({len(samples)},), got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"data file {path} does not exist")
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"array": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"data file {path} cannot be read ({reason}): write it again with numpy.save or numpy.savez"
        ) from error
    if not arrays:
        raise UserError(f"data file {path} holds no array")
    return arrays


def _check_array(array: np.ndarray, source: str) -> tuple[Tensor, int | None]:
    """The array as (grey levels or points, number of levels), or one sentence about what is wrong with it."""
    images, points = array.dtype == np.uint8, np.issubdtype(array.dtype, np.floating)
    if not images and not points:
        raise UserError(f"{source} must be uint8 images or floating-point points, got dtype {array.dtype}")
    if array.size == 0:
        raise UserError(f"{source} is empty: its shape is {array.shape}")
    if points:
        if array.ndim != 2:
            raise UserError(
                f"{source} of dtype {array.dtype} must be points of shape (N, D), got {array.shape}; "
                "images must be uint8"
            )
        points = _points(array)
        if not points.isfinite().all():
            raise UserError(f"{source} holds NaN or infinite values: remove those rows")
        return points, None
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] > 4):
        raise UserError(
            f"{source} must be images of shape (N, H, W) or (N, H, W, C) with C at most 4, got {array.shape}"
        )
    channels_last = array if array.ndim == 4 else array[..., None]
    return torch.from_numpy(np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2))), 256


def _points(array: np.ndarray) -> Tensor:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return torch.from_numpy(array.astype(np.float32))
