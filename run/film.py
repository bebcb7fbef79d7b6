"""Films of samples on their way from noise to data: an animated GIF, and the same as a strip."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from score_diffusion.run.files import write_atomic
from score_diffusion.run.image_grids import contrast, image_grid, png_bytes, side_by_side, slices
from score_diffusion.run.plots import figure_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRAMES, STRIP_FRAMES = 40, 10  # at most
FRAME_MS, LAST_FRAME_MS = 80, 1500
STRIP_SAMPLES = 6  # rows of a strip of images
FIGURE, STRIP_FIGURE = 4.0, 1.6  # inches


def save_film(path: Path, frames: np.ndarray, limits: tuple[float, float] | None) -> None:
    """A GIF that ends with the last frame held for a while.

    Args:
        path: The file.
        frames: Samples at one time after the other, (F, n, *shape), as `plots.save_samples` takes them.
        limits: The values that are black and white; None takes them from the last frame.
    """
    chosen = frames[_spread(len(frames), FRAMES)]
    pictures = _pictures(chosen, limits, FIGURE)
    shown = [picture.convert("P", palette=Image.Palette.ADAPTIVE) for picture in pictures]
    times = [FRAME_MS] * (len(shown) - 1) + [LAST_FRAME_MS]
    buffer = io.BytesIO()
    shown[0].save(
        buffer, format="GIF", save_all=True, append_images=shown[1:], duration=times, loop=0, optimize=False
    )
    write_atomic(path, buffer.getvalue())


def save_strip(path: Path, frames: np.ndarray, limits: tuple[float, float] | None) -> None:
    """Some of the frames side by side: of images a row for each sample, of others a panel for each frame."""
    chosen = frames[_spread(len(frames), STRIP_FRAMES)]
    if frames.ndim > 4:
        rows = chosen[:, :STRIP_SAMPLES].swapaxes(0, 1)  # (samples, frames, *shape)
        flat = slices(rows.reshape(-1, *rows.shape[2:]))
        limits = contrast(slices(chosen[-1])) if limits is None else limits
        picture = image_grid(flat, limits, columns=rows.shape[1])
    else:
        picture = side_by_side(_pictures(chosen, limits, STRIP_FIGURE))
    write_atomic(path, png_bytes(picture))


def _spread(count: int, most: int) -> np.ndarray:
    """At most so many indices below `count`, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _pictures(frames: np.ndarray, limits: tuple[float, float] | None, inches: float) -> Sequence[Image.Image]:
    """One picture for each frame, all of one scale: that of the data, which the last frame has."""
    if frames.ndim > 4:
        limits = contrast(slices(frames[-1])) if limits is None else limits
        return [image_grid(slices(frame), limits) for frame in frames]
    draw = draw_signals if frames.ndim == 4 else draw_points
    last = frames[-1]
    margin = 0.25 * np.ptp(last)
    view = (float(last.min() - margin), float(last.max() + margin))
    return [figure_image(functools.partial(draw, frame, view), inches) for frame in frames]


def draw_points(points: np.ndarray, view: tuple[float, float], axes: Axes) -> None:
    """Draws points (n, D) between the ends of the axes `view`, of one dimension as a histogram."""
    if points.shape[1] == 1:
        axes.hist(points[:, 0], bins=60, range=view)
        axes.set(xlim=view, yticks=[])
        return
    axes.scatter(points[:, 0], points[:, 1], s=2, alpha=0.6, linewidths=0)
    axes.set(xlim=view, ylim=view, aspect="equal", xticks=[], yticks=[])


def draw_signals(signals: np.ndarray, view: tuple[float, float], axes: Axes) -> None:
    """Draws the first channels of signals (n, C, L) as curves between the ends of the axis `view`."""
    axes.plot(signals[:, 0].T, linewidth=0.7)
    axes.set(ylim=view, xticks=[], yticks=[])
