"""Finding the data set that a configuration names.

Of a user's own, images.py reads folders and zip files, arrays.py arrays, archives.py MNIST's and CIFAR-10's
files, hugging_face.py data sets of the Hugging Face hub, user_function.py calls a Python function. What is
larger than data.memory_gib is not held in memory, see sources.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from score_diffusion.run.data.archives import CIFAR_CLASSES, CIFAR_FILES, read_cifar, read_idx
from score_diffusion.run.data.arrays import find_arrays, read_array_files
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.decoding import ImagePreparation
from score_diffusion.run.data.hugging_face import HUB, find_on_hub
from score_diffusion.run.data.images import find_images
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.sources import Splits, fingerprints, select
from score_diffusion.run.data.toys import TOYS, load_digits, load_toy
from score_diffusion.run.data.user_function import call_function, names_function
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import generator_for


def load_dataset(options: DataOptions) -> Dataset:
    """The data set that the options name.

    Raises:
        UserError: If the name is unknown, or the source cannot be used.
    """
    dataset = _load(options)
    if options.flip and not dataset.levels:
        raise UserError("data.flip mirrors images, and these data are points: leave it false")
    return dataset


def _load(options: DataOptions) -> Dataset:
    if options.path:
        return _with_held_out(*_find(options), options)
    if options.name.startswith(HUB):
        return _with_held_out(options.name, find_on_hub(options.name.removeprefix(HUB), options), options)
    if options.name not in ("digits", *TOYS):
        raise UserError(
            f"unknown data set {options.name!r}; choose one of digits, {', '.join(TOYS)}, {HUB}NAME of the "
            "Hugging Face hub, or set data.path"
        )
    if ImagePreparation.of(options) != ImagePreparation(crop=options.crop):
        raise UserError(f"data.image_size and data.channels change your own images, not {options.name}")
    return load_digits() if options.name == "digits" else load_toy(options)


def _find(options: DataOptions) -> tuple[str, Splits]:
    """What `data.path` names, with a name for it."""
    if names_function(options.path):
        arrays = call_function(options.path)
        return options.path.rpartition(":")[2], find_arrays(arrays, options.path, options)
    path = Path(options.path)
    if path.suffix in (".npy", ".npz") or (path / "x_train.npy").exists():
        return path.stem, find_arrays(read_array_files(path, options.memory_gib), str(path), options)
    if not path.exists():
        raise UserError(f"data.path {path} does not exist")
    name = path.name.split(".")[0]
    if path.name.endswith(("idx3-ubyte", "idx3-ubyte.gz")):
        return name, find_arrays(read_idx(path), str(path), options)
    if path.name.endswith(".tar.gz") or any(path.glob(CIFAR_FILES)):
        return name, replace(find_arrays(read_cifar(path), str(path), options), classes=CIFAR_CLASSES)
    if path.is_dir() or path.suffix == ".zip":
        return name, find_images(path, options)
    raise UserError(
        "data.path must name a .npy or .npz file or a folder of .npy files, a folder or .zip of images, an "
        f"idx file (…idx3-ubyte[.gz]), CIFAR-10's .tar.gz, or FILE.py:FUNCTION, got {path}"
    )


def _with_held_out(name: str, found: Splits, options: DataOptions) -> Dataset:
    """Holds out the samples with a hash in the lowest tenth, unless the source has some apart: a sample stays
    on its side as others come.
    """
    train, test, labels, test_labels = found.train, found.test, found.labels, found.test_labels
    digest = ""
    if test is None:
        if len(train) < 2:
            source = options.path or name
            raise UserError(f"{source} must hold at least 2 samples, one to hold out, got {len(train)}")
        hashes = _hashes(fingerprints(train), options.seed)
        held_out, digest = _held_out(hashes), _digest(hashes)
        train, test = select(train, ~held_out), select(train, held_out)
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
