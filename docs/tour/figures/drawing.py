"""What the pictures of the tour share: figures, rows of digits, what a page computed, where they go."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from score_diffusion.sde_lib import GaussianMixture

PAGES = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).resolve().parents[2] / "images" / "tour"
BLUE, ORANGE, GREEN, GREY = "#274060", "#d1603d", "#3c887e", "0.6"


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(name: str, figure: Figure) -> None:
    """Saves a figure as docs/images/tour/NAME.png, in few colours so that the file is small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    path = FOLDER / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(224).save(path, optimize=True)
    print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


def python_of(page: Path) -> str:
    """The Python of a page, with empty lines in place of everything else, so that errors name its lines."""
    in_python, lines = False, []
    for line in page.read_text(encoding="utf-8").splitlines():
        in_python = (in_python or line == "```python") and line != "```"
        lines.append(line if in_python and line != "```python" else "")
    return "\n".join(lines)


@functools.cache
def names_of(page: str) -> dict[str, Any]:
    """What a page of the tour has computed, by the names on the page."""
    path, names = PAGES / f"{page}.md", dict[str, Any]()
    exec(compile(python_of(path), str(path), "exec"), names)
    return names


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, pixels in [-1, 1], shape (1797, 1, 8, 8), float64, and their labels (1797,)."""
    images, labels = load_digits(return_X_y=True)
    return torch.as_tensor(images).reshape(-1, 1, 8, 8) / 8 - 1, torch.as_tensor(labels)


def digits_law(floor: float = 0.01) -> GaussianMixture:
    """The law of the tour's digits: a Gaussian for each class, with its mean and covariance plus a floor."""
    x, labels = digits()
    flat = [x[labels == k].flatten(1) for k in range(10)]
    means = torch.stack([rows.mean(0) for rows in flat]).reshape(-1, 1, 8, 8)
    return GaussianMixture(means, torch.stack([rows.T.cov() for rows in flat]) + floor * torch.eye(64))


def show_images(axes: Axes, images: Tensor, label: str = "", columns: int | None = None) -> None:
    """Draws images (n, 1, H, W) with values in [-1, 1] as a grid, in one row by default."""
    columns = len(images) if columns is None else columns
    pixels = images[:, 0].detach().float().numpy().repeat(8, axis=1).repeat(8, axis=2)
    tiles = np.pad(pixels, ((0, 0), (2, 2), (2, 2)), constant_values=1.0)
    rows = [np.hstack(list(tiles[k : k + columns])) for k in range(0, len(tiles), columns)]
    axes.imshow(np.vstack(rows), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_ylabel(label, rotation=0, ha="right", va="center")
    axes.spines[:].set_visible(False)


def show_points(axes: Axes, points: Tensor, title: str = "", limit: float = 3.0, color: str = BLUE) -> None:
    """A scatter plot of points (n, 2) in a square."""
    axes.scatter(*points[:, :2].detach().T.numpy(), s=4, alpha=0.5, linewidths=0, color=color)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[], title=title)
