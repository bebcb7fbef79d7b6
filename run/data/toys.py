"""Data sets that need no file: scikit-learn's handwritten digits, and 2-D points drawn as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.sde_lib import generator_for


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 grey levels, one half of them held out."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    digits = load()
    halves = train_test_split(
        digits.images, digits.target, test_size=0.5, random_state=0, stratify=digits.target
    )
    train, test = (torch.from_numpy(half.astype(np.uint8))[:, None] for half in halves[:2])
    labels, test_labels = (torch.from_numpy(half).long() for half in halves[2:])
    return Dataset(
        "digits",
        train,
        test,
        Scaling(levels=17),
        {"label": labels},
        {"label": test_labels},
        classes=tuple("0123456789"),
    )


def load_toy(options: DataOptions) -> Dataset:
    draw = TOYS[options.name]
    train, test = (
        torch.from_numpy(draw(_numpy_generator(options.seed, options.name, side), options.num_points)).float()
        for side in ("train", "test")
    )
    return Dataset(options.name, train, test, Scaling())


# 2-D toys, centred and scaled to about unit variance by fixed numbers, so that both sets share one law.


def _numpy_generator(seed: int, *keys: str) -> np.random.Generator:
    return np.random.default_rng(generator_for(seed, *keys).initial_seed())


def _swiss_roll(rng: np.random.Generator, n: int) -> np.ndarray:
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(n, noise=0.4, random_state=int(rng.integers(2**32)))
    return (points[:, [0, 2]] - [2.0, 0.0]) / 6.8


def _moons(rng: np.random.Generator, n: int) -> np.ndarray:
    from sklearn.datasets import make_moons

    points, _ = make_moons(n, noise=0.05, random_state=int(rng.integers(2**32)))
    return (points - [0.5, 0.25]) / [0.87, 0.5]


def _checkerboard(rng: np.random.Generator, n: int) -> np.ndarray:
    column, half_row = rng.integers(4, size=n), rng.integers(2, size=n)
    corner = np.stack([column, 2 * half_row + column % 2], 1)
    return (corner + rng.random((n, 2)) - 2) * math.sqrt(12) / 4


def _eight_gaussians(rng: np.random.Generator, n: int) -> np.ndarray:
    angle = rng.integers(8, size=n) * math.pi / 4
    return 1.4 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.14 * rng.standard_normal((n, 2))


TOYS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "swiss_roll": _swiss_roll,
    "moons": _moons,
    "checkerboard": _checkerboard,
    "8gaussians": _eight_gaussians,
}
