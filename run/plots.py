"""Pictures of samples, loss curves, histograms. Written atomically, never shown."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from score_diffusion.run.files import write_atomic

# Notebooks name a backend in the environment, and matplotlib cannot be imported where that is not installed.
# No backend is needed here: figures are drawn on the canvases below.
_backend = os.environ.pop("MPLBACKEND", None)
try:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend

SHORT_LINE = 12  # lines of fewer points have markers, so that a single point can be seen
SHORT_SIDE = 48  # small images are enlarged to about this many pixels, so that 8x8 digits can be read
GAP = 2
PANELS = 16  # signals in a picture
MOST_STRETCHED = 20  # points whose widths differ by more have axes of different units


def save_samples(path: Path, samples: np.ndarray, limits: tuple[float, float] | None = (-1, 1)) -> None:
    """A picture of samples by their number of dimensions.

    Args:
        path: The file.
        samples: Points (n, D) become a scatter plot, signals (n, C, L) curves, images (n, C, H, W) a grid,
            and fields (n, C, D, H, W) a grid of their middle slices.
        limits: The values of images and fields that are black and white; None takes them from the samples.
    """
    if samples.ndim == 2:
        save_scatter(path, samples)
    elif samples.ndim == 3:
        save_signals(path, samples)
    else:
        images = samples if samples.ndim == 4 else samples[:, :, samples.shape[2] // 2]
        save_image_grid(path, images, limits)


def save_image_grid(path: Path, images: np.ndarray, limits: tuple[float, float] | None = (-1, 1)) -> None:
    """Images (n, C, H, W) in a nearly square grid, row by row; small ones are enlarged."""
    n, channels, height, width = images.shape
    images = images[:, :3] if channels >= 3 else images[:, :1]
    low, high = _contrast(images) if limits is None else limits
    images = np.nan_to_num(images, nan=low).clip(low, high)
    levels = ((images - low) * (255 / (high - low))).round().astype(np.uint8)
    levels = levels if channels >= 3 else levels.repeat(3, axis=1)
    scale = max(1, SHORT_SIDE // min(height, width))
    levels = levels.repeat(scale, axis=2).repeat(scale, axis=3)
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    step_y, step_x = height * scale + GAP, width * scale + GAP
    grid = np.full((rows * step_y + GAP, columns * step_x + GAP, 3), 96, dtype=np.uint8)
    for k, image in enumerate(levels):
        top, left = k // columns * step_y + GAP, k % columns * step_x + GAP
        grid[top : top + height * scale, left : left + width * scale] = image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def _contrast(values: np.ndarray) -> tuple[float, float]:
    """Black and white such that a hundredth of the finite values is beyond each."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = np.percentile(finite.astype(np.float64), [1, 99])
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def save_signals(path: Path, signals: np.ndarray) -> None:
    """Signals (n, C, L), the first of them, each in a panel of its own; all panels share their axes."""
    shown = signals[:PANELS]
    columns = math.ceil(math.sqrt(len(shown)))
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(
        math.ceil(len(shown) / columns), columns, sharex=True, sharey=True, squeeze=False
    )
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, signal in zip(panels.flat, shown, strict=False):
        axes.plot(signal.T, linewidth=0.8)
    _save(path, figure)


def save_scatter(path: Path, points: np.ndarray) -> None:
    """The first two coordinates of points (n, D); a histogram where D = 1."""
    if points.shape[1] == 1:
        save_histogram(path, points[:, 0], "x")
        return
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(points[:, 0], points[:, 1], s=3, alpha=0.6, linewidths=0)
    widths = np.ptp(points[:, :2], axis=0)
    if widths.max() < MOST_STRETCHED * widths.min():
        axes.set_aspect("equal")
    _save(path, figure)


def save_loss_curve(path: Path, steps: list[int], losses: list[float]) -> None:
    """The logged losses over the steps; both axes logarithmic."""
    _save(path, curves({"loss": (steps, losses)}, "step", "loss", xscale="log", yscale="log"))


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    xscale: str = "linear",
    yscale: str = "linear",
) -> Figure:
    """Lines (x, y) by name, with a legend if there is more than one."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    for name, (x, y) in lines.items():
        axes.plot(x, y, label=name, marker="." if len(x) < SHORT_LINE else None)
    axes.grid(alpha=0.3, which="both")
    if len(lines) > 1:
        axes.legend()
    return figure


def svg(figure: Figure) -> bytes:
    """A figure as an SVG image, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "figure"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def save_histogram(path: Path, values: np.ndarray, label: str) -> None:
    """A histogram with the mean marked."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=label, ylabel="count")
    axes.hist(values, bins=min(50, max(10, len(values) // 10)))
    axes.axvline(values.mean(), color="black", linestyle="--", label=f"mean {values.mean():.4g}")
    axes.legend()
    _save(path, figure)


def _save(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomic(path, buffer.getvalue())
