"""Images that are opened one by one: of a folder, a zip file, an array, or the Hugging Face hub.

    a folder or a .zip of .png, .jpg, .jpeg, .webp, .bmp, .tif or .tiff files; subfolders are classes, but
    where they are below two folders train and test (or validation, val), the second is held out

They become uint8 samples (C, H, W), see decoding.py, decoded by threads: all at once where they fit in
memory, else when they are asked for. Nothing is unpacked to the disk.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from score_diffusion.run.console import progress_bar
from score_diffusion.run.data.decoding import ImagePreparation
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.sources import Source, Stream
from score_diffusion.run.data.splits import Split, Splits
from score_diffusion.run.errors import UserError

TRAIN, HELD_OUT = "train", ("test", "validation", "val")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# What Pillow, a damaged or an encrypted archive raise.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile,
    Image.DecompressionBombError,
)  # fmt: skip


class Images(ABC):
    """Images in a row, opened by any number of threads at a time."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """What to call image i in a message."""

    @abstractmethod
    def open(self, i: int) -> Image.Image:
        """Image i; its pixels may not be decoded yet."""

    def header(self, i: int) -> Image.Image:
        """Image i, whose pixels will not be asked for; to be closed."""
        return self.open(i)

    @abstractmethod
    def fingerprint(self, i: int) -> bytes:
        """Bytes that depend on the content of image i alone."""


class ArrayImages(Images):
    """The images of an array.

    Args:
        array: uint8 (N, H, W, C).
        source: What to call it in a message.
    """

    def __init__(self, array: np.ndarray, source: str) -> None:
        self._array, self._source = array, source

    def __len__(self) -> int:
        return len(self._array)

    def name(self, i: int) -> str:
        return f"image {i} of {self._source}"

    def open(self, i: int) -> Image.Image:
        image = self._array[i]
        return Image.fromarray(image[..., 0] if image.shape[2] == 1 else np.ascontiguousarray(image))

    def fingerprint(self, i: int) -> bytes:
        return self._array[i].tobytes()


class EncodedImages(Images):
    """Images as PNG, JPEG, ... files."""

    @abstractmethod
    def content(self, i: int) -> bytes:
        """The bytes of file i."""

    def open(self, i: int) -> Image.Image:
        return Image.open(io.BytesIO(self.content(i)))

    def fingerprint(self, i: int) -> bytes:
        content = self.content(i)
        return _fingerprint(len(content), zlib.crc32(content))


class Folder(EncodedImages):
    """The image files below a folder, by name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        files = (
            (Path(folder) / name).relative_to(path)
            for folder, _, names in os.walk(path, followlinks=True)
            for name in names
        )
        self.names = sorted(file.as_posix() for file in files if _is_image(file.as_posix()))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return f"image {self.names[i]} of {self._path}"

    def content(self, i: int) -> bytes:
        return (self._path / self.names[i]).read_bytes()

    def header(self, i: int) -> Image.Image:
        return Image.open(self._path / self.names[i])


class Zip(EncodedImages):
    """The image files in a zip file, by name.

    Raises:
        UserError: If the file is damaged, or a member's name leads out of it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"zip file {path} is cut short or damaged ({error}): copy it again") from error
        members = [
            member
            for member in self._archive.infolist()
            if _is_image(member.filename) and not member.filename.startswith("__MACOSX")
        ]
        for member in members:  # nothing is ever unpacked under these names, but they would name classes
            parts = PurePosixPath(member.filename).parts
            if ".." in parts or parts[0] == "/":
                raise UserError(
                    f"zip file {path} has a member {member.filename!r} whose name leads out of it: do not "
                    "trust this file, or pack it again with names below one folder"
                )
        self._members = sorted(members, key=lambda member: member.filename)
        self.names = [member.filename for member in self._members]

    def __len__(self) -> int:
        return len(self._members)

    def name(self, i: int) -> str:
        return f"image {self.names[i]} of {self._path}"

    def content(self, i: int) -> bytes:
        return self._archive.read(self._members[i])

    def header(self, i: int) -> Image.Image:
        return Image.open(self._archive.open(self._members[i]))

    def fingerprint(self, i: int) -> bytes:
        return _fingerprint(self._members[i].file_size, self._members[i].CRC)  # that of the content, unread


def _is_image(name: str) -> bool:
    """Whether a path is that of an image, and no part of it hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(p.startswith(".") and p != ".." for p in path.parts)


def _fingerprint(size: int, checksum: int) -> bytes:
    return size.to_bytes(8, "big") + checksum.to_bytes(4, "big")


class Pictures(Source):
    """Images, prepared when they are read.

    Args:
        images: At least one.
        prepare: What is done to each. If it leaves the number of channels to the images, all have those of
            the one that has most.
    """

    def __init__(self, images: Images, prepare: ImagePreparation) -> None:
        self._images = images
        channels, *size = self._header(0, prepare)
        if not prepare.channels:
            if channels == 1 and any(self._header(i, prepare)[0] > 1 for i in range(1, len(images))):
                channels = 3  # colour images among grey ones
            prepare = replace(prepare, channels=channels)
        self._prepare, self.shape = prepare, (channels, *size)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Tensor) -> Tensor:
        samples = np.empty((len(indices), *self.shape), np.uint8)
        for sample, i in zip(samples, indices.tolist(), strict=True):
            levels = self._read(i)
            self._check_size(i, levels.shape)
            sample[...] = levels
        return torch.from_numpy(samples)

    def fingerprints(self, indices: Tensor) -> Iterator[bytes]:
        with progress_bar(len(indices), "reading checksums", "image", delay=1) as bar:
            for i in indices.tolist():
                try:
                    yield self._images.fingerprint(i)
                except UNREADABLE as error:
                    raise self._unreadable(i, error) from error
                bar.update()

    def check_before_streaming(self) -> None:
        """Looks at every image's header if the images keep their sizes.

        Raises:
            UserError: If they differ in size.
        """
        if self._prepare.size is None:
            with progress_bar(len(self), "reading sizes", "image", delay=1) as bar:
                for i in range(len(self)):
                    self._check_size(i, self._header(i, self._prepare))
                    bar.update()

    def _check_size(self, i: int, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            first, this = (f"{height}x{width}" for _, height, width in (self.shape, shape))
            raise UserError(
                f"images differ in size: {self._images.name(0)} is {first} and {self._images.name(i)} is "
                f"{this} (height x width); set --config.data.image_size=N or HEIGHT,WIDTH"
            )

    def _header(self, i: int, prepare: ImagePreparation) -> tuple[int, int, int]:
        try:
            with self._images.header(i) as image:
                return prepare.shape(image)
        except UNREADABLE as error:
            raise self._unreadable(i, error) from error

    def _read(self, i: int) -> np.ndarray:
        try:
            return self._prepare(self._images.open(i))
        except UNREADABLE as error:
            raise self._unreadable(i, error) from error

    def _unreadable(self, i: int, error: Exception) -> UserError:
        reason = str(error).split("\n")[0]
        return UserError(f"{self._images.name(i)} cannot be read ({reason}): remove or replace it")


def image_stream(images: Images, prepare: ImagePreparation, options: DataOptions) -> Stream:
    """Images as a stream of samples.

    Raises:
        UserError: If the first image cannot be read.
    """
    return Stream.of_all(Pictures(images, prepare), options.workers)


def find_images(path: Path, options: DataOptions) -> Splits:
    """The images of a folder or a zip file.

    Raises:
        UserError: If there is none, one cannot be read, or they differ in size.
    """
    images = Folder(path) if path.is_dir() else Zip(path)
    if not images:
        raise UserError(f"{path} holds no image: expected files that end in {', '.join(SUFFIXES)}")
    samples = image_stream(images, ImagePreparation.of(options), options)
    paths = _without_common_folders([PurePosixPath(name) for name in images.names])
    top = {path.parts[0] for path in paths}
    if TRAIN not in top or not top & set(HELD_OUT):
        labels, classes = _classes(paths)
        return Splits({"train": Split(samples, labels)}, classes=classes)
    if len(top) != 2:
        raise UserError(
            f"{path} holds {', '.join(sorted(top))} side by side, and only {TRAIN} and one of "
            f"{', '.join(HELD_OUT)} can be told apart: take the others away"
        )
    labels, classes = _classes([path.relative_to(path.parts[0]) for path in paths])
    train = torch.tensor([path.parts[0] == TRAIN for path in paths])
    both = Split(samples, labels)
    return Splits({"train": both.select(train), "test": both.select(~train)}, classes=classes)


def _without_common_folders(paths: list[PurePosixPath]) -> list[PurePosixPath]:
    """The paths below the folders that all of them are in."""
    while len({path.parts[0] for path in paths}) == 1 and all(len(path.parts) > 1 for path in paths):
        paths = [PurePosixPath(*path.parts[1:]) for path in paths]
    return paths


def _classes(paths: Sequence[PurePosixPath]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Class indices and the names of the classes, the images' folders; none if they are all in one."""
    folders = [path.parent.as_posix() for path in paths]
    index = {folder: k for k, folder in enumerate(sorted(set(folders)))}
    if len(index) == 1:
        return None, ()
    return torch.tensor([index[folder] for folder in folders]), tuple(index)
