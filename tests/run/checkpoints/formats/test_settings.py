"""Settings from elsewhere: each of its type and range, or one sentence."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from score_diffusion.run.checkpoints.formats.settings import Settings
from score_diffusion.run.errors import UserError


def settings(**values: object) -> Settings:
    return Settings(values, {"default": 7}, "file")


def test_values_of_the_type_and_range_pass():
    found = settings(a=3, b=0.5, c=True, d=[1, 2], e="x", f=None, g=["x", "y"])
    assert found.integer("a", 1, 3) == found.integer("default", 7, 7) - 4 == 3
    assert (found.number("a"), found.number("b", 0, 1), found.boolean("c")) == (3.0, 0.5, True)
    assert found.integers("d", 1, 2, longest=2) == [1, 2] and found.names("g", "xyz", 3) == ["x", "y"]
    assert found.choice("e", ("x", "y")) == "x" and found.choice("a", (3.0, 4)) == 3
    assert found.optional_integer("f", 0, 1) is None and found.choice("c", (True,)) is True


@pytest.mark.parametrize(
    ("value", "ask"),
    [
        *((value, "integer") for value in (True, 0, 4, 2.0, "2", None, [2], 10**400)),
        *((value, "number") for value in (True, 0, 1, math.nan, math.inf, "0.5", None, [0.5])),
        *((value, "boolean") for value in (1, 0, "true", None)),
        *((value, "integers") for value in ([], [1, 1, 1], [0], [1.0], [True], "12", 1, None, {1: 1})),
        *((value, "names") for value in ([], ["z"], [1], "x", None, ["x", "x", "x"])),
        *((value, "choice") for value in ("z", None, True, ["x"], {})),
    ],
)
def test_other_values_are_named(value: object, ask: str):
    asked = {
        "integer": lambda found: found.integer("key", 1, 3),
        "number": lambda found: found.number("key", above=0, below=1),
        "boolean": lambda found: found.boolean("key"),
        "integers": lambda found: found.integers("key", 1, 3, longest=2),
        "names": lambda found: found.names("key", "xy", longest=2),
        "choice": lambda found: found.choice("key", ("x", 1)),
    }
    with pytest.raises(UserError, match="^file: key must be .*, it is "):
        asked[ask](settings(key=value))


def test_long_values_are_cut_in_the_sentence():
    with pytest.raises(UserError) as error:
        settings(key=[0] * 10**4).integer("key", 0, 1)
    assert len(str(error.value)) < 200


def test_files(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert Settings.from_json(path, {"b": 2}).values == {"a": 1, "b": 2}
    for content in ("[1]", "3", "null", "{", "", "[" * 10**5, b"\xff\xfe"):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match="config.json is damaged"):
            Settings.from_json(path, {})
    with pytest.raises(UserError, match="is missing"):
        Settings.from_json(tmp_path / "none.json", {})
