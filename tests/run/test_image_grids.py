"""Pictures of images with names."""

from __future__ import annotations

import numpy as np
import pytest

from score_diffusion.run.image_grids import image_grid

IMAGES = np.linspace(-1, 1, 6 * 3 * 16 * 16).reshape(6, 3, 16, 16)
START = "a small red square above a large blue "


def labels(*names: str) -> np.ndarray:
    """The pixels on the left of the images, three of each name."""
    picture = image_grid(IMAGES, names=[name for name in names for _ in range(3)])
    return np.asarray(picture)[:, : picture.width - 3 * 50 - 2]


def test_rows_show_the_end_of_a_long_name():
    """On a second line, in no wider a margin than that of short lines, and the first line is the same."""
    cross, circle = labels(START + "cross", "one"), labels(START + "circle", "one")
    row, half = slice(2, 50), slice(2, 26)
    width = min(cross.shape[1], circle.shape[1])
    assert cross.shape[1] < 200 and (cross[row, -width:] != circle[row, -width:]).any()
    assert (cross[half, -width:] == circle[half, -width:]).all()


def test_a_name_without_end_is_cut():
    endless, longer = (labels(START + "cross " * n, "one") for n in (30, 60))
    assert np.array_equal(endless, longer) and endless.shape[0] == labels("one", "two").shape[0]


@pytest.mark.parametrize("names", [("one", "two"), (START + "cross", "two")])
def test_names_are_next_to_their_images(names):
    """The images are those of a grid without names, in the same rows."""
    plain = np.asarray(image_grid(IMAGES, columns=3))
    named = np.asarray(image_grid(IMAGES, names=[name for name in names for _ in range(3)]))
    assert np.array_equal(named[:, -plain.shape[1] :], plain)
