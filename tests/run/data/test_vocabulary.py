from __future__ import annotations

import pytest

from score_diffusion.run.data.vocabulary import Bytes, Words, fitted_vocabulary, words_of


def test_texts_become_ids_and_back():
    vocabulary = Words.of_captions(["A red square", "a blue circle, small"], "the data")
    assert vocabulary.words == (",", "a", "blue", "circle", "red", "small", "square")
    assert (vocabulary.size, vocabulary.length) == (9, 5)
    ids = vocabulary.encode(["a RED  circle", "a green circle, small", ""])
    assert ids.tolist() == [[3, 6, 5, 0, 0], [3, 1, 5, 2, 7], [0] * 5]
    assert [vocabulary.decode(row) for row in ids] == ["a red circle", "a [?] circle, small", ""]
    assert words_of("Ｆｉｖｅ  é") == ["five", "é"]  # full-width letters, e with a combining accent


def test_what_is_no_prompt():
    vocabulary = Words.of_captions(["a red square", "a blue circle"], "the data")
    assert vocabulary.problem("A blue square") is None
    assert vocabulary.problem(" \n ") == "has no word"
    assert vocabulary.problem("a a a a") == "has 4 words, and the model reads at most 3"
    expected = "has 'green', which no training caption had; those had a, blue, circle, red, square"
    assert vocabulary.problem("a green square") == expected


def test_long_captions_are_cut_with_a_warning(capsys: pytest.CaptureFixture[str]):
    vocabulary = Words.of_captions(["word " * 100], "the data")
    assert vocabulary.encode(["word " * 100]).shape == (1, 64)
    assert "captions of up to 100 words" in capsys.readouterr().err
    assert Bytes.of_captions(["é" * 300], "the data").length == 512
    assert "captions of up to 600 bytes" in capsys.readouterr().err


def test_texts_become_bytes_and_back():
    """UTF-8 after NFKC with single spaces: what Python's own encoder says, plus 1."""
    captions = ["A red  square\n", "Ｆｉｖｅ é 🦆"]
    vocabulary = fitted_vocabulary("bytes", captions, "the data")
    assert vocabulary == Bytes(len("Five é 🦆".encode())) and vocabulary.size == 257
    ids = vocabulary.encode([*captions, ""])
    for row, text in zip(ids, ["A red square", "Five é 🦆", ""], strict=True):
        expected = [byte + 1 for byte in text.encode()]
        assert row.tolist() == expected + [0] * (vocabulary.length - len(expected))
        assert vocabulary.decode(row) == text
    assert vocabulary.decode(ids[1][:-1]) == "Five é "  # without the half of a character


def test_any_text_is_a_prompt_of_bytes():
    vocabulary = Bytes(12)
    assert vocabulary.problem("\0 жук Ω") is None
    assert vocabulary.problem(" \n ") == "is empty"
    assert vocabulary.problem("жуки и Ω") == "has 14 bytes, and the model reads at most 12"
