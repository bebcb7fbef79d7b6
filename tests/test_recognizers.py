from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.recognizers import DigitRecognizer, ShapeRecognizer, scene_agreement
from score_diffusion.run.data.shapes import Scene, Shape, ShapeSource
from score_diffusion.run.data.toys import load_digits

RED, BLUE = Shape("large", "red", "circle"), Shape("small", "blue", "square")


@pytest.mark.slow
@pytest.mark.parametrize("side", [16, 32])
def test_scenes_of_new_images_are_read(side: int):
    """Of images that the recognizer was not fitted to, every property is read in at least 98 % of cases."""
    source = ShapeSource(1, "train", 300, side)
    images = source.read(torch.arange(300)).numpy()
    agreements = [
        scene_agreement(source.scene(i), scene) for i, scene in enumerate(ShapeRecognizer(side, 1000)(images))
    ]
    for key in ("number", "colour", "kind", "size", "relation"):
        assert np.mean([agrees[key] for agrees in agreements if key in agrees]) >= 0.98, key


def test_no_shape_is_read_off_a_grey_image():
    noise = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16), np.uint8).repeat(3, axis=1)
    assert ShapeRecognizer(16, 100)(noise) == [None] * 3


def test_agreement_of_scenes():
    asked = Scene((RED, BLUE), "above")
    assert all(scene_agreement(asked, Scene((BLUE, RED), "below")).values())
    agrees = scene_agreement(asked, Scene((BLUE, RED), "above"))
    assert agrees == dict(number=True, colour=True, kind=True, size=True, relation=False)
    agrees = scene_agreement(asked, Scene((Shape("small", "red", "cross"),)))
    assert agrees == dict(number=False, colour=False, kind=False, size=False, relation=False)
    other = Scene((RED, Shape("small", "blue", "cross")), "above")
    assert scene_agreement(asked, other) == dict(
        number=True, colour=True, kind=False, size=True, relation=True
    )
    assert not any(scene_agreement(asked, None).values())


def test_held_out_digits_are_read():
    digits = load_digits()
    read, thirds = DigitRecognizer()(digits.test)
    assert (read == digits.test_labels).double().mean() > 0.98
    assert set(thirds) == {"size", "thickness", "slant"}
