"""Captions of classes, for networks of images and text."""

from __future__ import annotations

from collections.abc import Sequence

from score_diffusion.run.data.captioned_digits import DIGIT_WORDS

PHRASINGS = ("a handwritten {}", "the digit {}", "a picture of a {}", "{}")
OTHER_PHRASINGS = ("a picture of a {}", "an image of a {}", "a {}", "{}")


def captions_of(classes: Sequence[str]) -> list[list[str]]:
    """The phrasings of each class; classes named 0 to 9 are digits, and are spelled."""
    digits = set(classes) <= set(map(str, range(10)))
    names = [DIGIT_WORDS[int(name)] for name in classes] if digits else list(classes)
    return [
        [phrasing.format(name) for phrasing in (PHRASINGS if digits else OTHER_PHRASINGS)] for name in names
    ]
