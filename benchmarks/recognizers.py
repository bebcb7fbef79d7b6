"""Recognizers read off an image what its caption says: whether samples show what was requested is a number.

They know nothing of the models: they are fitted to images of the data sets, and tests measure how often they
are right on images that they were not fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from score_diffusion.run.data.captioned_digits import Thirds
from score_diffusion.run.data.shapes import COLOURS, OPPOSITE, Scene, Shape, ShapeSource
from score_diffusion.run.data.toys import load_digits

NAMES = tuple(COLOURS)
LEAST_AREA = 0.02  # of a shape, in parts of the image; the smallest that is drawn covers 0.039
TINT = 0.12  # cover that may be a tint of the ground
PATCH = 9  # points of a shape's picture, in each direction


def covers_of_colours(images: np.ndarray) -> np.ndarray:
    """How much of each pixel is covered by each colour, (N, colours, H, W).

    A pixel is a c + (1 - a) g with a colour c on a grey ground g. Without its mean over the channels g
    vanishes; the colour is the one of nearest hue, and a follows by projection.

    Args:
        images: uint8 (N, 3, H, W).
    """
    chroma = images - images.mean(1, keepdims=True)
    palette = np.array(list(COLOURS.values()), float)
    palette -= palette.mean(1, keepdims=True)
    norms = np.linalg.norm(palette, axis=1)
    along = np.einsum("nchw,kc->nkhw", chroma, palette / norms[:, None])
    nearest = along.argmax(1)[:, None] == np.arange(len(palette))[None, :, None, None]
    covers = np.where(nearest, along / norms[None, :, None, None], 0).clip(0, 1)
    return np.where(covers < TINT, 0, covers)


class ShapeRecognizer:
    """Reads the scenes of images of captioned shapes.

    Colours and relations follow from the covers of the colours, kinds and sizes from a support vector machine
    on the picture of each shape, fitted to images that are drawn for it.

    Args:
        side: Pixels of a side of the images.
        count: Images that it is fitted to.
    """

    def __init__(self, side: int, count: int = 2000) -> None:
        from sklearn.svm import SVC

        drawn = ShapeSource(0, "recognizer", count, side)
        covers = covers_of_colours(drawn.read(torch.arange(count)).numpy())
        features, words = [], []
        for i, cover in enumerate(covers):
            for shape in drawn.scene(i).shapes:
                features.append(_features(cover[NAMES.index(shape.colour)]))
                words.append(f"{shape.size} {shape.kind}")
        self._classifier = SVC(C=10.0).fit(features, words)

    def __call__(self, images: np.ndarray) -> list[Scene | None]:
        """What images show; None for those without a shape.

        Args:
            images: uint8 (N, 3, side, side).
        """
        return [self._scene(cover) for cover in covers_of_colours(images)]

    def _scene(self, cover: np.ndarray) -> Scene | None:
        areas = cover.mean((1, 2))
        colours = [k for k in np.argsort(-areas)[:2] if areas[k] >= LEAST_AREA]
        if not colours:
            return None
        words = self._classifier.predict([_features(cover[k]) for k in colours])
        shapes = []
        for k, word in zip(colours, words, strict=True):
            size, kind = str(word).split()
            shapes.append(Shape(size, NAMES[k], kind))
        if len(shapes) == 1:
            return Scene(tuple(shapes))
        (y, x), (other_y, other_x) = (_centre(cover[k]) for k in colours)
        vertical, horizontal = y - other_y, x - other_x
        if abs(vertical) > abs(horizontal):
            return Scene(tuple(shapes), "above" if vertical < 0 else "below")
        return Scene(tuple(shapes), "left of" if horizontal < 0 else "right of")


def _centre(cover: np.ndarray) -> np.ndarray:
    """The centre (y, x) of a shape, in pixels."""
    return np.array([(cover * axis).sum() for axis in np.mgrid[: len(cover), : cover.shape[1]]]) / cover.sum()


def _features(cover: np.ndarray) -> np.ndarray:
    """The picture of a shape at a size of its own around its centre, and its area."""
    mass = max(float(cover.sum()), 1e-6)
    reach = np.linspace(-0.8, 0.8, PATCH) * np.sqrt(mass)
    points = np.stack(np.meshgrid(reach, reach, indexing="ij")) + _centre(cover + 1e-12)[:, None, None]
    patch = map_coordinates(cover, points, order=1)
    return np.append(patch.ravel(), 20 * np.sqrt(mass) / len(cover))


def scene_agreement(asked: Scene, read: Scene | None) -> dict[str, bool]:
    """Which properties of a scene are as they were requested: number, colour, kind, size and relation.

    Kinds and sizes are those of the shapes of the right colour; a relation is right if both colours are there
    and lie as they should.
    """
    found = {shape.colour: shape for shape in (read.shapes if read else ())}
    pairs = [(shape, found.get(shape.colour)) for shape in asked.shapes]
    agrees = {
        "number": len(found) == len(pairs),
        "colour": all(other is not None for _, other in pairs),
        "kind": all(other is not None and other.kind == shape.kind for shape, other in pairs),
        "size": all(other is not None and other.size == shape.size for shape, other in pairs),
    }
    if asked.relation:
        turned = read is not None and read.shapes[0].colour != asked.shapes[0].colour
        relation = OPPOSITE[asked.relation] if turned else asked.relation
        agrees["relation"] = read is not None and agrees["colour"] and read.relation == relation
    return agrees


class DigitRecognizer:
    """Reads the digit and its attributes off images like those of `digits`.

    The digit is what a support vector machine says, fitted to the training half; the attributes are measured.
    """

    def __init__(self) -> None:
        from sklearn.svm import SVC

        digits = load_digits()
        images = digits.train[:]
        assert digits.labels is not None  # digits have labels
        self.thirds = Thirds.of(images)
        self._classifier = SVC(C=10.0).fit(images.flatten(1).numpy(), digits.labels.numpy())

    def __call__(self, images: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The digits, int64 (N,), and the third of each attribute.

        Args:
            images: Ink from 0 to 16, shape (N, 1, 8, 8).
        """
        digits = self._classifier.predict(images.flatten(1).numpy())
        return torch.from_numpy(digits), self.thirds(images)
