"""The one reader of the JSON that a run directory holds.

A run directory may be somebody else's, edited or damaged: what a file holds is taken only if it is declared,
of its type and in its range. Size, nesting and encoding are bounded first, so that nothing that follows runs
out of memory or of stack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from score_diffusion.run.errors import UserError
from score_diffusion.run.key_types import Values

LARGEST_FILE = 2**24  # bytes; the files that we write are far smaller
DEEPEST = 20  # levels of nesting; ours have 4

Fields = Mapping[str, Values]
"""The declared fields of an object: the values of each. Others may be there, too."""


def read_json(path: Path, fields: Fields, advice: str) -> dict[str, Any]:
    """The object in a JSON file, its declared fields checked.

    Args:
        path: The file.
        fields: The fields that it must have.
        advice: What to do if it cannot be used, the end of the message.

    Raises:
        UserError: If the file is missing, cannot be read, is no JSON object within the limits, or a field is
            missing, of another type or out of range.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UserError(f"{path} is no file: {advice}")  # and reading it might never end
        data = path.read_bytes() if size <= LARGEST_FILE else None
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {advice}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {advice}") from error
    try:
        if data is None:
            raise ValueError(f"it has {size:,} bytes, and at most {LARGEST_FILE:,} are read")
        return parse_json(data, fields)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {advice}") from error


def parse_json(data: bytes | str, fields: Fields) -> dict[str, Any]:
    """The object that a JSON text holds, its declared fields checked.

    Raises:
        ValueError: If it is no JSON object within the limits, or a field is missing, of another type or
            out of range; the message is a clause.
    """
    if len(data) > LARGEST_FILE:
        raise ValueError(f"it has {len(data):,} characters, and at most {LARGEST_FILE:,} are read")
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    _check_depth(value)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {_kind(value)}, not an object")
    check_fields(value, fields)
    return value


def check_fields(record: Mapping[str, Any], fields: Fields, prefix: str = "", others: bool = True) -> None:
    """Checks the declared fields of an object.

    Args:
        record: The object.
        fields: The fields that it must have.
        prefix: What the names of the fields begin with in the message.
        others: Whether it may have others.

    Raises:
        ValueError: If one is missing, unknown, of another type or out of range.
    """
    unknown = [prefix + name for name in record if name not in fields]
    if unknown and not others:
        raise ValueError(f"it has an unknown {unknown[0]!r}")
    missing = [prefix + name for name in fields if name not in record]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for name, values in fields.items():
        if not values.take(record[name]):
            raise ValueError(values.refusal(prefix + name, record[name]))


def _kind(value: object) -> str:
    """The kind of a JSON value that is no object, in words."""
    if value is None:
        return "null"
    return {list: "a list", str: "text", bool: "true or false"}.get(type(value), "a number")


def _check_depth(value: object) -> None:
    """Refuses a value that is nested too deeply, without recursion."""
    level = [value]
    for _ in range(DEEPEST + 1):
        nested = [item for item in level if isinstance(item, dict | list)]
        if not nested:
            return
        level = [item for part in nested for item in (part.values() if isinstance(part, dict) else part)]
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")
