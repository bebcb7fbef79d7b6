"""Data sets: handwritten digits, 2-D toys, and a user's own.

Of a user's own, image_files.py reads folders and zip files, arrays.py arrays, image_archives.py MNIST's and
CIFAR-10's files, hub.py data sets of the Hugging Face hub, user_function.py calls a Python function. What is
larger than data.memory_gib is not held in memory, see samples.py.

Images are kept as integer grey levels k in 0..levels-1 of shape (N, C, H, W). The model sees them
dequantized, with fresh uniform noise at every step. Pictures, sample files and distances use the raw pixels
2k/(levels - 1) - 1 in [-1, 1]. Points are kept as they are: float32 (N, D).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from run.arrays import find_arrays, read_array_files
from run.errors import UserError
from run.hub import HUB, find_on_hub
from run.image_archives import CIFAR_CLASSES, CIFAR_FILES, read_cifar, read_idx
from run.image_files import find_images
from run.preparation import Preparation
from run.samples import Found, Samples, fingerprints, part
from run.user_function import call_function, names_function
from sde_lib import dequantize, generator_for, quantize


@dataclass(frozen=True)
class Dataset:
    """A training set and a held-out set of one kind."""

    name: str
    train: Samples
    """Grey levels, uint8 (N, C, H, W), or points, float32 (N, D); a tensor, or a stream if it is large."""
    test: Samples
    """Held-out data of the same kind."""
    levels: int | None
    """Number of grey levels; None for points."""
    labels: Tensor | None = None
    """Classes of the training set, int64 (N,); None where the source has none."""
    test_labels: Tensor | None = None
    """Classes of the held-out set."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""
    digest: str = ""
    """Of the contents and the split; empty where it was not made here."""

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
        UserError: If the name is unknown, or the source cannot be used.
    """
    dataset = _load(section)
    if section.flip and not dataset.levels:
        raise UserError("data.flip mirrors images, and these data are points: leave it false")
    return dataset


def _load(section: ConfigDict) -> Dataset:
    if section.path:
        return _with_held_out(*_find(section), section)
    if section.name.startswith(HUB):
        return _with_held_out(section.name, find_on_hub(section.name.removeprefix(HUB), section), section)
    if section.name not in ("digits", *TOYS):
        raise UserError(
            f"unknown data set {section.name!r}; choose one of digits, {', '.join(TOYS)}, {HUB}NAME of the "
            "Hugging Face hub, or set data.path"
        )
    if Preparation.of(section) != Preparation(crop=section.crop):
        raise UserError(f"data.image_size and data.channels change your own images, not {section.name}")
    return load_digits() if section.name == "digits" else _load_toy(section)


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


def _load_toy(section: ConfigDict) -> Dataset:
    draw = TOYS[section.name]
    train, test = (
        torch.from_numpy(draw(_numpy_generator(section.seed, section.name, side), section.num_points)).float()
        for side in ("train", "test")
    )
    return Dataset(section.name, train, test, None)


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


# A user's own data.


def _find(section: ConfigDict) -> tuple[str, Found]:
    """What `data.path` names, with a name for it."""
    if names_function(section.path):
        arrays = call_function(section.path)
        return section.path.rpartition(":")[2], find_arrays(arrays, section.path, section)
    path = Path(section.path)
    if path.suffix in (".npy", ".npz") or (path / "x_train.npy").exists():
        return path.stem, find_arrays(read_array_files(path, section.memory_gib), str(path), section)
    if not path.exists():
        raise UserError(f"data.path {path} does not exist")
    name = path.name.split(".")[0]
    if path.name.endswith(("idx3-ubyte", "idx3-ubyte.gz")):
        return name, find_arrays(read_idx(path), str(path), section)
    if path.name.endswith(".tar.gz") or any(path.glob(CIFAR_FILES)):
        return name, replace(find_arrays(read_cifar(path), str(path), section), classes=CIFAR_CLASSES)
    if path.is_dir() or path.suffix == ".zip":
        return name, find_images(path, section)
    raise UserError(
        "data.path must name a .npy or .npz file or a folder of .npy files, a folder or .zip of images, an "
        f"idx file (…idx3-ubyte[.gz]), CIFAR-10's .tar.gz, or FILE.py:FUNCTION, got {path}"
    )


def _with_held_out(name: str, found: Found, section: ConfigDict) -> Dataset:
    """Holds out the samples with a hash in the lowest tenth, unless the source has some apart: a sample stays
    on its side as others come.
    """
    train, test, labels, test_labels = found.train, found.test, found.labels, found.test_labels
    digest = ""
    if test is None:
        if len(train) < 2:
            source = section.path or name
            raise UserError(f"{source} must hold at least 2 samples, one to hold out, got {len(train)}")
        hashes = _hashes(fingerprints(train), section.seed)
        held_out, digest = _held_out(hashes), _digest(hashes)
        train, test = part(train, ~held_out), part(train, held_out)
        if labels is not None:
            labels, test_labels = labels[~held_out], labels[held_out]
    return Dataset(name, train, test, found.levels, labels, test_labels, found.classes, digest)


def _hashes(fingerprints: Iterable[bytes], seed: int) -> list[int]:
    key = generator_for(seed, "held-out split").initial_seed().to_bytes(8, "big")
    return [
        int.from_bytes(hashlib.blake2b(content, digest_size=8, key=key).digest(), "big")
        for content in fingerprints
    ]


def _digest(hashes: list[int]) -> str:
    content = b"".join(h.to_bytes(8, "big") for h in hashes)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _held_out(hashes: list[int]) -> Tensor:
    """Which samples are held out, bool (N,)."""
    held_out = torch.tensor([h < 2**64 // 10 for h in hashes])
    if held_out.all() or not held_out.any():  # of very few samples: the one with the lowest hash
        held_out = torch.zeros(len(hashes), dtype=torch.bool)
        held_out[min(range(len(hashes)), key=hashes.__getitem__)] = True
    return held_out
