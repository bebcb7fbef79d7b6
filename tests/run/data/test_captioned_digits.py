from __future__ import annotations

import numpy as np
import pytest
import torch

from score_diffusion.run.data.captioned_digits import (
    DIGIT_WORDS,
    HIGH,
    LOW,
    MIDDLE,
    Thirds,
    digit_caption,
    measure_digits,
)
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.toys import load_digits


def stroke(slant: float, width: float, length: float) -> torch.Tensor:
    """A straight Gaussian stroke that moves `slant` to the right for each pixel up, (1, 1, 65, 65)."""
    y, x = torch.meshgrid(*(torch.arange(65, dtype=torch.float64) - 32 for _ in range(2)), indexing="ij")
    return torch.exp(-0.5 * ((x + slant * y) / width) ** 2 - 0.5 * (y / length) ** 2)[None, None]


@pytest.mark.parametrize("slant", [-0.5, 0.0, 0.3])
def test_moments_of_a_stroke(slant: float):
    """The ink of this stroke is a Gaussian whose covariance is known: var(y) = l², x = -slant y + noise w."""
    width, length = 2.0, 6.0
    measured = measure_digits(7 * stroke(slant, width, length))
    size = np.sqrt(length**2 * (1 + slant**2) + width**2)
    assert measured["slant"].item() == pytest.approx(slant, abs=1e-5)
    assert measured["size"].item() == pytest.approx(size, rel=1e-5)
    assert measured["thickness"].item() == pytest.approx(7 * 2 * np.pi * width * length / size, rel=1e-5)


def test_an_image_without_ink_has_no_size():
    measured = measure_digits(torch.zeros(2, 1, 8, 8))
    assert all(values.isfinite().all() for values in measured.values()) and (measured["thickness"] == 0).all()


def test_thirds_of_the_training_set():
    digits = load_digits()
    for values in Thirds.of(digits.train)(digits.train).values():
        assert torch.bincount(values) / len(values) == pytest.approx([1 / 3] * 3, abs=0.01)


def test_captions_name_what_is_measured():
    """Each attribute is named in two captions of three where it is low or high, and not in the middle."""
    rng = np.random.default_rng(0)
    thirds = {"size": MIDDLE, "thickness": HIGH, "slant": LOW}
    captions = [digit_caption(7, thirds, rng) for _ in range(3000)]
    assert {"a thick seven slanting left", "a seven", "a thick handwritten seven"} < set(captions)
    assert not any(word in caption for caption in captions for word in ("small", "large", "thin", "right"))
    named = [np.mean([word in caption for caption in captions]) for word in ("thick", "slanting left")]
    assert named == pytest.approx([2 / 3] * 2, abs=0.04)
    assert digit_caption(8, {}, rng).startswith(("an eight", "a handwritten eight"))


def test_captions_agree_with_images():
    digits, data = load_digits(), load_dataset(DataOptions(name="captioned_digits"))
    thirds = Thirds.of(digits.train)
    for images, labels, ids in (
        (digits.train, digits.labels, data.conditions["text"]),
        (digits.test, digits.test_labels, data.test_conditions["text"]),
    ):
        found = thirds(images)
        captions = [data.vocabulary.decode(row) for row in ids]
        for k, (caption, label) in enumerate(zip(captions, labels.tolist(), strict=True)):
            assert DIGIT_WORDS[label] in caption.split()
            assert "thick" not in caption or found["thickness"][k] == HIGH
            assert "small" not in caption or found["size"][k] == LOW
            assert "slanting right" not in caption or found["slant"][k] == HIGH
    assert (data.train == digits.train).all() and data.classes == () and "label" not in data.conditions
