"""Samples as pictures of the page, and pictures from the page as samples.

to the page      a `Sheet`: one PNG file with all samples, a pixel of the file for a pixel of a sample
from the page    a file of the user's, decoded as image files of a data set are, cropped and resized; or
                 an image that the page got before, at its size
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from score_diffusion.run.data.decoding import ImagePreparation, open_image
from score_diffusion.run.data.image_source import reason
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError
from score_diffusion.run.film import draw_points, draw_signals
from score_diffusion.run.image_grids import png_bytes, rgb, slices
from score_diffusion.run.plots import figure_image

WHOLE = (1, 3)  # channels of images that a browser's canvas keeps whole
FIGURE = 4.5  # inches
STANDARDIZED = 3.2  # how far a figure reaches on either side, in standard deviations of the data
BYTE = Scaling(256)
T = TypeVar("T")


@dataclass(frozen=True)
class Sheet:
    """Samples of one size in one picture, row by row without gaps."""

    png: bytes
    columns: int
    count: int
    width: int
    """Of one sample, in pixels."""
    height: int

    def message(self) -> dict[str, object]:
        """What the page gets, ready for JSON."""
        return {
            "png": data_url(self.png),
            "columns": self.columns,
            "count": self.count,
            "width": self.width,
            "height": self.height,
        }


def are_images(data: DataInfo) -> bool:
    """Whether samples are images that can be sent to the page and come back as they were."""
    return data.levels is not None and len(data.shape) == 3 and data.shape[0] in WHOLE


def sheet(
    values: np.ndarray, data: DataInfo, limits: tuple[float, float] | None = None, columns: int | None = None
) -> Sheet:
    """A picture of samples.

    Args:
        values: Samples in the units of the data, (n, *shape); images as brightness in [-1, 1].
        data: The data of their run.
        limits: The values that are black and white; None for those of the data.
        columns: Number of columns; None for a nearly square sheet.
    """
    if values.ndim < 4:
        draw = draw_points if values.ndim == 2 else draw_signals
        return _one(figure_image(partial(draw, values, _view(data)), FIGURE))
    levels = rgb(slices(values), data.scaling.limits if limits is None else limits)
    n, _, height, width = levels.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    rows = math.ceil(n / columns)
    grid = np.zeros((rows * columns, 3, height, width), np.uint8)
    grid[:n] = levels
    picture = grid.reshape(rows, columns, 3, height, width).transpose(0, 3, 1, 4, 2)
    pixels = picture.reshape(rows * height, columns * width, 3)
    return Sheet(png_bytes(Image.fromarray(pixels)), columns, n, width, height)


def _one(picture: Image.Image) -> Sheet:
    return Sheet(png_bytes(picture), 1, 1, *picture.size)


def _view(data: DataInfo) -> tuple[float, float]:
    """The range of a figure's axes, the same for all figures of a run."""
    ends = [
        data.scaling.model_to_user(torch.full((1, *data.shape), end)) for end in (-STANDARDIZED, STANDARDIZED)
    ]
    return ends[0].min().item(), ends[1].max().item()


def data_url(png: bytes) -> str:
    """A PNG file as an address."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def uploaded(file: bytes, data: DataInfo, options: DataOptions) -> tuple[np.ndarray, str]:
    """An image of the user's as a sample, cropped and resized as images of the run's data were.

    Args:
        file: The content of the file.
        data: The data of the run.
        options: How the run reads data.

    Returns:
        Brightness in [-1, 1], float32 (1, C, H, W), and what was done to the image, in words.

    Raises:
        UserError: If the file cannot be read.
    """
    channels, height, width = data.shape
    prepare = ImagePreparation((height, width), options.crop, channels, options.bits)

    def decode(image: Image.Image) -> tuple[tuple[int, ...], np.ndarray]:
        return replace(prepare, size=None).shape(image), prepare(image)

    (_, h, w), pixels = _decoded(file, options.max_megapixels, decode)
    cropped = "cropped and " if h * width != w * height and options.crop == "center" else ""
    resized = "" if (h, w) == (height, width) else f", {cropped}resized from {h}x{w} to {height}x{width}"
    return _brightness(pixels, Scaling(prepare.levels)), f"your image{resized}"


def returned(url: str, data: DataInfo) -> np.ndarray:
    """A sample that the page got before, from its picture.

    Args:
        url: The PNG file as an address, as the page's canvas gives it.
        data: The data of the run.

    Returns:
        Brightness in [-1, 1], float32 (1, C, H, W).

    Raises:
        UserError: If it is no picture of a sample of the run.
    """
    channels, height, width = data.shape
    head, _, text = url.partition(",")
    try:
        file = base64.b64decode(text, validate=True) if head == "data:image/png;base64" else b""
    except ValueError:
        file = b""
    pixels = _decoded(file, height * width / 1e6, ImagePreparation(channels=channels))
    if pixels.shape != data.shape:
        raise UserError(
            f"the image is {pixels.shape[1]}x{pixels.shape[2]} (height x width), and those of this run are "
            f"{height}x{width}: choose it again"
        )
    return _brightness(pixels, BYTE)


def _brightness(levels: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Grey levels (C, H, W) as brightness (1, C, H, W)."""
    return scaling.stored_to_model(torch.from_numpy(np.array(levels)[None])).numpy()


def _decoded(file: bytes, max_megapixels: float, decode: Callable[[Image.Image], T]) -> T:
    try:
        with open_image(io.BytesIO(file), max_megapixels) as image:
            return decode(image)
    except Exception as error:  # decoders raise whatever they stumble upon
        raise UserError(f"the image cannot be read ({reason(error)}): choose another file") from error


def known_pixels(mask: str, data: DataInfo) -> np.ndarray:
    """Which pixels are known, booleans (H, W), from a mask with 1 for each missing pixel, row by row.

    Raises:
        UserError: If the mask is of another size.
    """
    _, height, width = data.shape
    if len(mask) != height * width or set(mask) - {"0", "1"}:
        raise UserError(f"the mask must have {height * width} digits 0 and 1, one for each pixel")
    return (np.frombuffer(mask.encode(), np.uint8) == ord("0")).reshape(height, width)
