from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest

from score_diffusion.run.errors import UserError
from score_diffusion.run.key_types import Key, describe, fits, parse

INTERVALS = Sequence[tuple[float, float, int, int]]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("12", int, 12),
        ("1e-3", float, 1e-3),
        ("2", float, 2.0),
        ("true", bool, True),
        ("0.5", str, "0.5"),
        ("1,2,2", tuple[int, ...], (1, 2, 2)),
        ("(4,)", tuple[int, ...], (4,)),
        ("7", Sequence[int], (7,)),
        ("0.5,1", tuple[float, ...], (0.5, 1)),
        ("()", tuple[float, ...], ()),
        ("32", int | tuple[int, int], 32),
        ("32,48", int | tuple[int, int], (32, 48)),
        ("3", int | None, 3),
        ("None", int | None, None),
        ("auto", float | Literal["auto"], "auto"),
        ("0.5", float | Literal["auto"], 0.5),
        ("b", Literal["a", "b"], "b"),
        ("[1, 'x']", object, [1, "x"]),
        ("0.1,0.3,3,4", INTERVALS, ((0.1, 0.3, 3, 4),)),
        ("(0.1,0.3,3,4),(1,2,3,4)", INTERVALS, ((0.1, 0.3, 3, 4), (1, 2, 3, 4))),
        ("1", float | tuple[float, float] | None, 1.0),
        ("-1,1", float | tuple[float, float] | None, (-1, 1)),
    ],
)
def test_a_text_spells_a_value_of_the_type(text: str, kind: object, value: object):
    parsed = parse(kind, text)
    assert parsed == value and type(parsed) is type(value) and fits(kind, parsed)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1.5", int),
        ("x", int),
        ("x", float),
        ("yes!", bool),
        ("1,x", tuple[int, ...]),
        ("1.5", tuple[int, ...]),
        ("1,2,3", int | tuple[int, int]),
        ("x", int | None),
        ("automatic", float | Literal["auto"]),
        ("c", Literal["a", "b"]),
        ("0.1,0.3,3", INTERVALS),
        ("0.1,0.3,3,4.5", INTERVALS),
    ],
)
def test_a_text_of_another_type_is_refused(text: str, kind: object):
    with pytest.raises(UserError, match=r"'section\.key' must be .*, got"):
        Key(0, "", kind=kind).parse("section.key", text)


def test_true_is_no_number_and_an_integer_is_a_float():
    assert fits(float, 1) and not fits(int, True) and not fits(float, False) and not fits(int, 1.0)
    assert fits(tuple[int, ...], [1, 2]) and not fits(tuple[int, int], (1, 2, 3))


@pytest.mark.parametrize(
    ("key", "allowed", "refused"),
    [
        (Key(1, "", least=1), [1, 5], [0, -1]),
        (Key(1.0, "", above=0, below=2), [0.1, 1.9], [0.0, 2.0, float("nan"), float("inf")]),
        (Key((), "", kind=tuple[float, ...], above=0, below=1), [(), (0.5, 0.9)], [(0.5, 1.0), (0.0,)]),
        (Key("auto", "", kind=int | Literal["auto"], least=1), ["auto", 3], [0, "often"]),
    ],
)
def test_bounds_hold_for_every_number(key: Key, allowed: list, refused: list):
    for value in allowed:
        key.check("section.key", value)
    for value in refused:
        with pytest.raises(UserError, match="section.key"):
            key.check("section.key", value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "an integer of at least 1"),
        (float | Literal["auto"], "a number of at least 1, or auto"),
        (Literal["a", "b"], "one of a, b"),
        (tuple[int, ...], "integers of at least 1, separated by commas"),
        (int | tuple[int, int], "an integer of at least 1, or 2 integers of at least 1, separated by commas"),
        (bool, "true or false"),
        (int | None, "an integer of at least 1, or None"),
    ],
)
def test_requirements_in_words(kind: object, words: str):
    assert describe(kind, " of at least 1") == words
