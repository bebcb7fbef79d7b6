"""Folders and zip files of images: their training, validation and test set, their classes.

    train/cats/1.png, test/cats/2.png      training and test set (names of SPLITS, in any case), two classes
    cats/train/1.png, cats/test/2.png      the same
    cats/1.png, dogs/2.png                 classes of one set, a tenth of which is held out
    00000/img00000000.png, dataset.json    EDM's archives: the file has the labels, folders mean nothing

Images with captions (captions.py) are conditioned on these and have no classes.

Folders around all of these are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.console import warn
from score_diffusion.run.data.captions import LARGEST_METADATA, captions_of_files
from score_diffusion.run.data.decoding import ImagePreparation
from score_diffusion.run.data.image_source import image_split
from score_diffusion.run.data.images import SUFFIXES, FileImages, Folder, Zip
from score_diffusion.run.data.labels import class_indices, distinct_classes
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.splits import Split, Splits
from score_diffusion.run.errors import UserError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
METADATA = "dataset.json"


def find_images(path: Path, options: DataOptions) -> Splits:
    """The images of a folder or a zip file.

    Raises:
        UserError: If there is none, one cannot be read, or it is not clear which are held out.
    """
    if path.is_dir():
        images: FileImages = Folder(path, options.max_megapixels)
    else:
        images = Zip(path, options.max_megapixels, options.max_file_mib)
    if not len(images):
        raise UserError(f"{path} holds no image: expected files that end in {', '.join(SUFFIXES)}")
    common = common_folder(images.paths)
    paths = [image.relative_to(common) for image in images.paths]
    prepare = ImagePreparation.of(options)
    captions = captions_of_files(images, path)
    metadata = None if captions is not None else _metadata(path, images, (common / METADATA).as_posix())
    if metadata is not None:
        labels, classes = _labels_of_metadata(metadata, paths, path)
        return Splits({"train": image_split(images, labels, prepare, options)}, prepare.levels, classes)
    parts, paths = split_by_folders(paths, path)
    labels, classes = None, ()
    if captions is None:
        labels, classes = _classes_of_folders(paths, [part == "train" for part in parts])
    whole = image_split(images, labels, prepare, options).with_captions(captions)
    found = np.array(parts)[whole.samples.indices.numpy()]
    splits = {
        part: _without_unknown(whole.select(torch.from_numpy(found == part)), part)
        for part in ("train", "validation", "test")
        if (found == part).any()
    }
    if "train" not in splits:
        raise UserError(f"{path} has no training image that can be read")
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    return Splits(splits, prepare.levels, classes)


def common_folder(paths: Sequence[PurePosixPath]) -> PurePosixPath:
    """The deepest folder that all paths are in."""
    common = paths[0].parent
    while not all(path.is_relative_to(common) for path in paths):
        common = common.parent
    return common


def split_by_folders(paths: Sequence[PurePosixPath], source: Path) -> tuple[list[str], list[PurePosixPath]]:
    """The split that each image belongs to, and its path without the folder that names the split.

    Raises:
        UserError: If some images are in a folder of training or held-out data and others in none, or if two
            folders mean the same split.
    """
    folders = [_split_folder(path) for path in paths]
    parts = [
        None if k is None else SPLITS[path.parts[k].lower()] for k, path in zip(folders, paths, strict=True)
    ]
    kinds = set(parts)
    if not {"test", "validation"} & kinds or kinds == {"test", None} or kinds == {"validation", None}:
        return ["train"] * len(paths), list(paths)  # one set, whose classes may be called "train"
    if "train" not in kinds or None in kinds:
        where = {
            str(PurePosixPath(*path.parts[: (k or 0) + 1])) for k, path in zip(folders, paths, strict=True)
        }
        shown = ", ".join(sorted(where)[:8]) + (", ..." if len(where) > 8 else "")
        raise UserError(
            f"{source} holds {shown} side by side: either all images are below folders that name a training "
            f"set and held-out sets ({', '.join(SPLITS)}), or none is"
        )
    names: dict[str | None, set[str]] = {}
    for k, part, path in zip(folders, parts, paths, strict=True):
        names.setdefault(part, set()).add(path.parts[k or 0])
    for part, same in names.items():
        if len(same) > 1:
            raise UserError(
                f"{source} holds folders {' and '.join(sorted(same))}, which both mean {part} data: keep one"
            )
    below = [
        PurePosixPath(*path.parts[: k or 0], *path.parts[(k or 0) + 1 :])
        for k, path in zip(folders, paths, strict=True)
    ]
    return [str(part) for part in parts], below


def _split_folder(path: PurePosixPath) -> int | None:
    """The position in a path of the first folder that names a split."""
    return next((k for k, folder in enumerate(path.parts[:-1]) if folder.lower() in SPLITS), None)


def _classes_of_folders(
    paths: Sequence[PurePosixPath], in_training: Sequence[bool]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Class indices by folder, -1 for folders without training images; None if there is one class only."""
    folders = [path.parent.as_posix() for path in paths]
    classes = sorted({folder for folder, of in zip(folders, in_training, strict=True) if of})
    if len(classes) < 2:
        return None, ()
    index = {folder: k for k, folder in enumerate(classes)}
    return torch.tensor([index.get(folder, -1) for folder in folders]), tuple(classes)


def _without_unknown(split: Split, part: str) -> Split:
    """The split without its labels if one of its classes is not in the training set."""
    if split.labels is None or (split.labels >= 0).all():
        return split
    count = int((split.labels < 0).sum())
    warn(f"{count} {part} images are in folders that no training image is in: their classes are not used")
    return Split(split.samples)


def _metadata(path: Path, images: FileImages, name: str) -> dict | None:
    """The content of an EDM archive's dataset.json; None if there is no such file."""
    try:
        content = images.read(name, LARGEST_METADATA)
        if content is None:
            return None
        metadata = json.loads(content)
    except Exception as error:  # of JSON, of the archive, of the file system
        raise UserError(
            f"{name} of {path} cannot be read ({error}): copy it again, or take it away"
        ) from error
    return metadata if isinstance(metadata, dict) and "labels" in metadata else None


def _labels_of_metadata(
    metadata: dict, paths: Sequence[PurePosixPath], source: Path
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Class indices from pairs of file and label; None if the labels are missing or are vectors."""
    pairs = metadata["labels"]
    if not pairs:
        return None, ()
    try:
        by_name = {str(PurePosixPath(name.replace("\\", "/"))): label for name, label in pairs}
        labels = [by_name[path.as_posix()] for path in paths]
    except KeyError as error:
        raise UserError(f"{METADATA} of {source} has no label for {error.args[0]}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{METADATA} of {source} must hold pairs of file and label") from error
    if not all(type(label) is int for label in labels):
        warn(f"{METADATA} of {source} holds labels that are no class indices: they are not used")
        return None, ()
    distinct = distinct_classes(np.array(labels))
    return class_indices(np.array(labels), distinct, METADATA), tuple(map(str, distinct.tolist()))
