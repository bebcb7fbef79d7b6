"""From an opened image to grey levels: which way up, how many channels, cropped and resized.

orientation   as the camera's EXIF tag says
depth         16-bit grey levels give their high byte, floor(k / 256); floating-point pixels are refused
channels      1 of grey images, 3 of all others, or as many as asked for: 1 grey, 2 grey and alpha, 3 RGB,
              4 RGB and alpha
alpha         kept where 2 or 4 channels are asked for; else the image is laid on white
crop          the largest part in the middle that has the target's aspect ratio, or nothing cut
size          Lanczos resampling with a window that grows with the reduction: antialiased
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from score_diffusion.run.data.options import DataOptions

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width


@dataclass(frozen=True)
class ImagePreparation:
    """What is done to each image."""

    size: tuple[int, int] | None = None
    """Height and width to bring images to; None to keep them."""
    crop: str = "center"
    """Before resizing: "center" or "none"."""
    channels: int = 0
    """1 to 4; 0 for those of the image, without alpha."""

    @classmethod
    def of(cls, options: DataOptions) -> ImagePreparation:
        return cls(options.image_size, options.crop, options.channels)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The image's grey levels, uint8 (C, H, W).

        Raises:
            ValueError: If its pixels are floating-point numbers.
        """
        ImageOps.exif_transpose(image, in_place=True)
        image = self._converted(image)
        if self.size is not None:
            height, width = self.size
            if self.crop == "center":
                image = image.crop(middle(image.size, (width, height)))
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.LANCZOS)
        levels = np.asarray(image)
        return levels.transpose(2, 0, 1) if levels.ndim == 3 else levels[None]

    def shape(self, image: Image.Image) -> tuple[int, int, int]:
        """(C, H, W) of what the call would give, from the image's header alone."""
        width, height = image.size
        # Of a PNG file without tags in its head Pillow would decode the pixels, to look behind them.
        has_tags = image.format != "PNG" or "exif" in image.info
        if has_tags and image.getexif().get(ORIENTATION) in ON_ITS_SIDE:
            width, height = height, width
        return (self.channels or (1 if image.mode in GREY_MODES else 3), *(self.size or (height, width)))

    def _converted(self, image: Image.Image) -> Image.Image:
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers of no known range, save 8 or 16 bits")
        mode = MODES[self.channels or (1 if image.mode in GREY_MODES else 3)]
        if image.mode.startswith("I"):  # Pillow would set all levels above 255 to white
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        if mode not in ALPHA_MODES and (image.mode in ALPHA_MODES or "transparency" in image.info):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert(mode)


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
