"""What decides which data set is loaded, and how: the keys of the section `data` as typed arguments."""

from __future__ import annotations

from dataclasses import dataclass

from score_diffusion.run.data.vocabulary import VOCABULARIES
from score_diffusion.run.errors import UserError

CROPS = ("center", "none")
CHANNELS = (0, 1, 2, 3, 4)
STANDARDIZATIONS = ("auto", "per_channel", "none")
LAYOUTS = ("auto", "channels_first", "channels_last")


@dataclass(frozen=True)
class DataOptions:
    """Which data set to load, and how.

    Raises:
        UserError: If an option is not one of its possible values.
    """

    name: str = "digits"
    """A built-in data set, or hf:NAME of the Hugging Face hub; ignored if `path` is set."""
    path: str = ""
    """The user's own data: a file, a folder or a function."""
    num_points: int = 20_000
    """Training points, and again test points, of the 2-D toys."""
    num_images: int = 10_000
    """Training images of the captioned shapes."""
    seed: int = 0
    """Of the toys' points, of the captioned shapes and of the held-out split."""
    image_size: tuple[int, int] | None = None
    """Height and width to resize images to; None keeps their sizes."""
    crop: str = "center"
    """What happens before resizing: "center" crops to the new aspect ratio, "none" crops nothing."""
    channels: int = 0
    """1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; 0 takes 1 or 3, as the images have."""
    bits: int = 0
    """Significant bits of a grey level: 8 by default, and as image files say; others must be given."""
    max_megapixels: float = 100.0
    """The most that an image file may have."""
    max_file_mib: float = 128.0
    """The most that one image file of a zip archive may take unpacked."""
    skip_bad_files: bool = False
    """Whether image files that cannot be read are left out, with a warning."""
    tokenizer: str = "words"
    """How captions are read: as "words" of the training set, or as "bytes"."""
    standardize: str = "auto"
    """Numbers, not grey levels, are brought to mean 0 and standard deviation 1: "auto" does so per column of
    points and by one number for everything else, "per_channel" per column or channel, "none" not at all."""
    layout: str = "auto"
    """Where arrays of numbers have their channels: "channels_first", "channels_last", or "auto"."""
    memory_gib: float = 4.0
    """Larger sets are streamed from the disk."""
    workers: int = 8
    """Threads that read and decode."""
    shrink: int = 1
    """By how much the sides of images are made smaller, each pixel the mean of a block."""
    flip: bool = False
    """Whether training mirrors images left to right at random."""
    dequantize: bool = True
    """Whether training adds uniform noise to grey levels."""

    def __post_init__(self) -> None:
        choices = {"crop": CROPS, "standardize": STANDARDIZATIONS, "layout": LAYOUTS}
        choices["tokenizer"] = tuple(VOCABULARIES)
        for key, values in choices.items():
            if getattr(self, key) not in values:
                raise UserError(f"data.{key} must be one of {', '.join(values)}, got {getattr(self, key)!r}")
        if self.channels not in CHANNELS:
            raise UserError(f"data.channels must be 0 (as the images have) or 1 to 4, got {self.channels!r}")


def parse_image_size(value: object) -> tuple[int, int] | None:
    """data.image_size, one number or (height, width), as height and width; None for 0.

    Raises:
        UserError: If it is neither.
    """
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if pair == (0, 0):
        return None
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise UserError(
            "data.image_size must be one number or height,width, each at least 1, or 0 to keep the images "
            f"as they are; got {value!r}"
        )
    return pair
