"""Pictures: sample grids, scatter plots, loss curves, histograms. Written atomically, never shown."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from score_diffusion.run.files import write_atomic

SHORT_LINE = 12  # points of a line that are marked, so that a single one can be seen
SHORT_SIDE = 48  # small images are enlarged to about this many pixels, so that 8x8 digits can be read
GAP = 2


def save_samples(path: Path, samples: np.ndarray) -> None:
    """A grid of images (n, C, H, W) in [-1, 1], or a scatter plot of points (n, D)."""
    if samples.ndim == 4:
        save_image_grid(path, samples)
    else:
        save_scatter(path, samples)


def save_image_grid(path: Path, images: np.ndarray) -> None:
    """Images (n, C, H, W) in [-1, 1] in a nearly square grid, row by row; small ones are enlarged."""
    n, channels, height, width = images.shape
    levels = ((images.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    levels = levels[:, :3] if channels >= 3 else levels[:, :1].repeat(3, axis=1)
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


def save_scatter(path: Path, points: np.ndarray) -> None:
    """The first two coordinates of points (n, D); a histogram where D = 1."""
    if points.shape[1] == 1:
        save_histogram(path, points[:, 0], "x")
        return
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(points[:, 0], points[:, 1], s=3, alpha=0.6, linewidths=0)
    axes.set_aspect("equal")
    _save(path, figure)


def save_loss_curve(path: Path, steps: list[int], losses: list[float]) -> None:
    """The logged losses over the steps; both axes logarithmic."""
    _save(path, curves({"loss": (steps, losses)}, "step", "loss", xscale="log", yscale="log"))


def curves(
    lines: dict[str, tuple[Sequence[float], Sequence[float]]],
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
