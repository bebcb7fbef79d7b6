"""Settings of another library from a JSON file, each checked for its type and range when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from score_diffusion.run.errors import UserError
from score_diffusion.run.json_files import read_json


class Settings:
    """A dictionary of settings that came from elsewhere.

    Args:
        values: The settings.
        defaults: The values of settings that are not there.
        source: What to call the file in an error.
    """

    def __init__(self, values: Mapping[str, object], defaults: Mapping[str, object], source: str) -> None:
        self.values = {**defaults, **values}
        self.source = source

    @classmethod
    def from_json(cls, path: Path, defaults: Mapping[str, object]) -> Settings:
        """The settings of a file.

        Raises:
            UserError: If it cannot be read, or does not hold an object.
        """
        return cls(read_json(path, {}, "copy it again"), defaults, str(path))

    def get(self, key: str) -> object:
        """The value itself; None if it is neither there nor has a default."""
        return self.values.get(key)

    def refuse(self, key: str, required: str) -> UserError:
        """The error for a value that cannot be used."""
        return UserError(f"{self.source}: {key} must be {required}, it is {_shown(self.get(key))}")

    def integer(self, key: str, least: int, most: int) -> int:
        """An integer in a range."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.refuse(key, f"an integer from {least} to {most}")
        return value

    def optional_integer(self, key: str, least: int, most: int) -> int | None:
        """An integer in a range, or None for null."""
        return None if self.get(key) is None else self.integer(key, least, most)

    def number(self, key: str, above: float = -math.inf, below: float = math.inf) -> float:
        """A finite number strictly between two others."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < below:
            raise self.refuse(key, f"a number between {above:g} and {below:g}")
        return float(value)

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def integers(self, key: str, least: int, most: int, longest: int) -> list[int]:
        """A list of integers in a range, not empty."""
        value = self.get(key)
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= longest:
            raise self.refuse(key, f"a list of 1 to {longest} integers")
        if any(isinstance(item, bool) or not isinstance(item, int) for item in value):
            raise self.refuse(key, f"a list of 1 to {longest} integers")
        if not all(least <= item <= most for item in value):
            raise self.refuse(key, f"a list of integers from {least} to {most}")
        return list(value)

    def names(self, key: str, valid: Sequence[str], longest: int) -> list[str]:
        """A list of names out of some, not empty."""
        value = self.get(key)
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= longest:
            raise self.refuse(key, f"a list of 1 to {longest} names")
        if not all(isinstance(item, str) and item in valid for item in value):
            raise self.refuse(key, f"a list of some of {', '.join(valid)}")
        return list(value)

    def choice(self, key: str, valid: Sequence[object]) -> object:
        """One of some values; true and false are no numbers."""
        value = self.get(key)
        if not any(type(value) is type(item) and value == item or _equal(value, item) for item in valid):
            raise self.refuse(key, " or ".join(map(repr, valid)))
        return value


def _equal(value: object, item: object) -> bool:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (value, item))
    return numbers and value == item


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
