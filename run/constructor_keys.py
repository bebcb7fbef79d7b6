"""Configuration keys that follow from constructors: of the chosen SDE, the chosen network, and of all
samplers, guidance methods, tasks and restorers.

An argument's default and type come from the signature, its explanation from "Args:" in the docstring or from
the comment at its line.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal, get_type_hints

from ml_collections import ConfigDict

from score_diffusion.run.build import FOLLOW_FROM_DATA, MODELS, SDES
from score_diffusion.run.errors import UserError, some_of
from score_diffusion.run.key_types import AUTO, Key
from score_diffusion.run.keys import (
    GUIDING,
    KEYS,
    LEVEL_RULES,
    NEW_RUN,
    RESTORE,
    RESTORES,
    SAMPLES,
)
from score_diffusion.run.tasks import RESTORERS, TASKS, method_of
from score_diffusion.samplers import SAMPLERS
from score_diffusion.samplers.guidance import GUIDANCE, guidance_options
from score_diffusion.samplers.options import Option, argument_texts

CONSTRUCTORS: dict[str, Mapping[str, Callable[..., object]]] = {"sde.name": SDES, "model.name": MODELS}
"""Keys that name a class or function, whose arguments are further keys of the section."""

NO_GUIDANCE = "none"
TABLES: dict[str, Mapping[str, object]] = {
    **CONSTRUCTORS,
    "sampling.sampler": SAMPLERS,
    "sampling.guidance": {NO_GUIDANCE: None, **GUIDANCE},
    "restore.task": TASKS,
    "restore.method": {AUTO: None, **RESTORERS},
    "restore.sampler": {AUTO: None, **SAMPLERS},
}
"""Keys that name something, and what they may name."""


def declared_keys(config: ConfigDict) -> dict[str, Key]:
    """All keys that a configuration has with its SDE and its network, by their full names.

    Raises:
        UserError: If there is no such SDE or network.
    """
    return named_keys() | option_keys() | _arguments_of(config)


@functools.cache
def named_keys() -> dict[str, Key]:
    """The keys of keys/, those that name something with the names that there are."""
    return KEYS | {name: replace(KEYS[name], kind=Literal[tuple(table)]) for name, table in TABLES.items()}


def _arguments_of(config: ConfigDict) -> dict[str, Key]:
    return argument_keys("sde.name", config.sde.name) | argument_keys("model.name", config.model.name)


@functools.cache
def argument_keys(name_key: str, name: str) -> dict[str, Key]:
    """The keys that are arguments of what a name stands for, by their full names.

    Args:
        name_key: The key that the name is a value of, one of `CONSTRUCTORS`.
        name: The name.

    Raises:
        UserError: If there is no such name.
    """
    named_keys()[name_key].check(name_key, name)
    keys = arguments(CONSTRUCTORS[name_key][name])
    if name_key == "sde.name" and {"sigma_min", *LEVEL_RULES} <= keys.keys():
        for argument, rule in LEVEL_RULES.items():
            key = keys[argument]
            explanation, kind = f"{key.explanation}; {rule}", key.kind | Literal["auto"]
            keys[argument] = replace(key, explanation=explanation, kind=kind)
    section = name_key.partition(".")[0]
    return {f"{section}.{argument}": key for argument, key in keys.items()}


@functools.cache
def sampler_keys() -> dict[str, Key]:
    """The options of all samplers as keys `sampling.SAMPLER.OPTION`."""
    return _sampling_keys({name: spec.options for name, spec in SAMPLERS.items()})


@functools.cache
def guidance_keys() -> dict[str, Key]:
    """The options of all guidance methods as keys `sampling.GUIDANCE.OPTION`."""
    return _sampling_keys({name: guidance_options(name) for name in GUIDANCE}) | GUIDING


def _sampling_keys(options: Mapping[str, Mapping[str, Option]]) -> dict[str, Key]:
    """Options as keys, by the name of what they belong to and their own."""
    return {
        f"sampling.{owner}.{option.name}": Key(
            option.default,
            _as_clause(option.explanation),
            kind=option.type,
            modes=SAMPLES,
            may_change=True,
        )
        for owner, of_owner in options.items()
        for option in of_owner.values()
    }


@functools.cache
def restore_keys() -> dict[str, Key]:
    """The options of all tasks and methods as keys `restore.NAME.OPTION`."""
    return {
        f"restore.{name}.{option}": replace(key, modes=RESTORES, may_change=True)
        for name, function in (TASKS | RESTORERS).items()
        for option, key in arguments(function).items()
        if f"restore.{option}" not in RESTORE  # as the sampler, which is one key for all methods
    }


def option_keys() -> dict[str, Key]:
    """The options of everything that a name of `TABLES` but a constructor's stands for."""
    return sampler_keys() | guidance_keys() | restore_keys()


def refuse_options_of_others(names: Iterable[str], config: ConfigDict) -> None:
    """Refuses options of samplers, guidance methods, tasks and methods that are not the chosen ones.

    Args:
        names: Full names of the keys that are set.
        config: The configuration with them.

    Raises:
        UserError: If one of the keys is an option of another one; the message says of which.
    """
    of = config.restore
    chosen: dict[str, dict[str, tuple[str, Mapping[str, object]]]] = {
        "sampling": {
            "sampler": (config.sampling.sampler, SAMPLERS),
            "guidance": (config.sampling.guidance, GUIDANCE),
        },
        "restore": {"task": (of.task, TASKS), "method": (method_of(of.task, of.method), RESTORERS)},
    }
    for name in names:
        section, _, rest = name.partition(".")
        owner = rest.rpartition(".")[0]
        for kind, (choice, table) in chosen.get(section, {}).items():
            if owner in table and owner != choice:
                raise UserError(
                    f"--config.{name} is an option of {kind} {owner!r}, and the {kind} is {choice!r}: "
                    f"add --{kind} {owner}, or leave the option out"
                )


def refuse_unused(name: str, mode: str, keys: dict[str, Key]) -> None:
    """Refuses a key that a mode does not use.

    Raises:
        UserError: If the mode does not use it; the message says what the mode takes.
    """
    if mode not in keys[name].modes:
        is_of_training = mode != "data" and {*keys[name].modes} <= {*NEW_RUN, "data"}
        problem = "cannot change after training and " if is_of_training else ""
        used = [key for key in keys if mode in keys[key].modes]
        alike = [key for key in used if key.partition(".")[0] == name.partition(".")[0]]
        sections = ", ".join(dict.fromkeys(key.partition(".")[0] for key in used))
        taken = some_of(name, alike) if alike else f"keys of {sections}" if used else "no keys"
        raise UserError(f"--config.{name} {problem}is not used by --mode {mode}, which takes {taken}")


def arguments(function: Callable[..., object]) -> dict[str, Key]:
    """The arguments of a class or function that have a default; the others follow from data and SDE."""
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    texts = explanations(function)
    return {
        parameter.name: Key(
            parameter.default,
            texts.get(parameter.name, ""),
            kind=hints.get(parameter.name),
            modes=NEW_RUN,
            may_change=False,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is not parameter.empty and parameter.name not in FOLLOW_FROM_DATA
    }


def explanations(function: Callable[..., object]) -> dict[str, str]:
    """One sentence for each argument, from "Args:" of the docstring or the comments of the signature."""
    found = dict(re.findall(r"^ +(\w+): .*?,  # (.+)$", inspect.getsource(function), re.MULTILINE))
    return {name: _as_clause(text) for name, text in (found | argument_texts(function)).items()}


def _as_clause(text: str) -> str:
    """A sentence without its capital and its full stop; a symbol or an abbreviation keeps its capitals."""
    text = text.rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def complete(config: ConfigDict) -> None:
    """Gives every key that the configuration leaves out its default, in place."""
    for name, key in (KEYS | option_keys() | _arguments_of(config)).items():
        *sections, argument = name.split(".")
        section = config
        for part in sections:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        if argument not in section:
            section[argument] = key.default
