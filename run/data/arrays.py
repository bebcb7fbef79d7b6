"""Samples from arrays in memory or mapped from a file.

    whole numbers      images of grey levels (N, H, W) or (N, H, W, C) with C = 1 to 4
    floating point     points (N, D), signals (N, C, L), images (N, C, H, W), fields (N, C, D, H, W)

Samples have their channels first, wherever the array has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from score_diffusion.run.console import progress_bar
from score_diffusion.run.data.decoding import ImagePreparation, high_bits
from score_diffusion.run.data.image_source import image_split
from score_diffusion.run.data.images import Images
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling, measure
from score_diffusion.run.data.sources import Source, Stream
from score_diffusion.run.data.splits import Splits
from score_diffusion.run.errors import UserError

CHUNK_BYTES = 2**24  # of a mapped array that are looked at together, roughly
MOST_CHANNELS = 4  # of an axis that is taken for the channels unless data.layout says so


class ArraySource(Source):
    """The samples of an array."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self._file, self._end = None, 0  # the file that the array is mapped from, and where it ends there
        if isinstance(array, np.memmap) and array.filename:
            self._file, self._end = Path(array.filename), array.offset + array.nbytes
        # `take` releases Python's lock, but would first copy the whole of any other array.
        self._plain = array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative

    def __len__(self) -> int:
        return len(self._array)

    def rows(self, indices: Tensor) -> np.ndarray:
        """Some samples, unchanged.

        Raises:
            UserError: If the file that the array is mapped from has become shorter.
        """
        if self._file is not None and self._file.stat().st_size < self._end:
            # reading beyond its end would kill the process by SIGBUS
            raise UserError(f"data file {self._file} has become shorter since it was opened: restore it")
        return self._array.take(indices.numpy(), axis=0) if self._plain else self._array[indices.numpy()]

    def chunks(self, indices: Tensor, title: str) -> Iterator[Tensor]:
        """The indices in chunks that are read together, with a progress bar."""
        count = max(1, CHUNK_BYTES * len(self) // max(1, self._array.nbytes))
        with progress_bar(len(indices), title, "sample", delay=1) as bar:
            for chunk in indices.split(count):
                yield chunk
                bar.update(len(chunk))


class LevelArray(ArraySource):
    """Images of grey levels, reduced to their 8 high bits.

    Args:
        array: Whole numbers (N, H, W, C).
        bits: Significant bits of each.
    """

    def __init__(self, array: np.ndarray, bits: int) -> None:
        super().__init__(array)
        self._bits = bits
        _, height, width, channels = array.shape
        self.shape = (channels, height, width)

    def read(self, indices: Tensor) -> Tensor:
        levels = high_bits(self.rows(indices), self._bits)
        return torch.from_numpy(np.array(levels.transpose(0, 3, 1, 2), order="C"))

    def fingerprints(self, indices: Tensor) -> Iterator[bytes]:
        for chunk in self.chunks(indices, "reading samples"):
            yield from (sample.tobytes() for sample in self.read(chunk).numpy())

    def check_range(self, source: str) -> None:
        """Raises a UserError if a value is negative or takes more bits."""
        for chunk in self.chunks(torch.arange(len(self)), "checking grey levels"):
            try:
                high_bits(self.rows(chunk), self._bits)
            except ValueError as error:
                raise UserError(f"{source} has no such grey levels: {error}") from error


class ArrayImages(Images):
    """The images of an array, for resizing.

    Args:
        levels: The array.
        source: Its name in messages.
    """

    def __init__(self, levels: LevelArray, source: str) -> None:
        self._levels, self._source = levels, source

    def __len__(self) -> int:
        return len(self._levels)

    def name(self, i: int) -> str:
        return f"image {i} of {self._source}"

    def open(self, i: int) -> Image.Image:
        image = self._levels.read(torch.tensor([i]))[0].permute(1, 2, 0).numpy()
        return Image.fromarray(image[..., 0] if image.shape[2] == 1 else np.ascontiguousarray(image))

    def fingerprint(self, i: int) -> bytes:
        return self._levels.read(torch.tensor([i])).numpy().tobytes()


class NumberArray(ArraySource):
    """Floating-point numbers.

    Args:
        array: Shape (N, *shape), of any floating-point dtype.
        channel_axis: The axis of the channels.
        scaling: How to standardize them; not at all by default.
    """

    dtype = torch.float32

    def __init__(self, array: np.ndarray, channel_axis: int = 1, scaling: Scaling | None = None) -> None:
        super().__init__(array)
        self._channel_axis, self._scaling = channel_axis, scaling or Scaling()
        axes = [axis for axis in range(1, array.ndim) if axis != channel_axis]
        self.shape = tuple(array.shape[axis] for axis in (channel_axis, *axes))

    @property
    def user_dtype(self) -> str:
        """The dtype that keeps all digits of the array."""
        return "float64" if self._array.dtype.itemsize > 4 else "float32"

    def scaled(self, scaling: Scaling) -> NumberArray:
        """The same numbers, standardized."""
        return NumberArray(self._array, self._channel_axis, scaling)

    def read(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(self._scaling.user_to_stored(self.in_user_units(indices)))

    def in_user_units(self, indices: Tensor) -> np.ndarray:
        """Some samples in the user's units, channels first."""
        return np.moveaxis(self.rows(indices), self._channel_axis, 1)

    def fingerprints(self, indices: Tensor) -> Iterator[bytes]:
        for chunk in self.chunks(indices, "reading samples"):
            # as float64, so that the same numbers in another dtype count as the same data
            yield from (sample.astype("<f8").tobytes() for sample in self.in_user_units(chunk))

    def check_finite(self, source: str) -> None:
        """Raises a UserError if a number is NaN, infinite, or beyond float32."""
        for chunk in self.chunks(torch.arange(len(self)), "checking numbers"):
            check_finite(self.rows(chunk), source)


def check_finite(numbers: np.ndarray, source: str) -> None:
    """Raises a UserError if a number is NaN, infinite, or beyond float32."""
    sizes, limit = np.abs(numbers), np.finfo(np.float32).max
    if not np.isfinite(sizes).all():
        raise UserError(f"{source} holds NaN or infinite values: remove those samples")
    if not (sizes <= limit).all():
        raise UserError(
            f"{source} holds numbers of up to {sizes.max():.2g}, more than float32 can hold ({limit:.2g}): "
            "divide them by a constant"
        )


def standardize(
    splits: Splits, standardization: str, source: str, of_run: Scaling | None
) -> tuple[Splits, Scaling]:
    """Standardizes numbers by the training set, or by the scaling that a run already has.

    Raises:
        UserError: If the training set, or a column of it, is constant.
    """
    numbers, indices = splits.train.samples.source, splits.train.samples.indices
    if not isinstance(numbers, NumberArray):
        raise TypeError(f"only arrays of numbers are standardized, got {type(numbers).__name__}")
    columns = {1, numbers.shape[0]}
    if of_run is not None and of_run.levels is None and len(of_run.shift) in columns:
        scaling = of_run
    else:
        chunks = (numbers.in_user_units(c) for c in numbers.chunks(indices, "measuring the scale"))
        scaling = measure(chunks, numbers.shape, standardization, numbers.user_dtype, source)
    return splits.map(lambda stream: _scaled(stream, scaling)), scaling


def _scaled(stream: Stream, scaling: Scaling) -> Stream:
    assert isinstance(stream.source, NumberArray)  # as the training set's
    return replace(stream, source=stream.source.scaled(scaling))


def array_stream(array: np.ndarray, source: str, options: DataOptions) -> tuple[Stream, int | None]:
    """The samples of an array, and their number of grey levels; None for numbers.

    Args:
        array: As above.
        source: Its name in messages.
        options: How to prepare images, and where the channels are.

    Raises:
        UserError: If the array has another shape or dtype, or its values are out of range.
    """
    integers, numbers = np.issubdtype(array.dtype, np.integer), np.issubdtype(array.dtype, np.floating)
    if not integers and not numbers:
        raise UserError(f"{source} must be uint8 images or floating-point numbers, got dtype {array.dtype}")
    if array.size == 0:
        raise UserError(f"{source} is empty: its shape is {array.shape}")
    if numbers:
        return _numbers(array, source, options), None
    return _grey_levels(array, source, options)


def _grey_levels(array: np.ndarray, source: str, options: DataOptions) -> tuple[Stream, int]:
    if array.ndim == 4 and options.layout == "channels_first":
        array = np.moveaxis(array, 1, -1)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] > MOST_CHANNELS):
        raise UserError(
            f"{source} of dtype {array.dtype} must be images of shape (N, H, W) or (N, H, W, C) with C at "
            f"most {MOST_CHANNELS}, got {array.shape}: images (N, C, H, W) need "
            "data.layout=channels_first, and everything else floating-point numbers"
        )
    if array.dtype != np.uint8 and not options.bits:
        raise UserError(
            f"{source} must be uint8 images, got dtype {array.dtype} with values from {array.min()} to "
            f"{array.max()}, whose range is not known: set --config.data.bits to the bits of a grey level"
        )
    array, bits = array if array.ndim == 4 else array[..., None], options.bits or 8
    prepare = ImagePreparation.of(options)
    levels = LevelArray(array, bits)
    if bits != 8 or array.dtype != np.uint8:
        levels.check_range(source)
    _, height, width, channels = array.shape
    if prepare.size in (None, (height, width)) and prepare.channels in (0, channels):
        return Stream.of_all(levels, options.workers), prepare.levels
    prepare = replace(prepare, channels=prepare.channels or channels)
    images = ArrayImages(levels, source)
    return image_split(images, None, prepare, options).samples, prepare.levels


def _numbers(array: np.ndarray, source: str, options: DataOptions) -> Stream:
    if array.ndim < 2 or array.ndim > 5:
        raise UserError(
            f"{source} must have the shape of points (N, D), signals (N, C, L), images (N, C, H, W) or "
            f"fields (N, C, D, H, W), got {array.shape}"
        )
    if options.image_size is not None or options.channels or options.bits:
        raise UserError(
            f"data.image_size, data.channels and data.bits are for images of grey levels, and {source} holds "
            f"{array.dtype} numbers: leave them at 0"
        )
    numbers = NumberArray(array, _channel_axis(array.shape, options.layout, source))
    numbers.check_finite(source)
    return Stream.of_all(numbers, options.workers)


def _channel_axis(shape: Sequence[int], layout: str, source: str) -> int:
    """The axis of the channels: the first or the last of a sample's, whichever has at most 4 entries."""
    last = len(shape) - 1
    if last == 1 or layout == "channels_first":
        return 1
    if layout == "channels_last":
        return last
    first_is, last_is = shape[1] <= MOST_CHANNELS, shape[last] <= MOST_CHANNELS
    if first_is == last_is:
        raise UserError(
            f"{source} of shape {tuple(shape)} may have its channels in axis 1 or in axis {last}: set "
            "--config.data.layout=channels_first or channels_last (an array without channels needs an axis "
            "of length 1: x[:, None])"
        )
    return 1 if first_is else last
