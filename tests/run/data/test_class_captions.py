"""Captions of classes."""

from __future__ import annotations

from score_diffusion.run.data.class_captions import captions_of


def test_digits_are_spelled_and_other_classes_named():
    digits = captions_of(("0", "7"))
    assert digits[1][0] == "a handwritten seven" and digits[0][1] == "the digit zero"
    assert captions_of(("cat", "7"))[0][0] == "a picture of a cat"
    assert len(set(map(len, digits))) == 1
