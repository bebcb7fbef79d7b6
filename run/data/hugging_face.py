"""Data sets of the Hugging Face hub, data.name=hf:NAME, with the optional package `datasets`.

    hf:NAME             for example hf:ylecun/mnist
    hf:NAME:SUBSET      of a data set that has several configurations
    hf:FOLDER           what Dataset.save_to_disk wrote

The split `train` is trained on. `test` is scored, and `validation` is for the loss during training; one of
them serves for both, and without either a tenth of `train` is held out.
The one column of images is read, and with it the column `text` of captions, else the first column of class
labels, if there is one.

Reference:
    Datasets: A Community Library for Natural Language Processing (Lhoest et al., 2021),
        https://arxiv.org/abs/2109.02846.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from score_diffusion.run.data.captions import checked_captions
from score_diffusion.run.data.decoding import ImagePreparation, open_image
from score_diffusion.run.data.image_source import image_split
from score_diffusion.run.data.images import Images, size_and_checksum
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.splits import Split, Splits
from score_diffusion.run.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HUB = "hf:"
TEXT = "text"  # the column of captions
SAFE_VERSION = 4  # of the package: the first that runs no code of a data set
HELD_OUT = (("test",), ("validation", "valid", "val", "dev"))  # names of the test and the validation set


class HubImages(Images):
    """A column of images.

    Args:
        split: The data set.
        column: The column's name; its images are not decoded.
        source: What to call the data set in a message.
        max_megapixels: The most that an image may have.
    """

    def __init__(self, split: Dataset, column: str, source: str, max_megapixels: float) -> None:
        from datasets import Image as ImageColumn

        self._rows = split.select_columns([column]).cast_column(column, ImageColumn(decode=False))
        self._column, self._source, self._max_megapixels = column, source, max_megapixels

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, i: int) -> str:
        return f"image {i} of {self._source}"

    def open(self, i: int) -> Image.Image:
        return open_image(io.BytesIO(self._content(i)), self._max_megapixels)

    def fingerprint(self, i: int) -> bytes:
        content = self._content(i)
        return size_and_checksum(len(content), zlib.crc32(content))

    def _content(self, i: int) -> bytes:
        image = self._rows[i][self._column]
        if image is None:
            raise ValueError("there is none")
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def find_on_hub(name: str, options: DataOptions) -> Splits:
    """The images of a data set.

    Args:
        name: As above, without hf:.
        options: How to prepare images, and how much memory to use.

    Raises:
        UserError: If the package is missing, the data set cannot be loaded or has no column of images.
    """
    splits = _load(name)
    if not splits.get("train"):
        raise UserError(f"data set {name} must have a split 'train', it has {', '.join(splits) or 'none'}")
    column, label_column, classes = _columns(splits["train"], name)
    captioned = _has_captions(splits["train"])

    def read(key: str) -> Split:
        images = HubImages(splits[key], column, f"{name}, split {key}", options.max_megapixels)
        labels = None if label_column is None or captioned else _labels(splits[key], label_column)
        captions = _captions(splits[key], f"{name}, split {key}") if captioned else None
        return image_split(images, labels, prepare, options).with_captions(captions)

    prepare = ImagePreparation.of(options)
    train = read("train")
    names = (next((key for key in same if splits.get(key)), None) for same in HELD_OUT)
    held_out = [read(key) for key in names if key is not None]
    for split in held_out:
        if split.samples.shape[1:] != train.samples.shape[1:]:
            raise UserError(
                f"the images of {name} must have one shape, got {train.samples.shape[1:]} in train and "
                f"{split.samples.shape[1:]} in another split: set data.image_size and data.channels"
            )
    parts = dict(zip(("train", "test", "validation"), (train, *held_out), strict=False))
    return Splits(parts, prepare.levels, classes=() if train.labels is None else classes)


def _load(name: str) -> DatasetDict | dict[str, Dataset]:
    """The splits by name."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"data.name={HUB}{name} needs the package datasets: pip install 'score-diffusion[datasets]'"
        ) from error
    if int(datasets.__version__.split(".")[0]) < SAFE_VERSION:
        raise UserError(
            f"data.name={HUB}{name} needs the package datasets {SAFE_VERSION} or later, got "
            f"{datasets.__version__}: older ones run Python code that comes with a data set"
        )
    folder = Path(name)
    try:
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(name)
        else:
            repository, _, subset = name.partition(":")
            loaded = datasets.load_dataset(repository, subset or None)
    except Exception as error:  # of the package, of its HTTP client, of a data set's own files: of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"data set {name} of the Hugging Face hub cannot be loaded ({reason}): check the name, the "
            f"subset ({HUB}NAME:SUBSET) and the network"
        ) from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _columns(split: Dataset, name: str) -> tuple[str, str | None, tuple[str, ...]]:
    """The column of images, that of labels and the names of its classes."""
    from datasets import ClassLabel, Image

    columns = split.features
    images = [key for key, feature in columns.items() if isinstance(feature, Image)]
    labels = [key for key, feature in columns.items() if isinstance(feature, ClassLabel)]
    if len(images) != 1:
        found = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in columns.items())
        raise UserError(
            f"data set {name} must have one column of images, its columns are {found}: choose with a "
            "function of your own, data.path=FILE.py:FUNCTION"
        )
    return images[0], *((labels[0], tuple(columns[labels[0]].names)) if labels else (None, ()))


def _has_captions(split: Dataset) -> bool:
    return getattr(split.features.get(TEXT), "dtype", None) in ("string", "large_string")


def _captions(split: Dataset, source: str) -> np.ndarray:
    if not _has_captions(split):
        raise UserError(f"{source} must have a column {TEXT!r} of captions, as the split 'train' has")
    captions = [caption or "" for caption in split[TEXT]]
    return checked_captions(captions, [f"image {i} of {source}" for i in range(len(captions))])


def _labels(split: Dataset, column: str) -> Tensor | None:
    """Class indices (N,); None if some samples have none."""
    labels = list(split[column])
    return None if any(label is None or label < 0 for label in labels) else torch.tensor(labels)
