"""Pictures of images: grids, with names or captions, drawn pixel by pixel."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHORT_SIDE = 48  # small images are enlarged to about this many pixels, so that 8x8 digits can be read
GAP = 2
NAME_LENGTH = 24  # characters of a name that are shown on one line
LABEL_WIDTH = 170  # pixels of the names next to images where one is longer
CAPTION_WIDTH, CAPTION_SIZE = 112, 11  # pixels of an image with a caption below, at least, and of the letters
CAPTION_LENGTH = 90  # characters of a caption that are shown
CAPTION_FROM = 9  # characters of a caption, on average, at least

_matplotlib = importlib.util.find_spec("matplotlib")  # for its font with most letters
assert _matplotlib is not None and _matplotlib.origin is not None, "it is a dependency"
FONT, FONT_SIZE = str(Path(_matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"), 15


def slices(values: np.ndarray) -> np.ndarray:
    """Images as they are, and the middle slices of fields (n, C, D, H, W)."""
    return values if values.ndim == 4 else values[:, :, values.shape[2] // 2]


def image_grid(
    images: np.ndarray,
    limits: tuple[float, float] | None = (-1, 1),
    names: Sequence[str] | None = None,
    given: np.ndarray | None = None,
    columns: int | None = None,
) -> Image.Image:
    """Images (n, C, H, W) in a nearly square grid, row by row; small ones are enlarged.

    With names, images of one name are a row of their own, with the name on its left. A single name is above
    all of them. Where few images share a name and names are long, as captions are, each has its own below.
    Given images of the same size, or of a fraction of it, are shown on the left of each.

    Args:
        images: The images.
        limits: The values that are black and white; None takes them from the images.
        names: The name of each image's class.
        given: The images that they were drawn under.
        columns: Number of columns of a grid without names; None for one that is nearly square.
    """
    levels = rgb(images, limits)
    if given is not None:
        shown = rgb(given, (-1, 1) if np.abs(given).max() <= 1 else None)
        factor = levels.shape[2] // shown.shape[2]
        levels = np.concatenate([shown.repeat(factor, axis=2).repeat(factor, axis=3), levels], axis=3)
    captioned = names is not None and _are_captions(names)
    levels = _enlarged(levels, CAPTION_WIDTH if captioned else SHORT_SIDE)
    if names is None:
        columns = math.ceil(math.sqrt(len(levels))) if columns is None else columns
        return _grid(levels, [divmod(k, columns) for k in range(len(levels))])
    if len(set(names)) == 1 and len(names) > 1:
        return _titled_grid(levels, names[0])
    return _captioned_grid(levels, names) if captioned else _named_grid(levels, names)


def _grid(levels: np.ndarray, cells: Sequence[tuple[int, int]]) -> Image.Image:
    """Images, uint8 (n, 3, H, W), at their rows and columns."""
    _, _, height, width = levels.shape
    rows, columns = (1 + max(ends) for ends in zip(*cells, strict=True))
    step_y, step_x = height + GAP, width + GAP
    grid = np.full((rows * step_y + GAP, columns * step_x + GAP, 3), 96, dtype=np.uint8)
    for image, (row, column) in zip(levels, cells, strict=True):
        top, left = row * step_y + GAP, column * step_x + GAP
        grid[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return Image.fromarray(grid)


def image_rows(images: np.ndarray, limits: tuple[float, float] | None, names: Sequence[str]) -> Image.Image:
    """Images (rows, n, C, H, W), row by row, each row with its name on its left; small ones are enlarged."""
    rows, n = images.shape[:2]
    levels = _enlarged(rgb(images.reshape(rows * n, *images.shape[2:]), limits), SHORT_SIDE)
    return _blocks(levels, [(name, [*range(k * n, (k + 1) * n)]) for k, name in enumerate(names)])


def _enlarged(levels: np.ndarray, side: int) -> np.ndarray:
    """Images (n, 3, H, W) with whole multiples of their pixels, of about so many pixels a side."""
    scale = max(1, side // min(levels.shape[2:]))
    return levels.repeat(scale, axis=2).repeat(scale, axis=3)


def _named_grid(levels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Images, uint8 (n, 3, H, W), with a row for each name."""
    members: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        members.setdefault(name, []).append(k)
    return _blocks(levels, list(members.items()))


def _blocks(levels: np.ndarray, members: Sequence[tuple[str, list[int]]]) -> Image.Image:
    """Images, uint8 (n, 3, H, W), in rows of a name and the indices of its images; many short rows stand side
    by side in blocks.
    """
    in_lines = any(len(name) > NAME_LENGTH for name, _ in members)
    font = ImageFont.truetype(FONT, CAPTION_SIZE if in_lines else FONT_SIZE)
    labels = [_label(name, levels.shape[2], font) if in_lines else shortened(name) for name, _ in members]
    margin = math.ceil(max(font.getlength(line) for label in labels for line in label.split("\n"))) + 4 * GAP
    step_y, step_x = levels.shape[2] + GAP, levels.shape[3] + GAP
    width = margin + max(len(indices) for _, indices in members) * step_x
    blocks = max(1, round(math.sqrt(len(members) * step_y / width)))
    rows = math.ceil(len(members) / blocks)
    pictures = []
    for first in range(0, len(members), rows):
        named = members[first : first + rows]
        cells = {k: (row, column) for row, (_, ks) in enumerate(named) for column, k in enumerate(ks)}
        grid = _grid(levels[list(cells)], list(cells.values()))
        picture = Image.new("RGB", (margin + grid.width, grid.height), (255, 255, 255))
        picture.paste(grid, (margin, 0))
        draw = ImageDraw.Draw(picture)
        for row, label in enumerate(labels[first : first + rows]):
            right, middle = margin - 2 * GAP, row * step_y + (step_y + GAP) // 2
            draw.multiline_text((right, middle), label, (0, 0, 0), font, "rm", spacing=2, align="right")
        pictures.append(picture)
    return side_by_side(pictures)


def _label(name: str, height: int, font: ImageFont.FreeTypeFont) -> str:
    """A name in the lines that fit next to an image of this height."""
    words = " ".join(map(shortened, name.split()))
    lines = _lines(shortened(words, CAPTION_LENGTH), LABEL_WIDTH, font).split("\n")
    most = max(height // (CAPTION_SIZE + 4), 1)
    return "\n".join(lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1]} …"])


def side_by_side(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Pictures in a row on white, with so many pixels between them."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    whole = Image.new("RGB", (width, max(p.height for p in pictures)), (255, 255, 255))
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + gap
    return whole


def rgb(images: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    """Images (n, C, H, W) as uint8 (n, 3, H, W), between these limits or those of their own contrast."""
    colour = images.shape[1] >= 3
    images = images[:, :3] if colour else images[:, :1]
    low, high = contrast(images) if limits is None else limits
    images = np.nan_to_num(images, nan=low).clip(low, high)
    levels = ((images - low) * (255 / (high - low))).round().astype(np.uint8)
    return levels if colour else levels.repeat(3, axis=1)


def contrast(values: np.ndarray) -> tuple[float, float]:
    """Black and white such that a hundredth of the finite values is beyond each."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = np.percentile(finite.astype(np.float64), [1, 99])
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _titled_grid(levels: np.ndarray, name: str) -> Image.Image:
    """Images, uint8 (n, 3, H, W), in a nearly square grid under the name that they share."""
    columns = math.ceil(math.sqrt(len(levels)))
    grid = _grid(levels, [divmod(k, columns) for k in range(len(levels))])
    font = ImageFont.truetype(FONT, CAPTION_SIZE + 1)
    text = _lines(shortened(name, CAPTION_LENGTH), grid.width - 4 * GAP, font)
    height = (text.count("\n") + 1) * (CAPTION_SIZE + 5) + 2 * GAP
    picture = Image.new("RGB", (grid.width, grid.height + height), (255, 255, 255))
    picture.paste(grid, (0, height))
    ImageDraw.Draw(picture).multiline_text((2 * GAP, GAP), text, (0, 0, 0), font, spacing=2)
    return picture


def _are_captions(names: Sequence[str]) -> bool:
    """Whether names are long ones that few images share."""
    return len(set(names)) > 0.4 * len(names) and sum(map(len, names)) > CAPTION_FROM * len(names)


def _captioned_grid(levels: np.ndarray, captions: Sequence[str]) -> Image.Image:
    """A grid of images (n, 3, H, W), each with its caption below, in lines of its width."""
    n, _, height, width = levels.shape
    font = ImageFont.truetype(FONT, CAPTION_SIZE)
    texts = [_lines(shortened(caption, CAPTION_LENGTH), width, font) for caption in captions]
    columns = math.ceil(math.sqrt(n))
    step_x = width + 4 * GAP
    step_y = height + 4 * GAP + max(text.count("\n") + 1 for text in texts) * (CAPTION_SIZE + 4)
    picture = Image.new("RGB", (columns * step_x, math.ceil(n / columns) * step_y), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for k, (image, text) in enumerate(zip(levels, texts, strict=True)):
        left, top = k % columns * step_x + 2 * GAP, k // columns * step_y + 2 * GAP
        picture.paste(Image.fromarray(image.transpose(1, 2, 0)), (left, top))
        draw.multiline_text((left, top + height + 1), text, (0, 0, 0), font, spacing=2)
    return picture


def _lines(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """A text with line breaks between words, so that each line has at most a width in pixels if it can."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width or not lines[-1] else [*lines, word]
    return "\n".join(lines)


def shortened(name: str, most: int = NAME_LENGTH) -> str:
    """A name that may be that of any folder, on one line of so many characters at most."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name if len(name) <= most else name[: most - 1] + "…"


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
