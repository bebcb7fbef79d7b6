from __future__ import annotations

import pytest

from score_diffusion.run.data.vocabulary import MOST_TOKENS, Vocabulary, words_of


def test_texts_become_ids_and_back():
    vocabulary = Vocabulary.of_captions(["A red square", "a blue circle, small"], "the data")
    assert vocabulary.words == (",", "a", "blue", "circle", "red", "small", "square")
    assert (vocabulary.size, vocabulary.length) == (9, 5)
    ids = vocabulary.encode(["a RED  circle", "a green circle, small", ""])
    assert ids.tolist() == [[3, 6, 5, 0, 0], [3, 1, 5, 2, 7], [0] * 5]
    assert [vocabulary.decode(row) for row in ids] == ["a red circle", "a [?] circle, small", ""]
    assert words_of("Ｆｉｖｅ  é") == ["five", "é"]  # full-width letters, e with a combining accent


def test_what_is_no_prompt():
    vocabulary = Vocabulary.of_captions(["a red square", "a blue circle"], "the data")
    assert vocabulary.problem("A blue square") is None
    assert vocabulary.problem(" \n ") == "has no word"
    assert vocabulary.problem("a a a a") == "has 4 words, and the model reads at most 3"
    expected = "has 'green', which no training caption had; those had a, blue, circle, red, square"
    assert vocabulary.problem("a green square") == expected


def test_long_captions_are_cut_with_a_warning(capsys: pytest.CaptureFixture[str]):
    vocabulary = Vocabulary.of_captions(["word " * 100], "the data")
    assert vocabulary.encode(["word " * 100]).shape == (1, MOST_TOKENS)
    assert "captions of up to 100 words" in capsys.readouterr().err
