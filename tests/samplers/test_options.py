"""The options of a constructor: from its signature, its annotations and the Args section of its docstring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import pytest
from torch import Tensor

from score_diffusion.samplers import Grid, Names, Option
from score_diffusion.samplers.options import argument_texts, constructor_options, default_grid
from score_diffusion.sde_lib import SDE


class Thing:
    """Something made of settings.

    Args:
        sde, times, denoise: As for every `Sampler`.
        flag: Whether to. More about it, with a colon: here.
        number: The number of things,
            on two lines.
        amount: An amount, a function of time too.
        name: The name.
        size: A number or a rule.
        bound: A bound, two of them, or none.
        pairs: Pairs of numbers.

    Raises:
        ValueError: number: never.
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("karras", 7),
        *,
        denoise: bool = True,
        flag: bool = False,
        number: int = 3,
        amount: float | Callable[[Tensor], Tensor] = 0.5,
        name: Annotated[str | Option, Names("a", "b")] = "a",
        size: Annotated[float | str, Names("auto")] = "auto",
        bound: float | tuple[float, float] | None = None,
        pairs: Sequence[tuple[int, float]] = ((1, 2.0),),
    ) -> None:
        pass


def test_options_of_a_class():
    assert list(constructor_options(Thing).values()) == [
        Option("flag", False, bool, "Whether to."),
        Option("number", 3, int, "The number of things, on two lines."),
        Option("amount", 0.5, float, "An amount, a function of time too."),
        Option("name", "a", Literal["a", "b"], "The name."),
        Option("size", "auto", float | Literal["auto"], "A number or a rule."),
        Option("bound", None, float | tuple[float, float] | None, "A bound, two of them, or none."),
        Option("pairs", ((1, 2.0),), Sequence[tuple[int, float]], "Pairs of numbers."),
    ]
    assert default_grid(Thing) == Grid("karras", 7)


def test_the_texts_of_arguments():
    """Each on one line, of a function or a class, with the sections around them left out."""
    texts = argument_texts(Thing)
    assert list(texts) == ["flag", "number", "amount", "name", "size", "bound", "pairs"]
    assert texts["flag"] == "Whether to. More about it, with a colon: here."
    assert texts["number"] == "The number of things, on two lines."
    assert argument_texts(lambda: None) == {}

    class Special(Thing):
        """A thing of a kind.

        Args:
            number: The number of special things.
        """

    assert argument_texts(Special) == texts | {"number": "The number of special things."}


def test_a_function_without_options_has_none():
    def make(sde: SDE, times: Tensor | Grid = Grid("clock", 5), *, denoise: bool = False) -> Thing:
        """Makes a thing."""

    assert constructor_options(make) == {} and default_grid(make) == Grid("clock", 5)


def without_default(sde: SDE, times: Tensor, *, denoise: bool = False) -> None: ...
def positional(sde: SDE, times: Grid = Grid("clock", 5), denoise: bool = False) -> None: ...
def required(sde: SDE, times: Grid = Grid("clock", 5), *, denoise: bool = False, snr: float) -> None: ...
def another_order(sde: SDE, denoise: bool = False, *, times: Grid = Grid("clock", 5)) -> None: ...


@pytest.mark.parametrize("make", [without_default, positional, required, another_order])
def test_a_constructor_of_another_form_is_refused(make):
    with pytest.raises(TypeError, match=f"^{make.__name__} must have the signature .sde, times=Grid"):
        constructor_options(make)


def test_every_option_is_explained_and_can_be_written():
    def unexplained(
        sde: SDE, times: Grid = Grid("clock", 5), *, denoise: bool = False, snr: float = 0.1
    ) -> None:
        """Makes a thing.

        Args:
            sde, times, denoise: As for every `Sampler`.
        """

    def unwritable(
        sde: SDE, times: Grid = Grid("clock", 5), *, denoise: bool = False, law: Thing | None = None
    ) -> None:
        """Makes a thing.

        Args:
            law: A law.
        """

    with pytest.raises(TypeError, match="unexplained must explain snr in the Args section"):
        constructor_options(unexplained)
    unwritable.__annotations__["law"] = Thing
    with pytest.raises(TypeError, match="an option must be a flag, a number, a sequence or one of `Names`"):
        constructor_options(unwritable)
