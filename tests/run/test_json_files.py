from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import pytest

from score_diffusion.run.errors import UserError
from score_diffusion.run.json_files import DEEPEST, LARGEST_FILE, check_fields, parse_json, read_json
from score_diffusion.run.key_types import Values

FIELDS = {
    "step": Values(kind=int, least=0),
    "loss": Values(kind=float | None),
    "sizes": Values(kind=tuple[int, ...], above=0),
    "mode": Values(kind=Literal["a", "b"]),
}
GOOD = {"step": 3, "loss": 0.5, "sizes": [1, 2], "mode": "a", "more": {"x": None}}


def test_what_is_declared_is_checked_and_the_rest_is_kept(tmp_path: Path):
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    assert read_json(tmp_path / "good.json", FIELDS, "copy it") == GOOD
    with pytest.raises(ValueError, match="unknown 'more'"):
        check_fields(GOOD, FIELDS, others=False)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("step", -1, "step must be an integer of at least 0, got -1"),
        ("step", "3", "step must be an integer of at least 0, got '3'"),
        ("step", True, "got True"), ("step", 3.0, "got 3.0"), ("step", None, "got None"),
        ("step", {}, "got {}"),
        ("step", 2**63, "too many digits"), ("step", 10**400, "too many digits"),
        ("loss", float("nan"), "loss must be a number, or None, got nan"), ("loss", float("inf"), "got inf"),
        ("loss", 10**400, "too many digits"), ("loss", [1.0], "got [1.0]"),
        ("sizes", [1, 0], "sizes must be integers above 0"), ("sizes", [1, [2]], "sizes"),
        ("sizes", 1, "sizes"),
        ("mode", "c", "mode must be one of a, b, got 'c'"), ("mode", ["a"], "mode"),
        ("mode", "c" * 10_000, "..."),
    ],
)  # fmt: skip
def test_other_types_and_values_out_of_range_are_named(key: str, value: object, sentence: str):
    with pytest.raises(ValueError) as caught:
        parse_json(json.dumps(GOOD | {key: value}), FIELDS)
    assert sentence in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "Expecting value"),
        (b"[1]", "it holds a list, not an object"),
        (b"null", "not an object"),
        (b"\xff\xfe{", "it is not UTF-8"),
        (b'{"step": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a":' * 100_000, f"nested more than {DEEPEST} levels"),
        (b'{"a":' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1), f"nested more than {DEEPEST} levels"),
        (b'{"a":' + b"[" * DEEPEST + b"1" + b"]" * DEEPEST + b"}", f"nested more than {DEEPEST} levels"),
        (b'{"a":' * DEEPEST + b"1" + b"}" * DEEPEST, "it lacks step, loss, sizes, mode"),
    ],
    ids=range(9),
)
def test_texts_beyond_the_limits_are_refused(text: bytes, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        parse_json(text, FIELDS)


def test_what_is_no_file_within_the_limits_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo.json")  # reading it would never end
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "link.json")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(LARGEST_FILE + 1)
    for name, sentence in (
        ("fifo", "is no file"), ("folder", "is no file"), ("none", "is missing"), ("link", "cannot be read"),
        ("large", "at most 16,777,216 are read"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{name}.json .*{sentence}.*: copy it"):
            read_json(tmp_path / f"{name}.json", FIELDS, "copy it")
