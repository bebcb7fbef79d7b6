"""Array files and the names of their arrays: .npy and .npz files, and folders of .npy files.

    x_train            images, points, signals or fields, see arrays.py
    y_train            labels (N,) or (N, 1), optional
    x_test, y_test     held-out samples and their labels, optional
    x_val, y_val       a third part, for the loss during training, optional
    cond_vector_train  what a network may be conditioned on, optional: see user_conditions.py for the kinds

The names train_images, train_labels, ... mean the same, and a single array may have any name. A .npy file is
mapped: one that is larger than memory is read sample by sample.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from score_diffusion.run.console import warn
from score_diffusion.run.data.arrays import array_stream
from score_diffusion.run.data.labels import check_labels, class_indices, distinct_classes
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.sources import GIB, Stream
from score_diffusion.run.data.splits import Split, Splits
from score_diffusion.run.data.user_conditions import KINDS, PREFIX, Named, check_conditions, check_same_sizes
from score_diffusion.run.errors import UserError

PARTS = {
    "train": "train",
    "test": "test",
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
SAMPLES = ("x", "images")
CONDITIONS = tuple(PREFIX + kind for kind in KINDS)
NAME = re.compile(rf"(?P<kind>x|y|{'|'.join(CONDITIONS)})_(?P<part>{'|'.join(PARTS)})")
OTHER_NAME = re.compile(rf"(?P<part>{'|'.join(PARTS)})_(?P<kind>images|labels)")


@dataclass(frozen=True)
class Part:
    """The arrays of one split, with their names."""

    samples_name: str
    samples: np.ndarray
    labels_name: str = ""
    labels: np.ndarray | None = None
    conditions: dict[str, Named] = field(default_factory=dict)
    """The arrays of conditions by kind."""


def array_splits(
    arrays: dict[str, np.ndarray], source: str, options: DataOptions, classes: tuple[str, ...] = ()
) -> Splits:
    """Turns arrays into streams of samples with labels.

    Args:
        arrays: As above.
        source: What to call them in a message.
        options: How to prepare images.
        classes: Names of the classes that the labels index; by default the classes are the distinct labels.

    Raises:
        UserError: If an array has another shape or dtype, or the parts do not fit each other.
    """
    parts = _parts(arrays, source)
    first = parts.pop("train")
    train, levels = array_stream(first.samples, f"{source}:{first.samples_name}", options)
    distinct = None
    if first.labels is not None:
        where = f"{first.labels_name} of {source}"
        distinct = distinct_classes(check_labels(first.labels, len(train), where))
        distinct = np.arange(len(classes)) if classes else distinct
    splits: dict[str, Split] = {"train": _split(train, first, distinct, source)}
    for name, part in parts.items():
        samples, of_levels = array_stream(part.samples, f"{source}:{part.samples_name}", options)
        if (samples.shape[1:], of_levels) != (train.shape[1:], levels):
            raise UserError(
                f"{first.samples_name} and {part.samples_name} of {source} must agree in dtype and shape, "
                f"got samples of {train.shape[1:]} and {samples.shape[1:]}"
            )
        splits[name] = _split(samples, part, distinct, source)
        check_same_sizes(splits["train"].conditions, splits[name].conditions, source)
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    if distinct is not None:
        classes = classes or tuple(map(str, distinct.tolist()))
    return Splits(splits, levels, classes)


def _split(samples: Stream, part: Part, distinct: np.ndarray | None, source: str) -> Split:
    """Samples with their class indices, if the training set has classes, and their conditions."""
    named = {kind: (f"{name} of {source}", array) for kind, (name, array) in part.conditions.items()}
    conditions = check_conditions(named, len(samples), samples.shape[1:])
    if distinct is None or part.labels is None:
        return Split(samples, None, conditions)
    where = f"{part.labels_name} of {source}"
    labels = class_indices(check_labels(part.labels, len(samples), where), distinct, where)
    return Split(samples, labels, conditions)


def _parts(arrays: dict[str, np.ndarray], source: str) -> dict[str, Part]:
    """The arrays of the training set, the validation set and the test set, by their names."""
    found: dict[str, dict[str, str]] = {}
    for name in arrays:
        match = _match(name)
        if match:
            kind = _kind(match)
            names = found.setdefault(PARTS[match["part"]], {})
            if kind in names:
                raise UserError(f"{source} holds {names[kind]} and {name}, which mean the same: keep one")
            names[kind] = name
    if "samples" not in found.get("train", {}):
        if len(arrays) > 1:
            raise UserError(
                f"{source} must hold x_train (and x_test) or a single array, it holds {', '.join(arrays)}"
            )
        return {"train": Part(*next(iter(arrays.items())))}
    parts = {}
    for split, names in found.items():
        if "samples" in names:
            labels = names.get("labels", "")
            conditions = {kind: (names[kind], arrays[names[kind]]) for kind in KINDS if kind in names}
            parts[split] = Part(
                names["samples"], arrays[names["samples"]], labels, arrays.get(labels), conditions
            )
    used = {name for split in parts for name in found[split].values()}
    if set(arrays) - used:
        warn(f"{source}: {', '.join(sorted(set(arrays) - used))} not used; x_train, y_train, x_test, ... are")
    return parts


def _kind(match: re.Match[str]) -> str:
    """What an array is: samples, labels, or a kind of condition."""
    kind = match["kind"].lower()
    if kind in CONDITIONS:
        return kind.removeprefix(PREFIX)
    return "samples" if kind in SAMPLES else "labels"


def _match(name: str) -> re.Match[str] | None:
    return NAME.fullmatch(name.lower()) or OTHER_NAME.fullmatch(name.lower())


def is_array_folder(path: Path) -> bool:
    """Whether a folder holds the training set as a .npy file."""
    matches = (_match(file.stem) for file in path.glob("*.npy")) if path.is_dir() else ()
    return any(match and match["part"] == "train" and match["kind"] in SAMPLES for match in matches)


def read_array_files(path: Path, memory_gib: float) -> dict[str, np.ndarray]:
    """Maps the arrays of a .npy file or of a folder of such files; reads those of a .npz file.

    Raises:
        UserError: If a file is missing, damaged, or a .npz file takes more memory than `memory_gib`.
    """
    if path.is_dir():
        files = (file for file in sorted(path.glob("*.npy")) if _match(file.stem))
        return {file.stem: _load(file) for file in files}
    if not path.is_file():
        raise UserError(f"data file {path} does not exist")
    if path.suffix == ".npy":
        return {"array": _load(path)}
    arrays = _load_npz(path, memory_gib)
    if not arrays:
        raise UserError(f"data file {path} holds no array")
    return arrays


def _load(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"data file {path} must be a regular file, it is a pipe, a socket or a device")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of NumPy's reader, of Python's tokenizer, of the file system
        raise _unreadable(path, error) from error


def _load_npz(path: Path, memory_gib: float) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist()) / GIB
        arrays = dict(np.load(path, allow_pickle=False)) if size <= memory_gib else None
    except Exception as error:  # as above, and of the archive
        raise _unreadable(path, error) from error
    if arrays is None:
        raise UserError(
            f"data file {path} takes {size:.3g} GiB and data.memory_gib is {memory_gib:g}: save its arrays "
            "as x_train.npy, ... in a folder, where they are not read whole, or raise data.memory_gib"
        )
    return {key: array for key, array in arrays.items() if isinstance(array, np.ndarray)}


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = str(error).split("\n")[0]
    return UserError(
        f"data file {path} cannot be read ({reason}): write it again with numpy.save or numpy.savez"
    )
