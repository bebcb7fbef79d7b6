"""Pictures of samples, loss curves, histograms. Written atomically, never shown."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from score_diffusion.run.files import write_atomic
from score_diffusion.run.image_grids import (
    contrast,
    image_grid,
    image_rows,
    png_bytes,
    shortened,
    side_by_side,
    slices,
)

# Notebooks name a backend in the environment, and matplotlib cannot be imported where that is not installed.
# No backend is needed here: figures are drawn on the canvases below.
_backend = os.environ.pop("MPLBACKEND", None)
try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend

SHORT_LINE = 12  # lines of fewer points have markers, so that a single point can be seen
MOST_IN_LEGEND = 20
GROUP_GAP = 16  # pixels between groups of images
PANELS = 16  # signals in a picture
MISSING = (0.55, 0.65, 0.85)  # the colour of pixels that are not there
MOST_STRETCHED = 20  # points whose widths differ by more have axes of different units


def save_samples(
    path: Path,
    samples: np.ndarray,
    limits: tuple[float, float] | None = (-1, 1),
    names: Sequence[str] | None = None,
    given: np.ndarray | None = None,
) -> None:
    """A picture of samples by their number of dimensions.

    Args:
        path: The file.
        samples: Points (n, D) become a scatter plot, signals (n, C, L) curves, images (n, C, H, W) a grid,
            and fields (n, C, D, H, W) a grid of their middle slices.
        limits: The values of images and fields that are black and white; None takes them from the samples.
        names: The name of each sample's class: classes become rows of images or colours of points.
        given: The images or fields that the samples were drawn under, shown on the left of each.
    """
    if samples.ndim == 2:
        save_scatter(path, samples, names)
    elif samples.ndim == 3:
        save_signals(path, samples, names)
    else:
        images, given = slices(samples), None if given is None else slices(given)
        write_atomic(path, png_bytes(image_grid(images, limits, names, given)))


def save_groups(
    path: Path, groups: Mapping[str, np.ndarray], limits: tuple[float, float] | None = (-1, 1)
) -> None:
    """Groups of images (n, C, H, W) side by side, each a grid under its name."""
    grids = [image_grid(images, limits, [name] * len(images)) for name, images in groups.items()]
    write_atomic(path, png_bytes(side_by_side(grids, GROUP_GAP)))


def figure_image(draw: Callable[[Axes], None], inches: float) -> Image.Image:
    """A square figure of one panel, which `draw` draws."""
    figure = Figure(figsize=(inches, inches), layout="constrained")
    draw(figure.add_subplot())
    return Image.open(io.BytesIO(png(figure))).convert("RGB")


def save_image_table(
    path: Path,
    title: str,
    columns: Mapping[str, np.ndarray],
    notes: Mapping[str, Sequence[str]],
    limits: tuple[float, float] | None = (-1, 1),
    heat: Sequence[str] = ("deviation",),
) -> None:
    """Images in labelled columns, one row for each of n things.

    Args:
        path: The file.
        title: Above everything.
        columns: Images (n, C, H, W) of any size, or fields, whose middle slices are shown, by their titles.
            What is NaN is shown in blue.
        notes: For some of the columns a text under each image.
        limits: The values that are black and white; None takes them from the first column.
        heat: The columns that are shown in colours from 0 up to their largest value.
    """
    images = {name: slices(x) for name, x in columns.items()}
    limits = contrast(next(iter(images.values()))) if limits is None else limits
    rows = len(next(iter(images.values())))
    figure = Figure(figsize=(1.15 * len(images) + 0.2, 1.25 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(rows, len(images), squeeze=False)
    for column, (name, x) in zip(panels.T, images.items(), strict=True):
        most = float(x.max()) or 1.0
        column[0].set_title(f"{name}\n0 to {most:.2g}" if name in heat else name, fontsize=8)
        for row, axes in enumerate(column):
            axes.set(xticks=[], yticks=[])
            if name in heat:
                axes.imshow(x[row].mean(0), cmap="magma", vmin=0, vmax=most)
            else:
                axes.imshow(_levels(x[row], limits))
            if name in notes:
                axes.set_xlabel(notes[name][row], fontsize=7, labelpad=2)
    _save(path, figure)


def _levels(image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """An image (C, H, W) as colours (H, W, 3) in [0, 1], blue where it is NaN."""
    image = (image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0)).transpose(1, 2, 0)
    colours = ((image - limits[0]) / (limits[1] - limits[0])).clip(0, 1)
    return np.where(np.isnan(image), MISSING, colours)


def save_bands(
    path: Path, title: str, mean: np.ndarray, deviation: np.ndarray, truth: np.ndarray | None
) -> None:
    """Points (n, D) or signals (n, C, L) with a band of two deviations, each in a panel of its own."""
    figure = Figure(figsize=(7, 1.5 * len(mean) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for row, axes in enumerate(figure.subplots(len(mean), squeeze=False)[:, 0]):
        centre, band = mean[row].ravel(), 2 * deviation[row].ravel()
        element = np.arange(len(centre))
        axes.fill_between(element, centre - band, centre + band, alpha=0.3, step="mid", label="2 deviations")
        axes.plot(element, centre, linewidth=1, drawstyle="steps-mid", label="mean")
        if truth is not None:
            axes.plot(element, truth[row].ravel(), "k.", markersize=3, label="truth")
    figure.axes[0].legend(fontsize=7)
    _save(path, figure)


def save_signals(path: Path, signals: np.ndarray, names: Sequence[str] | None = None) -> None:
    """Signals (n, C, L), the first of them, each in a panel of its own, under its name if there are names.
    All panels share their axes.
    """
    shown = signals[:PANELS]
    columns = math.ceil(math.sqrt(len(shown)))
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(
        math.ceil(len(shown) / columns), columns, sharex=True, sharey=True, squeeze=False
    )
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for k, signal in enumerate(shown):
        axes = panels.flat[k]
        axes.plot(signal.T, linewidth=0.8)
        if names is not None:
            axes.set_title(_plain(shortened(names[k])), fontsize="small")
    _save(path, figure)


def save_scatter(path: Path, points: np.ndarray, names: Sequence[str] | None = None) -> None:
    """The first two coordinates of points (n, D), in a colour for each name; a histogram where D = 1."""
    if points.shape[1] == 1:
        save_histogram(path, points[:, 0], "x")
        return
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    kinds = list(dict.fromkeys(names or [""]))
    for name in kinds:
        x, y = points[:, :2].T if names is None else points[np.array(names) == name, :2].T
        axes.scatter(x, y, s=3, alpha=0.6, linewidths=0, label=_plain(shortened(name)))
    if names is not None and len(kinds) <= MOST_IN_LEGEND:
        axes.legend(markerscale=4)
    widths = np.ptp(points[:, :2], axis=0)
    if widths.max() < MOST_STRETCHED * widths.min():
        axes.set_aspect("equal")
    _save(path, figure)


def save_paths(
    path: Path, paths: np.ndarray, limits: tuple[float, float] | None, names: Sequence[str]
) -> None:
    """Paths (n, points, *shape) of samples that lead from one to another.

    Args:
        path: The file.
        paths: Of images and of fields, by their middle slices, each path is a row; of signals a row of
            panels; of points a line over the first two coordinates.
        limits: The values of images and fields that are black and white; None takes them from the paths.
        names: The name of each path.
    """
    if paths.ndim == 3:
        _save(path, _lines_of_points(paths, names))
    elif paths.ndim == 4:
        _save(path, _rows_of_signals(paths, names))
    else:
        n, points, *shape = paths.shape
        images = slices(paths.reshape(n * points, *shape))
        rows = images.reshape(n, points, *images.shape[1:])
        write_atomic(path, png_bytes(image_rows(rows, limits, names)))


def _lines_of_points(paths: np.ndarray, names: Sequence[str]) -> Figure:
    """Paths (n, points, D) as lines, whose ends are marked; over the position on the path where D = 1."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    for line, name in zip(paths, names, strict=True):
        if line.shape[1] == 1:
            x, y = np.linspace(0, 1, len(line)), line[:, 0]
        else:
            x, y = line[:, 0], line[:, 1]
        (drawn,) = axes.plot(x, y, marker=".", markersize=4, linewidth=1, label=_plain(shortened(name)))
        axes.plot(x[[0, -1]], y[[0, -1]], "o", markersize=7, color=drawn.get_color())
    if paths.shape[2] == 1:
        axes.set(xlabel="position on the path", ylabel="x")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def _rows_of_signals(paths: np.ndarray, names: Sequence[str]) -> Figure:
    """Paths (n, points, C, L) as rows of panels, a panel for each signal, which share their axes."""
    n, points = paths.shape[:2]
    figure = Figure(figsize=(1.1 * points + 0.8, 0.9 * n + 0.3), layout="constrained")
    panels = figure.subplots(n, points, sharex=True, sharey=True, squeeze=False)
    for row, signals, name in zip(panels, paths, names, strict=True):
        row[0].set_ylabel(_plain(shortened(name)), fontsize=7, rotation=0, ha="right", va="center")
        for axes, signal in zip(row, signals, strict=True):
            axes.plot(signal.T, linewidth=0.8)
            axes.set(xticks=[], yticks=[])
    return figure


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
    axes.grid(alpha=0.3)
    axes.grid(alpha=0.1, which="minor")
    if len(lines) > 1:
        axes.legend()
    return figure


@dataclass(frozen=True)
class ErrorBars:
    """Points of a line, each with a standard error."""

    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float]
    """0 where it is not known."""


def error_curves(
    panels: Mapping[str, Mapping[str, ErrorBars]],
    ylabel: str,
    level: float | None = None,
    yscale: str = "linear",
) -> Figure:
    """Lines with error bars in panels next to each other, which share their y-axis.

    Args:
        panels: The lines of each panel by their names, under what its x-axis, which is logarithmic, shows.
        ylabel: What the y-axis shows.
        level: Where to draw a horizontal line; None for none.
        yscale: Scale of the y-axis.
    """
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    for axes, (xlabel, lines) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        axes.set(xlabel=xlabel, xscale="log", yscale=yscale)
        _mark_points(axes, [x for line in lines.values() for x in line.x])
        for name, line in lines.items():
            axes.errorbar(line.x, line.y, line.errors, label=_plain(name), marker=".", capsize=3)
        if level is not None:
            axes.axhline(level, color="black", linestyle="--", linewidth=1, label="real data")
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel(ylabel)
    figure.axes[0].legend()
    return figure


def _mark_points(axes: Axes, x: Sequence[float]) -> None:
    """Ticks of a logarithmic x-axis at the points themselves, as far as their labels have room."""
    ticks: list[float] = []
    for value in sorted(set(x)):
        if not ticks or math.log(value / ticks[-1]) > math.log(max(x) / min(x)) / 10:
            ticks.append(value)
    axes.set_xticks(ticks, [f"{value:.2g}" for value in ticks])
    axes.set_xticks([], minor=True)
    if len(set(x)) == 1:  # an axis of no length
        axes.set_xlim(x[0] / 2, 2 * x[0])


def svg(figure: Figure) -> bytes:
    """A figure as an SVG image whose words are text, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "figure", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def save_histogram(path: Path, values: np.ndarray | Mapping[str, np.ndarray], label: str) -> None:
    """A histogram with the mean marked, or those of several sets by their names."""
    _save(path, histogram(values, label))


def histogram(values: np.ndarray | Mapping[str, np.ndarray], label: str) -> Figure:
    """A histogram with the mean marked, or those of several sets by their names."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=label, ylabel="count")
    sets = values if isinstance(values, Mapping) else {"": values}
    every = np.concatenate(list(sets.values()))
    bins = np.histogram_bin_edges(every, bins=min(50, max(10, len(every) // 10))).tolist()
    for k, (name, of_set) in enumerate(sets.items()):
        axes.hist(of_set, bins=bins, alpha=1 / len(sets), color=f"C{k}")
        color = f"C{k}" if len(sets) > 1 else "black"
        mean = f"{name} mean {of_set.mean():.4g}".lstrip()
        axes.axvline(of_set.mean(), color=color, linestyle="--", label=mean)
    axes.legend()
    return figure


def _plain(text: str) -> str:
    """Text that matplotlib draws as it is: no formulas between dollar signs, no name left out of a legend."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def png(figure: Figure) -> bytes:
    """A figure as a PNG image."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in names, which are the user's
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _save(path: Path, figure: Figure) -> None:
    write_atomic(path, png(figure))
