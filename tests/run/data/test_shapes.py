from __future__ import annotations

import numpy as np
import pytest
import torch

from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.shapes import (
    NEW,
    SIZES,
    Scene,
    Shape,
    ShapeSource,
    draw_scene,
    new_captions,
    random_scene,
)
from score_diffusion.run.errors import UserError

CIRCLE, SQUARE = Shape("large", "red", "circle"), Shape("small", "blue", "square")


def test_a_scene_has_one_meaning_in_several_phrasings():
    captions = Scene((CIRCLE, SQUARE), "above").captions()
    assert captions[0] == "a large red circle above a small blue square"
    assert "a small blue square below a large red circle" in captions
    assert Scene((SQUARE,)).captions()[0] == "a small blue square"


@pytest.mark.parametrize("kind", ["circle", "square", "triangle", "cross"])
@pytest.mark.parametrize("size", SIZES)
def test_shapes_have_their_areas_and_stay_inside(kind: str, size: str):
    """The covered area is that of the drawn figure, of a box whose side lies within the size's bounds."""
    figure = {"circle": np.pi / 4, "square": 1, "triangle": 1 / 2, "cross": 5 / 9}[kind]
    for seed in range(5):
        image = draw_scene(Scene((Shape(size, "red", kind),)), 64, np.random.default_rng(seed)).astype(float)
        reddish = image[0] - image[1] > 90
        side = np.sqrt(reddish.mean() / figure)
        low, high = SIZES[size]
        assert low - 0.025 < side < high + 0.025
        rows, columns = np.flatnonzero(reddish.any(1)), np.flatnonzero(reddish.any(0))
        assert np.ptp(rows) + 1 == pytest.approx(64 * side, abs=3) and len(rows) == np.ptp(rows) + 1
        assert np.ptp(columns) + 1 == pytest.approx(64 * side, abs=3)


@pytest.mark.parametrize(
    ("relation", "axis", "sign"),
    [("above", 0, -1), ("below", 0, 1), ("left of", 1, -1), ("right of", 1, 1)],
)
def test_relations_are_drawn_as_they_are_called(relation: str, axis: int, sign: int):
    for seed in range(10):
        scene = Scene((CIRCLE, SQUARE), relation)
        image = draw_scene(scene, 32, np.random.default_rng(seed)).astype(float)
        red, blue = (np.argwhere(image[a] - image[b] > 80).mean(0) for a, b in ((0, 2), (2, 0)))
        difference = red - blue
        assert sign * difference[axis] > abs(difference[1 - axis])


def test_new_combinations_are_never_drawn():
    rng = np.random.default_rng(0)
    shapes = [shape for _ in range(2000) for shape in random_scene(rng).shapes]
    seen = {(shape.colour, shape.kind) for shape in shapes}
    assert len(seen) == 24 - len(NEW) and not seen & set(NEW)
    assert len(new_captions()) == 2 * len(NEW) and "a small red triangle" in new_captions()


def test_images_are_a_function_of_seed_and_index():
    source = ShapeSource(3, "train", 50, 16)
    every = source.read(torch.arange(50))
    assert (source.read(torch.tensor([7, 2])) == every[[7, 2]]).all()
    assert source.captions() == ShapeSource(3, "train", 50, 32).captions()  # the same scenes, only finer
    for other in (ShapeSource(4, "train", 50, 16), ShapeSource(3, "test", 50, 16)):
        assert (other.read(torch.arange(50)) != every).any()


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_shapes_as_a_data_set(memory_gib: float):
    options = DataOptions(name="shapes", num_images=40, image_size=(24, 24), memory_gib=memory_gib, workers=2)
    data = load_dataset(options)
    source = ShapeSource(0, "train", 40, 24)
    assert (data.train[:] == source.read(torch.arange(40))).all() and data.levels == 256
    decoded = [data.vocabulary.decode(ids) for ids in data.conditions["text"]]
    assert decoded == source.captions()
    single = load_dataset(DataOptions(name="single_shapes", num_images=20))
    assert single.shape == (3, 16, 16) and "above" not in single.vocabulary.words


def test_sizes_that_are_not_drawn():
    for size in ((16, 32), (8, 8), (128, 128)):
        with pytest.raises(UserError, match="must be one number from 16 to 64"):
            load_dataset(DataOptions(name="shapes", image_size=size))
    with pytest.raises(UserError, match="data.channels and data.bits are for your own images, not shapes"):
        load_dataset(DataOptions(name="shapes", channels=1))
