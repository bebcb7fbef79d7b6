"""Handwritten digits with captions: the digit as a word, and what is measured of how it is written.

    "a thick seven slanting right"          "a small thin handwritten two"

Three attributes are measured on the moments of the ink, the grey levels I(y, x) as the density of a mass:

    size        √(m_yy + m_xx), the radius of gyration, with m the covariance of the ink's position
    thickness   mass/size: the mass is the length of the stroke times its width, the length grows as the size
    slant       -m_xy/m_yy: how far the ink moves to the right for each pixel up, 0 for an upright digit

Each is low, middle or high, in thirds of the training set. A caption names the digit, and each attribute that
is low or high two times in three; an attribute that is left out says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.data.vocabulary import fitted_vocabulary
from score_diffusion.sde_lib import generator_for

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTRIBUTES = {  # words for the lowest and the highest third
    "size": ("small", "large"),
    "thickness": ("thin", "thick"),
    "slant": ("slanting left", "slanting right"),
}
NAMED = 2 / 3  # probability that a caption names an attribute that is low or high
LOW, MIDDLE, HIGH = 0, 1, 2


def measure_digits(images: Tensor) -> dict[str, Tensor]:
    """Size, thickness and slant of digits, float64 (N,) each.

    Args:
        images: Ink as grey levels from 0 for none, or any multiple of it, shape (N, 1, H, W).
    """
    ink = images[:, 0].double().clamp_min(0)
    mass = ink.sum((1, 2))
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in ink.shape[1:]), indexing="ij")

    def mean(values: Tensor) -> Tensor:
        return (ink * values).sum((1, 2)) / mass.clamp_min(1e-12)

    dy, dx = y - mean(y)[:, None, None], x - mean(x)[:, None, None]
    m_yy, m_xx, m_xy = mean(dy * dy), mean(dx * dx), mean(dy * dx)
    size = (m_yy + m_xx).sqrt().clamp_min(1e-12)
    return {"size": size, "thickness": mass / size, "slant": -m_xy / m_yy.clamp_min(1e-12)}


@dataclass(frozen=True)
class Thirds:
    """Where the middle third of each attribute begins and ends."""

    bounds: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, images: Tensor) -> Thirds:
        """Those of a training set."""
        thirds = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
        measured = measure_digits(images).items()
        return cls({name: tuple(values.quantile(thirds).tolist()) for name, values in measured})

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The third that each image is in, 0, 1 or 2, int64 (N,), by attribute."""
        return {
            name: torch.bucketize(values, torch.tensor(self.bounds[name], dtype=torch.float64))
            for name, values in measure_digits(images).items()
        }


def digit_caption(digit: int, thirds: Mapping[str, int], rng: np.random.Generator) -> str:
    """A caption of a digit, in one of several phrasings.

    Args:
        digit: 0 to 9.
        thirds: LOW, MIDDLE or HIGH by attribute; attributes may be missing.
        rng: Chooses the phrasing, and which attributes are named.
    """
    words = {
        name: ATTRIBUTES[name][third == HIGH]
        for name, third in thirds.items()
        if third != MIDDLE and rng.random() < NAMED
    }
    slant = words.pop("slant", "")
    handwritten = ["handwritten"] if rng.random() < 1 / 3 else []
    head = [*words.values(), *handwritten, DIGIT_WORDS[digit]]
    return " ".join([article(head[0]), *head, *([slant] if slant else [])])


def article(word: str) -> str:
    """The article of a word: an eight, a seven."""
    return "an" if word.startswith("eight") else "a"


def caption_digits(images: Tensor, labels: Tensor, thirds: Thirds, part: str) -> list[str]:
    """The captions of digits; that of image k of a part is always phrased in the same way.

    Args:
        images: Ink as grey levels, (N, 1, H, W).
        labels: The digits, int64 (N,).
        thirds: Those of the training set.
        part: The name of the part, "train" or "test".
    """
    found = {name: values.tolist() for name, values in thirds(images).items()}
    captions = []
    for k, digit in enumerate(labels.tolist()):
        rng = np.random.default_rng(generator_for(0, "digit captions", part, k).initial_seed())
        captions.append(digit_caption(digit, {name: values[k] for name, values in found.items()}, rng))
    return captions


def load_captioned_digits(tokenizer: str = "words") -> Dataset:
    """The data set `digits` with captions instead of labels.

    Args:
        tokenizer: How captions are read, a name in `VOCABULARIES`.
    """
    digits = load_digits()
    labels = {"train": digits.labels, "test": digits.test_labels}
    parts: dict[str, Sequence[str]] = {}
    thirds = Thirds.of(digits.train[:])
    for part, images in (("train", digits.train[:]), ("test", digits.test[:])):
        of_part = labels[part]
        assert of_part is not None  # digits have labels
        parts[part] = caption_digits(images, of_part, thirds, part)
    vocabulary = fitted_vocabulary(tokenizer, parts["train"], "captioned_digits")
    return replace(
        digits,
        name="captioned_digits",
        conditions={"text": vocabulary.encode(parts["train"])},
        test_conditions={"text": vocabulary.encode(parts["test"])},
        classes=(),
        vocabulary=vocabulary,
    )
