"""Samples in the user's own form: their way to model inputs and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.user_arrays import to_own_units, to_stored
from score_diffusion.run.errors import UserError

LEVELS = Scaling(levels=256)
SHAPES = [((1, 3, 4), (5, 3, 4)), ((3, 3, 4), (5, 3, 4, 3))]


@pytest.mark.parametrize(("shape", "own"), SHAPES)
def test_pixels_come_back_as_they_were(shape, own):
    pixels = np.random.default_rng(0).integers(0, 256, own, dtype=np.uint8)
    stored = to_stored(pixels, shape, LEVELS)
    assert stored.shape == (5, *shape) and stored.dtype == torch.uint8
    channels_first = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    assert np.array_equal(stored.numpy(), channels_first)
    brightness = LEVELS.stored_to_model(stored).numpy()  # as a sample file has them
    assert np.array_equal(to_own_units(brightness, LEVELS), pixels)
    assert torch.equal(to_stored(brightness, shape, LEVELS), stored)
    assert torch.equal(to_stored(torch.from_numpy(pixels[2]), shape, LEVELS), stored[2:3])


def test_numbers_are_standardized_and_come_back():
    scaling = Scaling(None, (10.0, -3.0), (2.0, 0.5), "float64")
    points = np.array([[12.0, -3.5], [10.0, -3.0]])
    assert to_stored(points, (2,), scaling).tolist() == [[1.0, -1.0], [0.0, 0.0]]
    assert np.array_equal(to_own_units(points, scaling), points)


@pytest.mark.parametrize(
    ("array", "shape", "scaling", "sentence"),
    [
        (np.zeros((2, 4, 3), np.uint8), (1, 3, 4), LEVELS, r"whole numbers 0 to 255 of shape \(n, 3, 4\).*"),
        (np.zeros((2, 3, 3, 4)), (1, 3, 4), LEVELS, r"brightness from -1 to 1 of shape \(n, 1, 3, 4\)"),
        (np.zeros((2, 3, 4), bool), (1, 3, 4), LEVELS, "got bool of shape"),
        (np.zeros((0, 3, 4), np.uint8), (1, 3, 4), LEVELS, "got uint8 of shape"),
        (np.full((1, 3, 4), 17), (1, 3, 4), Scaling(levels=17), "between 0 and 16, .* got 17 to 17"),
        (np.full((1, 1, 3, 4), 2.0), (1, 3, 4), LEVELS, "brightness must be between -1 and 1"),
        (np.full((1, 1, 3, 4), np.nan), (1, 3, 4), LEVELS, "brightness must be between -1 and 1"),
        (np.zeros((2, 3)), (2,), Scaling(), r"numbers of shape \(n, 2\).* got float64 of shape \(2, 3\)"),
        (np.array([[0.0, np.inf]]), (2,), Scaling(), "must be finite"),
        ("a name", (2,), Scaling(), "numbers of shape"),
    ],
)
def test_other_arrays_are_refused(array, shape, scaling, sentence):
    with pytest.raises(UserError, match=sentence):
        to_stored(array, shape, scaling)


def test_brightness_from_0_to_1_is_announced(capsys):
    to_stored(np.full((1, 1, 3, 4), 0.5), (1, 3, 4), LEVELS)
    assert "give values from 0 to 1 as 2x - 1, or as whole numbers from 0 to 255" in capsys.readouterr().err
