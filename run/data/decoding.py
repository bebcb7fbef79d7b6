"""From an image file to grey levels: which formats are read, how many bits and channels, cropped and resized.

format        those of FORMATS, by content whatever the file's name; no other decoder of Pillow's is reached
orientation   as the camera's EXIF tag says
bits          8 high bits of the significant ones: floor(k / 2^(bits - 8)); floating-point pixels are refused
channels      1 of grey images, 3 of all others, or as many as asked for: 1 grey, 2 grey and alpha, 3 RGB,
              4 RGB and alpha
alpha         kept where 2 or 4 channels are asked for; else the image is laid on white
crop          the largest part in the middle that has the target's aspect ratio, or nothing cut
size          Lanczos resampling with a window that grows with the reduction: antialiased
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from score_diffusion.run.data.options import DataOptions

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width

Image.MAX_IMAGE_PIXELS = None  # data.max_megapixels takes its place
# Of damaged tags Pillow would warn image by image; a file that cannot be read is named all the same.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def open_image(file: Path | IO[bytes], max_megapixels: float, page: int = 0) -> Image.Image:
    """An image whose pixels may not be decoded yet.

    Args:
        file: The file, of any of FORMATS.
        max_megapixels: The most that it may have.
        page: Which page of a TIFF file.

    Raises:
        Exception: Whatever Pillow raises.
        ValueError: If it has too many pixels.
    """
    image = Image.open(file, formats=FORMATS)
    if page:
        image.seek(page)
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise ValueError(f"it has {megapixels:.4g} megapixels, above data.max_megapixels={max_megapixels:g}")
    return image


def declared_bits(image: Image.Image) -> int | None:
    """Significant bits of a channel by the file's format: 8, 12 or 16; None if it does not say.

    Of colour images with 16 bits Pillow decodes the 8 high ones.
    """
    layouts = {str(tile.args) for tile in getattr(image, "tile", ())}
    if any("I;12" in layout for layout in layouts):
        return 12
    if any(";16" in layout for layout in layouts) or image.mode.startswith("I;16"):
        return 16
    if image.mode == "I":
        return 16 if image.format in ("PNG", "PPM") else None
    return 8


def high_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Grey levels, uint8, of whole numbers with so many significant bits: their 8 high bits, or all if fewer.

    Raises:
        ValueError: If a value is negative or takes more bits.
    """
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0:
        raise ValueError(f"its smallest value is {low}, and grey levels are not negative")
    if high >= 2**bits:
        raise ValueError(f"its largest value is {high}, which takes more than data.bits={bits}")
    return (values >> max(0, bits - 8)).astype(np.uint8)


@dataclass(frozen=True)
class ImagePreparation:
    """What is done to each image."""

    size: tuple[int, int] | None = None
    """Height and width to bring images to; None to keep them."""
    crop: str = "center"
    """Before resizing: "center" or "none"."""
    channels: int = 0
    """1 to 4; 0 for those of the image, without alpha."""
    bits: int = 0
    """Significant bits of a channel; 0 for those of the format."""

    @classmethod
    def of(cls, options: DataOptions) -> ImagePreparation:
        return cls(options.image_size, options.crop, options.channels, options.bits)

    @property
    def levels(self) -> int:
        """Number of grey levels of prepared images."""
        return 2 ** min(self.bits or 8, 8)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The image's grey levels, uint8 (C, H, W).

        Raises:
            ValueError: If its pixels have no known range, or exceed it.
        """
        bits = declared_bits(image)
        ImageOps.exif_transpose(image, in_place=True)
        image = self._converted(image, bits)
        if self.size is not None:
            height, width = self.size
            if self.crop == "center":
                image = image.crop(middle(image.size, (width, height)))
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.LANCZOS)
        levels = np.asarray(image)
        if self.levels < 256:
            levels = levels.clip(max=self.levels - 1)  # resampling overshoots
        return levels.transpose(2, 0, 1) if levels.ndim == 3 else levels[None]

    def shape(self, image: Image.Image) -> tuple[int, int, int]:
        """(C, H, W) of what the call would give, from nothing but the image's header."""
        width, height = image.size
        # Of a PNG file without tags in its head Pillow would decode the pixels, to look behind them.
        has_tags = image.format != "PNG" or "exif" in image.info
        if has_tags and image.getexif().get(ORIENTATION) in ON_ITS_SIDE:
            width, height = height, width
        return (self.channels or (1 if image.mode in GREY_MODES else 3), *(self.size or (height, width)))

    def _converted(self, image: Image.Image, declared: int | None) -> Image.Image:
        """The image in the mode of its channels, 8 bits each."""
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers of no known range, save 8 or 16 bits")
        mode = MODES[self.channels or (1 if image.mode in GREY_MODES else 3)]
        if image.mode.startswith("I"):  # Pillow would set all levels above 255 to white
            image = Image.fromarray(self._grey_levels(np.asarray(image), declared))
        elif declared == 16 and self.bits not in (0, 16):
            raise ValueError(
                f"it has 16 bits for each colour, of which the 8 high ones are read: data.bits={self.bits} "
                "is possible for grey images only"
            )
        if mode not in ALPHA_MODES and (image.mode in ALPHA_MODES or "transparency" in image.info):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert(mode)
        if self.levels < 256:
            high_bits(np.asarray(image), self.bits)  # for its check
        return image

    def _grey_levels(self, values: np.ndarray, declared: int | None) -> np.ndarray:
        if not (self.bits or declared):
            raise ValueError(
                f"its values, {values.min()} to {values.max()}, are 32-bit integers whose range is not "
                "known: set --config.data.bits="
            )
        return high_bits(values, self.bits or declared or 16)


def middle(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest box in the middle of an image that has the target's aspect ratio.

    Args:
        size: Width and height of the image.
        target: Width and height.

    Returns:
        Left, top, right and bottom.
    """
    (width, height), (target_width, target_height) = size, target
    part_width = max(1, min(width, round(height * target_width / target_height)))
    part_height = max(1, min(height, round(width * target_height / target_width)))
    left, top = (width - part_width) // 2, (height - part_height) // 2
    return left, top, left + part_width, top + part_height
