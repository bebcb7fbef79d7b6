"""Images as samples of one shape, decoded when they are read; damaged files are named, or left out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from score_diffusion.run.console import progress_bar, warn
from score_diffusion.run.data.decoding import FORMATS, ImagePreparation, declared_bits
from score_diffusion.run.data.images import Images
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.sources import Source, Stream
from score_diffusion.run.data.splits import Split
from score_diffusion.run.errors import UserError

MOST_LISTED = 10  # damaged files in a message
PROBED = 100  # images whose range is looked at
SKIP = "set --config.data.skip_bad_files=true to leave such files out"


class BadFile(UserError):
    """One image that cannot be read, and what is needed to look for others."""

    def __init__(self, images: Images, prepare: ImagePreparation, i: int, error: Exception) -> None:
        super().__init__(
            f"{images.name(i)} cannot be read ({reason(error)}): remove or replace it, or {SKIP}"
        )
        self.images, self.prepare = images, prepare


def reason(error: Exception) -> str:
    """The first line of what a decoder said."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is not of a format that is read: {', '.join(FORMATS)}"
    return str(error).split("\n")[0].strip() or type(error).__name__


class ImageSource(Source):
    """Images that are decoded and prepared when they are read.

    Args:
        images: The images.
        prepare: How to prepare each. If it leaves the number of channels open, all get as many as the image
            with most has.
        indices: Which images will be read, at least one.

    Raises:
        BadFile: If an image cannot be opened.
    """

    def __init__(self, images: Images, prepare: ImagePreparation, indices: Sequence[int]) -> None:
        self._images, self._indices, self._prepare = images, indices, prepare
        self._warned_of_frames = threading.Lock()
        channels, *size = self._shape_of(indices[0])
        if not prepare.channels:
            if channels == 1 and any(self._shape_of(i)[0] > 1 for i in indices[1:]):
                channels = 3  # colour images among grey ones
            self._prepare = replace(prepare, channels=channels)
        self.shape = (channels, *size)

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
                except Exception as error:  # as below
                    raise BadFile(self._images, self._prepare, i, error) from error
                bar.update()

    def check_before_streaming(self) -> None:
        """Looks at every image's header if the images keep their sizes.

        Raises:
            UserError: If they differ in size.
        """
        if self._prepare.size is None:
            with progress_bar(len(self._indices), "reading sizes", "image", delay=1) as bar:
                for i in self._indices:
                    self._check_size(i, self._shape_of(i))
                    bar.update()

    def _check_size(self, i: int, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            first, this = (f"{height}x{width}" for _, height, width in (self.shape, shape))
            raise UserError(
                f"images differ in size: {self._images.name(self._indices[0])} is {first} and "
                f"{self._images.name(i)} is {this} (height x width); set --config.data.image_size=N or "
                "HEIGHT,WIDTH"
            )

    def _shape_of(self, i: int) -> tuple[int, int, int]:
        try:
            with self._images.open(i) as image:
                return self._prepare.shape(image)
        except Exception as error:  # decoders raise whatever they stumble upon
            raise BadFile(self._images, self._prepare, i, error) from error

    def _read(self, i: int) -> np.ndarray:
        try:
            with self._images.open(i) as image:
                self._warn_of_frames(i, image)
                return self._prepare(image)
        except Exception as error:  # as above
            raise BadFile(self._images, self._prepare, i, error) from error

    def _warn_of_frames(self, i: int, image: Image.Image) -> None:
        """Warns once that frames are ignored; further images of a JPEG file (MPO) are previews of it."""
        if not getattr(image, "is_animated", False) or image.format == "MPO" or self._images.is_page(i):
            return
        if self._warned_of_frames.acquire(blocking=False):  # never released: once is enough
            warn(f"{self._images.name(i)} has several frames: of such files only the first is read")


def image_split(
    images: Images, labels: Tensor | None, prepare: ImagePreparation, options: DataOptions
) -> Split:
    """Images as a stream of samples with labels, without damaged files if the options say so.

    Raises:
        BadFile: If an image cannot be opened.
        UserError: If no image can be read, or the range of their values is not known.
    """
    indices = torch.arange(len(images))
    if options.skip_bad_files:
        bad = find_bad_files(images, prepare, options.workers)
        if bad:
            warn(f"{len(bad)} of {len(images)} images are left out: {listed(images, bad)}")
            indices = indices[[i not in bad for i in range(len(images))]]
        if not len(indices):
            raise UserError(f"none of {len(images)} images can be read: {listed(images, bad)}")
    chosen = indices.tolist()
    if not options.bits:
        _refuse_unknown_range(images, [chosen[k] for k in _evenly(len(chosen))])
    stream = Stream(ImageSource(images, prepare, chosen), indices, options.workers)
    return Split(stream, None if labels is None else labels[indices])


def find_bad_files(images: Images, prepare: ImagePreparation, workers: int) -> dict[int, Exception]:
    """Decodes all images; returns the errors of those that cannot be read, by index."""

    def check(i: int) -> Exception | None:
        try:
            with images.open(i) as image:
                prepare(image)
        except Exception as error:  # as in ImageSource
            return error
        return None

    bad = {}
    with ThreadPoolExecutor(workers) as pool:
        with progress_bar(len(images), "checking images", "image", delay=1) as bar:
            for i, error in enumerate(pool.map(check, range(len(images)))):
                if error is not None:
                    bad[i] = error
                bar.update()
    return bad


def all_bad_files(one: BadFile, workers: int) -> UserError:
    """The error that names all damaged images, after one of them was found."""
    bad = find_bad_files(one.images, one.prepare, workers)
    if len(bad) < 2:
        return one
    return UserError(
        f"{len(bad)} of {len(one.images)} images cannot be read: {listed(one.images, bad)}; remove or "
        f"replace them, or {SKIP}"
    )


def listed(images: Images, bad: dict[int, Exception]) -> str:
    """The names of the first few damaged images, and their errors."""
    some = "; ".join(f"{images.name(i)} ({reason(error)})" for i, error in list(bad.items())[:MOST_LISTED])
    return some + (f"; and {len(bad) - MOST_LISTED} more" if len(bad) > MOST_LISTED else "")


def _evenly(count: int) -> list[int]:
    return sorted({k * count // min(count, PROBED) for k in range(min(count, PROBED))})


def _refuse_unknown_range(images: Images, indices: list[int]) -> None:
    """Refuses 16-bit files whose values use less than half of the range: they may have 8, 10 or 12 bits."""
    largest, deep = 0, -1
    for i in indices:
        try:
            with images.open(i) as image:
                if declared_bits(image) == 16:
                    high_byte = image.mode not in ("I", "I;16", "I;16B", "I;16L", "I;16N")
                    value = int(np.asarray(image).max()) * (256 if high_byte else 1)
                    largest, deep = max(largest, value), i
        except Exception:  # reported when the image is read
            continue
    if deep >= 0 and largest < 2**15:
        bits = max(1, largest.bit_length())
        raise UserError(
            f"{images.name(deep)} has 16 bits for each channel, and {len(indices)} images that were looked "
            f"at have no value above {largest}: set --config.data.bits to the bits that are used, {bits} or "
            "more, or to 16 if the images are so dark"
        )
