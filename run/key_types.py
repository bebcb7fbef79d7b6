"""What a configuration key is: its default, its explanation, the values it takes and where it may be set.

The values are written as a Python type: `int`, `tuple[int, ...]`, `Literal["cosine", "constant"]`, or a union
of such types, `float | Literal["auto"]`. `least`, `above` and `below` bound every number among them; an
integer is below 2^63 in any case, as in NumPy and torch. The fields of JSON files are declared likewise.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import math
import types
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Union, get_args, get_origin

from score_diffusion.run.errors import MOST_SUGGESTED, UserError, some_of

AUTO = "auto"

Kind = Any
"""A type, or a union of types."""
Value = Any


LARGEST_INTEGER = 2**63 - 1
LONGEST_SHOWN = 100  # characters of a wrong value that a message repeats


@dataclass(frozen=True, kw_only=True)
class Values:
    """Which values something takes."""

    kind: Kind = None
    """Their type."""
    least: float | None = None
    above: float | None = None
    below: float | None = None

    @property
    def type(self) -> Kind:
        return self.kind

    @property
    def requirement(self) -> str:
        """What its values must be, in words: "an integer of at least 1"."""
        bounds = [
            words
            for bound, words in (
                (self.least, f"of at least {self.least}"),
                (self.above, f"above {self.above}"),
                (self.below, f"below {self.below}"),
            )
            if bound is not None
        ]
        return describe(self.type, " ".join(["", " and ".join(bounds)]) if bounds else "")

    @property
    def names(self) -> list[str]:
        """The names among its values."""
        members = (item for kind in _members(self.type) for item in (kind, *get_args(kind)))
        return [str(name) for kind in members if get_origin(kind) is Literal for name in get_args(kind)]

    def take(self, value: Value) -> bool:
        """Whether a value is of the type, and no number in it out of range."""
        return fits(self.type, value) and all(map(self._in_range, _numbers(value)))

    def _in_range(self, number: float) -> bool:
        if isinstance(number, int):
            finite = -LARGEST_INTEGER <= number <= LARGEST_INTEGER
        else:
            finite = math.isfinite(number)
        return (
            finite
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def refusal(self, name: str, value: Value) -> str:
        """What is wrong with a value that is not taken, as a clause."""
        requirement, hint = self.requirement, ""
        if any(isinstance(number, int) and abs(number) > LARGEST_INTEGER for number in _numbers(value)):
            hint = ", which has too many digits"
        elif len(self.names) > MOST_SUGGESTED:
            requirement = requirement.replace(", ".join(self.names), some_of(str(value), self.names))
        elif close := difflib.get_close_matches(str(value), self.names, n=1):
            hint = f", did you mean {close[0]!r}?"
        return f"{name} must be {requirement}, got {_shown(value)}{hint}"


@dataclass(frozen=True)
class Key(Values):
    """The declaration of one key; without a kind, its values are of the type of the default."""

    default: Value
    explanation: str
    _: KW_ONLY
    modes: tuple[str, ...] = ()
    """Which modes take it; empty for those of its section."""
    may_change: bool | None = None
    """Whether it may change when training is resumed; None for what its section says."""

    @property
    def type(self) -> Kind:
        return type(self.default) if self.kind is None else self.kind

    def parse(self, name: str, text: str) -> Value:
        """The value that a text of the command line spells.

        Raises:
            UserError: If the text spells no value of this key.
        """
        try:
            value = parse(self.type, text)
        except ValueError as error:
            raise self._refused(name, text) from error
        self.check(name, value)
        return value

    def read(self, name: str, given: Value) -> Value:
        """A value from Python or a file, or that of the text that spells it; a list stands for a tuple.

        Raises:
            UserError: If it is no value of this key.
        """
        if isinstance(given, str):
            return self.parse(name, given)
        value = with_tuples(given)
        self.check(name, value)
        return float(value) if self.type is float else value

    def check(self, name: str, value: Value) -> None:
        """Refuses a value that is not this key's.

        Raises:
            UserError: If the type is another, or a number is out of range.
        """
        if not self.take(value):
            raise self._refused(name, value)

    def _refused(self, name: str, value: Value) -> UserError:
        advice = f"; --help_config {name} lists all" if len(self.names) > MOST_SUGGESTED else ""
        return UserError(f"configuration key {self.refusal(repr(name), value)}{advice}")


def with_tuples(value: Value) -> Value:
    """A value with tuples for its lists, at any depth: JSON and users write lists."""
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, tuple | list) else value


def _shown(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _numbers(value: Value) -> list[float]:
    """The numbers in a value, at any depth."""
    if isinstance(value, tuple | list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _members(kind: Kind) -> list[Kind]:
    """The types of a union, those whose spelling is fixed ("auto", None) last; of another type itself."""
    members = list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]
    return sorted(members, key=lambda member: get_origin(member) is Literal or member is type(None))


def _item_types(kind: Kind, count: int) -> tuple[Kind, ...] | None:
    """The types of a sequence of so many items; None if the type is no sequence."""
    if get_origin(kind) not in (tuple, list, Sequence):
        return None
    first, *rest = get_args(kind)
    return (first,) * count if rest in ([], [...]) else (first, *rest)


def parse(kind: Kind, text: str) -> Value:
    """The value of a type that a text spells.

    Raises:
        ValueError: If it spells none.
    """
    *others, fixed = _members(kind)
    for member in (fixed, *others):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return _parse_one(member, text)
    raise ValueError(f"{text!r} is not {describe(kind)}")


def _parse_one(kind: Kind, text: str) -> Value:
    if get_origin(kind) is Literal:
        return get_args(kind)[get_args(kind).index(text)]
    if kind is str:
        return text
    if kind is bool:
        return ("false", "true").index(text.lower()) == 1
    if kind is int:
        return int(text)
    if kind is float:
        return float(text)
    if kind is type(None):
        return (None,)[("None",).index(text)]
    if _item_types(kind, 1) == (str,):
        return tuple(word.strip() for word in text.split(",") if word.strip())
    if _item_types(kind, 0) is not None and get_origin(get_args(kind)[0]) is Literal:
        names = tuple(name.strip() for name in text.split(",") if name)
        if fits(kind, names):
            return names
        raise ValueError("other names")
    value = ast.literal_eval(text)
    if _item_types(kind, 0) is None:
        return value
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    for candidate in (items, (items,)):  # a sequence of sequences may be written as its only item
        if fits(kind, candidate):
            return candidate
    raise ValueError("items of another type")


def fits(kind: Kind, value: Value) -> bool:
    """Whether a value is of a type; an integer is a float as well, and true or false is no number."""
    return any(_fits_one(member, value) for member in _members(kind))


def _fits_one(kind: Kind, value: Value) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if _item_types(kind, 0) is not None:
        if not isinstance(value, tuple | list):
            return False
        types_ = _item_types(kind, len(value)) or ()
        return len(types_) == len(value) and all(map(fits, types_, value))
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


NAMES = {  # of a value and of several
    bool: ("true or false", "flags"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "words"),
    dict: ("an object", "objects"),
    type(None): ("None", ""),
}


def describe(kind: Kind, bounds: str = "") -> str:
    """A type in words, with the bounds of its numbers (" above 0"): "a number above 0, or auto"."""
    return ", or ".join(_describe_one(member, bounds) for member in _members(kind))


def _describe_one(kind: Kind, bounds: str) -> str:
    if get_origin(kind) is Literal:
        names = [str(name) for name in get_args(kind)]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if _item_types(kind, 0) is not None:
        item, *rest = get_args(kind)
        if get_origin(item) is Literal:
            return f"some of {', '.join(map(str, get_args(item)))}, separated by commas"
        count = f"{1 + len(rest)} " if rest not in ([], [...]) else ""
        several = NAMES[item][1] if item in NAMES else f"groups of {describe(item, bounds)}"
        return f"{count}{several}{bounds if item in NAMES else ''}, separated by commas"
    words = NAMES.get(kind, ("a Python literal", ""))[0]
    return words + (bounds if kind in (int, float) else "")
