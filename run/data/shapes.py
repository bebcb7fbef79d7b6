"""Captioned shapes: one or two coloured shapes on a textured ground, drawn as they are needed.

    "a small red square"
    "a large red circle above a small blue square"

A scene is a function of (seed, set, index): kind, colour and size of one or two shapes, their relation, where
they are, the ground, and the phrasing of the caption. Two shapes of a scene differ in colour. Sizes are
relative to the side of the image, so that a scene looks the same from 16x16 to 64x64 pixels.

`NEW` are combinations of colour and kind that no training or held-out scene has: whether a model draws them
is a question of its own, see `new_captions`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.sources import GIB, Samples, Source, Stream, load_into_memory
from score_diffusion.run.data.vocabulary import fitted_vocabulary
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import generator_for

KINDS = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (215, 35, 35),
    "yellow": (235, 205, 25),
    "green": (35, 165, 50),
    "turquoise": (30, 200, 205),
    "blue": (45, 60, 220),
    "pink": (230, 60, 190),
}
SIZES = {"small": (0.28, 0.32), "large": (0.44, 0.48)}  # sides of the box around a shape, of the image's side
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
RELATIONS = tuple(OPPOSITE)
NEW = (("red", "triangle"), ("green", "square"), ("blue", "circle"), ("yellow", "cross"))
SIDES = (16, 64)  # of an image, least and most
FINE = 4  # subpixels of a pixel in each direction
GROUNDS = ("plain", "gradient", "stripes", "checks", "noise")
HELD_OUT = 1000  # scenes of the test set


T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """One shape by its words."""

    size: str
    colour: str
    kind: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """What an image shows, in words."""

    shapes: tuple[Shape, ...]
    """One, or two of different colours."""
    relation: str = ""
    """How the first of two shapes is to the second: above, below, left of or right of."""

    def captions(self) -> tuple[str, ...]:
        """Its caption in several phrasings."""
        if len(self.shapes) == 1:
            (shape,) = self.shapes
            return str(shape), f"there is {shape}", f"a {shape.kind}, {shape.size} and {shape.colour}"
        first, second = self.shapes
        turned = f"{second} {OPPOSITE[self.relation]} {first}"
        return f"{first} {self.relation} {second}", f"there is {first} {self.relation} {second}", turned


def random_scene(rng: np.random.Generator, counts: Sequence[int] = (1, 2)) -> Scene:
    """A scene of one or two shapes, none of which is a new combination."""
    colours = [list(COLOURS)[k] for k in rng.permutation(len(COLOURS))[: _one_of(counts, rng)]]
    shapes = tuple(
        Shape(
            _one_of(list(SIZES), rng),
            colour,
            _one_of([kind for kind in KINDS if (colour, kind) not in NEW], rng),
        )
        for colour in colours
    )
    return Scene(shapes, _one_of(RELATIONS, rng) if len(shapes) == 2 else "")


def _one_of(values: Sequence[T], rng: np.random.Generator) -> T:
    return values[int(rng.integers(len(values)))]


def new_captions() -> list[str]:
    """The captions of single shapes that no training scene has."""
    return [str(Shape(size, colour, kind)) for size, (colour, kind) in itertools.product(SIZES, NEW)]


def draw_scene(scene: Scene, side: int, rng: np.random.Generator) -> np.ndarray:
    """An image of a scene, uint8 (3, side, side)."""
    sides = [rng.uniform(*SIZES[shape.size]) for shape in scene.shapes]
    image = _ground(side, rng)
    for shape, width, corner in zip(scene.shapes, sides, _corners(sides, scene.relation, rng), strict=True):
        cover = _cover(shape.kind, width, corner, side)[..., None]  # (side, side, 1)
        colour = np.array(COLOURS[shape.colour]) + rng.uniform(-12, 12, 3)
        image = image * (1 - cover) + colour * cover
    return image.round().clip(0, 255).astype(np.uint8).transpose(2, 0, 1)


def _corners(sides: Sequence[float], relation: str, rng: np.random.Generator) -> list[np.ndarray]:
    """The top left corner (y, x) of each shape's box, in units of the image's side."""
    if len(sides) == 1:
        return [rng.uniform(0, 1 - sides[0], 2)]
    first, second = sides
    before, between, _ = rng.dirichlet([1, 1, 1]) * (1 - first - second)  # the free space on the axis
    along = np.array([before, before + first + between])
    if relation in ("below", "right of"):
        along = np.array([before + second + between, before])
    middle = rng.uniform(max(sides) / 2, 1 - max(sides) / 2)
    across = (middle + rng.uniform(-0.12, 0.12, 2) - np.array(sides) / 2).clip(0, 1 - np.array(sides))
    pairs = np.stack([along, across] if relation in ("above", "below") else [across, along], 1)
    return list(pairs)


def _cover(kind: str, width: float, corner: np.ndarray, side: int) -> np.ndarray:
    """The part of each pixel that a shape covers, (side, side)."""
    fine = side * FINE
    (top, left), (bottom, right) = corner * fine, (corner + width) * fine
    mask = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(mask)
    if kind == "circle":
        draw.ellipse((left, top, right, bottom), fill=255)
    elif kind == "square":
        draw.rectangle((left, top, right, bottom), fill=255)
    elif kind == "triangle":
        draw.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=255)
    else:
        third = (right - left) / 3
        draw.rectangle((left + third, top, right - third, bottom), fill=255)
        draw.rectangle((left, top + third, right, bottom - third), fill=255)
    return np.asarray(mask.resize((side, side), Image.Resampling.BOX), float) / 255


def _ground(side: int, rng: np.random.Generator) -> np.ndarray:
    """A grey ground with a texture, (side, side, 3)."""
    y, x = np.mgrid[:side, :side] / side
    kind, angle, count = _one_of(GROUNDS, rng), rng.uniform(0, 2 * np.pi), rng.integers(2, 5)
    turned = x * np.cos(angle) + y * np.sin(angle)
    if kind == "plain":
        pattern = np.zeros((side, side))
    elif kind == "gradient":
        pattern = turned / np.abs(turned).max()
    elif kind == "stripes":
        pattern = np.sin(2 * np.pi * count * turned)
    elif kind == "checks":
        pattern = np.sign(np.sin(2 * np.pi * count * x + angle) * np.sin(2 * np.pi * count * y + angle))
    else:
        pattern = rng.uniform(-1, 1, (side, side))
    return rng.uniform(80, 220) + rng.uniform(8, 24) * pattern[..., None] + rng.uniform(-4, 4, 3)


class ShapeSource(Source):
    """Images of scenes, each drawn when it is read.

    Args:
        seed: The seed of the set.
        part: "train" or "test", sets of their own.
        count: Number of images.
        side: Pixels of a side.
        counts: How many shapes a scene may have.
    """

    def __init__(self, seed: int, part: str, count: int, side: int, counts: Sequence[int] = (1, 2)) -> None:
        self._seed, self._part, self._count, self._counts = seed, part, count, counts
        self.shape = (3, side, side)

    def __len__(self) -> int:
        return self._count

    def _scene(self, i: int) -> tuple[Scene, str, np.random.Generator]:
        """Scene i, its caption, and the generator that its image continues with."""
        rng = np.random.default_rng(generator_for(self._seed, "shapes", self._part, i).initial_seed())
        scene = random_scene(rng, self._counts)
        return scene, _one_of(scene.captions(), rng), rng

    def scene(self, i: int) -> Scene:
        """What image i shows."""
        return self._scene(i)[0]

    def captions(self) -> list[str]:
        """The caption of each image."""
        return [self._scene(i)[1] for i in range(len(self))]

    def read(self, indices: Tensor) -> Tensor:
        images = np.empty((len(indices), *self.shape), np.uint8)
        for image, i in zip(images, indices.tolist(), strict=True):
            scene, _, rng = self._scene(i)
            image[...] = draw_scene(scene, self.shape[1], rng)
        return torch.from_numpy(images)

    def fingerprints(self, indices: Tensor) -> Iterator[bytes]:
        yield from (image.numpy().tobytes() for image in self.read(indices))


def load_shapes(options: DataOptions) -> Dataset:
    """The captioned shapes that the options name, `data.num_images` to train on.

    Raises:
        UserError: If the requested images are not square, or of another size than 16 to 64.
    """
    height, width = options.image_size or (SIDES[0], SIDES[0])
    if height != width or not SIDES[0] <= height <= SIDES[1]:
        raise UserError(
            f"data.image_size of {options.name} must be one number from {SIDES[0]} to {SIDES[1]}, got "
            f"{height}x{width}"
        )
    counts = SHAPE_SETS[options.name]
    sources = {
        part: ShapeSource(options.seed, part, count, height, counts)
        for part, count in (("train", options.num_images), ("test", HELD_OUT))
    }
    captions = {part: source.captions() for part, source in sources.items()}
    vocabulary = fitted_vocabulary(options.tokenizer, captions["train"], options.name)
    streams = {part: Stream.of_all(source, options.workers) for part, source in sources.items()}
    samples: Mapping[str, Samples] = streams
    if sum(stream.nbytes for stream in streams.values()) <= options.memory_gib * GIB:
        samples = {part: load_into_memory(stream) for part, stream in streams.items()}
    return Dataset(
        options.name,
        samples["train"],
        samples["test"],
        Scaling(levels=256),
        {"text": vocabulary.encode(captions["train"])},
        {"text": vocabulary.encode(captions["test"])},
        vocabulary=vocabulary,
    )


SHAPE_SETS = {"shapes": (1, 2), "single_shapes": (1,)}
"""The data sets of shapes, and how many shapes a scene of theirs may have."""
