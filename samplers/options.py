"""The options of a sampler or a guidance method, read off its constructor.

Every sampler is made by `(sde, times, *, denoise, <options>)`. What an option is stands in the constructor
and nowhere else: its default and type in the signature, `Names` in the annotation where only certain names
are allowed, and the explanation in the Args section of the docstring, whose first sentence is shown.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from score_diffusion.samplers.grids import Grid

COMMON = ("sde", "times", "denoise")
NUMBERS_AND_FLAGS = (bool, int, float, type(None))


class Names:
    """Metadata of an annotation: the names that an option may have.

    `Annotated[str, Names("bh1", "bh2")]` is one of the two, `Annotated[float | str, Names("auto")]` a number
    or "auto".
    """

    def __init__(self, *names: str) -> None:
        self.names = names


@dataclass(frozen=True)
class Option:
    """An option of a sampler."""

    name: str
    default: Any
    type: Any
    """The type of the values that can be written as text: bool, int, float, None, `Literal` of the allowed
    names, tuples of such types, or a union of them. A constructor may take other objects too.
    """
    explanation: str
    """One sentence."""


def constructor_options(make: Callable[..., object]) -> dict[str, Option]:
    """The options of a sampler's constructor by name.

    Raises:
        TypeError: If the constructor is not of the form (sde, times, *, denoise, <options>), each with a
            default but the SDE, or if the Args section of its docstring does not explain an option.
    """
    _checked_parameters(make)
    return keyword_options(make, besides=COMMON)


def keyword_options(make: Callable[..., object], besides: Sequence[str] = ()) -> dict[str, Option]:
    """The keyword-only arguments of a constructor by name.

    Args:
        make: The constructor.
        besides: Arguments to leave out.

    Raises:
        TypeError: If the Args section of its docstring does not explain one.
    """
    hints = get_type_hints(make.__init__ if inspect.isclass(make) else make, include_extras=True)
    texts = argument_texts(make)
    options = {}
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name in besides:
            continue
        if name not in texts:
            raise TypeError(f"{_title(make)} must explain {name} in the Args section of its docstring")
        first_sentence = re.split(r"(?<=\.)\s", texts[name])[0]
        options[name] = Option(name, parameter.default, _writable_type(hints[name]), first_sentence)
    return options


def default_grid(make: Callable[..., object]) -> Grid:
    """The default of a constructor's `times`."""
    return _checked_parameters(make)["times"].default


def _title(make: Callable[..., object]) -> str:
    return getattr(make, "__name__", repr(make))


def _checked_parameters(make: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    parameters = inspect.signature(make).parameters
    leading, keywords = list(parameters.values())[:2], list(parameters.values())[2:]
    if (
        tuple(parameters)[:3] != COMMON
        or not isinstance(leading[1].default, Grid)
        or any(p.kind is not p.KEYWORD_ONLY or p.default is p.empty for p in keywords)
    ):
        raise TypeError(
            f"{_title(make)} must have the signature (sde, times=Grid(...), *, denoise=..., <options with "
            f"defaults>), it has {inspect.signature(make)}"
        )
    return parameters


def _writable_type(annotation: Any) -> Any:  # noqa: ANN401
    """The part of an annotation that can be written as text, its names as a `Literal`."""
    kept: list[Any] = []
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        kept = [Literal[item.names] for item in metadata if isinstance(item, Names)]
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    numbers = [m for m in members if m in NUMBERS_AND_FLAGS or get_origin(m) in (tuple, Sequence)]
    if not numbers + kept:
        raise TypeError(f"an option must be a flag, a number, a sequence or one of `Names`, got {annotation}")
    return Union[tuple(numbers + kept)]  # noqa: UP007


def argument_texts(function: Callable[..., object]) -> dict[str, str]:
    """The texts of the Args section of a docstring, each on one line, by the name of the argument.

    Those of a class may stand in the docstrings of its base classes too.
    """
    texts: dict[str, str] = {}
    for documented in reversed(inspect.getmro(function)) if inspect.isclass(function) else (function,):
        documentation = inspect.cleandoc(documented.__doc__ or "")
        section = re.search(r"^Args:\n((?: +.*\n?|\n)*)", documentation, re.MULTILINE)
        entries = re.findall(
            r"^ {4}(\w+): ((?:.*\n?)(?: {5,}.*\n?)*)", section[1] if section else "", re.MULTILINE
        )
        texts |= {name: " ".join(text.split()) for name, text in entries}
    return texts
