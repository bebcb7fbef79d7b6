"""Configurations: found by name or path, changed key by key, checked, kept as JSON in the run directory.

A configuration is a locked `ml_collections.ConfigDict` in sections. keys/ declares its keys; those of `sde`
and `model` follow from the constructors that these sections name.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_diffusion.run.config_files import SYSTEM, find_module, the_users_code
from score_diffusion.run.configs import base
from score_diffusion.run.console import warn
from score_diffusion.run.constructor_keys import (
    CONSTRUCTORS,
    TABLES,
    argument_keys,
    complete,
    declared_keys,
    option_keys,
    refuse_options_of_others,
    refuse_unused,
)
from score_diffusion.run.data.info import read_data_info
from score_diffusion.run.data.user_function import absolute, names_function, refuse_function
from score_diffusion.run.errors import MOST_SUGGESTED, UserError, some_of
from score_diffusion.run.files import expanded, write_json
from score_diffusion.run.json_files import check_fields, read_json
from score_diffusion.run.key_types import AUTO, Key, Values, with_tuples
from score_diffusion.run.keys import KEYS, TRAINING
from score_diffusion.run.setting_files import SUFFIXES, read_settings
from score_diffusion.samplers import DEFAULT, DEFAULT_STOCHASTIC, find_sampler

CONFIG_FILE = "config.json"
SYSTEM_FILE = "system.json"  # of a folder that holds several runs, see systems/
SECTIONS = ("data", "sde", "model", "training", "sampling", "likelihood")  # of every run
NAMES = ("data.name", *CONSTRUCTORS)
OF_TRAINING = [name for name, key in TRAINING.items() if not key.may_change]
NEIGHBOUR = "../"
"""What the directory of another stage of the same system begins with, in the file that defines the system."""
PATHS = ("data.path", "data.autoencoder", "data.encoder", "data.text_encoder")
"""Keys whose paths are made absolute: a run directory is used from other folders too."""
FUNCTIONS = {"data.path": "data", "evaluation.features": "features"}
"""Keys that may name a function of the user's, and what it is there for."""

Overrides = Sequence[tuple[str, object]]
"""Configuration keys by their full names, each with its new value, or with a text that spells it."""


def load_config(name: str) -> ConfigDict:
    """The configuration of an experiment.

    Args:
        name: A name in `config_files.config_names()`, or the path of a .py file that defines get_config() ->
            ConfigDict. A file of several experiments has them as the keys of EXPERIMENTS, defines
            get_config(experiment), and is named NAME:EXPERIMENT. Or the path of a .json or .yaml file: a
            run's config.json, or some keys that differ from the defaults, in sections.

    Returns:
        The complete configuration, locked.

    Raises:
        UserError: If there is no such configuration, or the file does not define a complete one.
    """
    if Path(name).suffix in SUFFIXES:
        return _of_settings(read_settings(expanded(name)), name)
    stem, _, experiment = name.partition(":")
    module = find_module(name)
    if hasattr(module, SYSTEM):
        raise UserError(f"{name} is a system of several runs, and one run is needed here: choose another one")
    if not hasattr(module, "get_config"):
        raise UserError(f"{name} must define get_config() -> ml_collections.ConfigDict, and does not")
    experiments = getattr(module, "EXPERIMENTS", {"": None})
    if experiment not in experiments:
        raise UserError(
            f"{stem} has no experiment {experiment!r}: choose one of {some_of(experiment, experiments)}"
        )
    with the_users_code(name):
        config = module.get_config(experiment) if experiment else module.get_config()
    return completed(config, name)


def completed(config: ConfigDict, source: str) -> ConfigDict:
    """A configuration that Python code made, with the keys that it leaves out at their defaults; locked.

    Raises:
        UserError: If it lacks a section or a name, or a key is unknown or has a wrong value.
    """
    _check_is_whole(config, source)
    complete(config)
    check(config)
    paths = {name: str(flatten(config)[name]) for name in PATHS}
    neighbours = [name for name, path in paths.items() if path.startswith(NEIGHBOUR) and name != "data.path"]
    return with_values(
        config, {name: absolute(path) for name, path in paths.items() if path and name not in neighbours}
    )


def _of_settings(settings: Overrides, source: str) -> ConfigDict:
    """The defaults with the settings of a file, which is data: a function that it names is not called."""
    config = base.get_config()
    complete(config)
    names = [setting for setting in settings if setting[0] in TABLES]
    try:
        config = apply_overrides(config, names)  # the other keys depend on them
        keys = declared_keys(config)
        values = {name: find_key(name, keys).read(name, value) for name, value in settings}
        for name in FUNCTIONS:
            if names_function(str(values.get(name, ""))):
                raise UserError(
                    f"it names the Python function {values[name]}, and a file of settings calls none: leave "
                    f"{name} out there, and set --config.{name}={values[name]} if you trust it"
                )
        values |= {name: absolute(str(values[name])) for name in PATHS if values.get(name)}
        config = with_values(config, values)
        check(config)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return config


def _check_is_whole(config: ConfigDict, source: str) -> None:
    """Refuses a configuration without a section of base.py or the name of an SDE, a network or a data set."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"{source} must give an ml_collections.ConfigDict, it gives {type(config).__name__}")
    present = flatten(config)
    missing = [section for section in SECTIONS if section not in config] or [
        name for name in NAMES if name not in present
    ]
    if missing:
        raise UserError(
            f"{source} lacks {', '.join(missing)}; start from score_diffusion.run.configs.base.get_config()"
        )


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """The configuration as {"section.key": value}."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return flat


def config_text(config: ConfigDict) -> str:
    """One line `section.key = value  # explanation` per key, as the command line spells them."""
    flat = flatten(config)
    lines = {f"{name} = {flat[name]!r}": key.explanation for name, key in declared_keys(config).items()}
    return "\n".join(f"{line:<46}  # {text}" if text else line for line, text in lines.items())


def changed_keys(config: ConfigDict) -> dict[str, tuple[object, object]]:
    """(value, default) of the keys whose values are not their defaults."""
    flat = flatten(config)
    return {
        name: (flat[name], key.default)
        for name, key in declared_keys(config).items()
        if flat[name] != key.default
    }


def changed_text(config: ConfigDict) -> str:
    """One line `section.key = value` for each key whose value is not its default."""
    return "\n".join(f"{name} = {value!r}" for name, (value, _) in changed_keys(config).items())


def apply_overrides(
    config: ConfigDict, overrides: Overrides, mode: str = "train", also: str = ""
) -> ConfigDict:
    """The configuration with overrides applied and checked; a new, locked one.

    Args:
        config: The configuration.
        overrides: Keys with their values, or with texts that spell them, as the command line has them.
        mode: The mode that they are for.
        also: How the names of further keys begin that may be overridden although the mode does not take them;
            "" for none.

    Raises:
        UserError: If a key does not exist, is not used by the mode, or a value is not of its type or out of
            range.
    """
    config = config.copy_and_resolve_references()
    overrides = sorted(overrides, key=lambda override: _place(override[0]))
    for name, given in overrides:
        keys = declared_keys(config)
        key = find_key(name, keys)
        if not (also and name.startswith(also)):
            refuse_unused(name, mode, keys)
        value = key.read(name, given)
        if name in PATHS and value:
            value = absolute(value)
        if name in CONSTRUCTORS:
            _drop_arguments(config, name, str(value))
        if name == "sampling.sampler":
            _choose_sampler(config, str(value))
        elif name == "sampling.stochastic" and value != find_sampler(config.sampling.sampler).stochastic:
            if "sampling.sampler" in dict(overrides):
                raise UserError(
                    f"sampling.stochastic={value} does not fit the sampler {config.sampling.sampler}: leave "
                    "one of the two out; --sampler list shows which samplers are stochastic"
                )
            _choose_sampler(config, DEFAULT_STOCHASTIC if value else DEFAULT)
        else:
            _set(config, name, value)
    check(config)
    if mode != "demo":  # whose page has all samplers, guidance methods and methods to choose from
        refuse_options_of_others([name for name, _ in overrides], config)
    return config.lock()


def with_values(config: ConfigDict, values: Mapping[str, object]) -> ConfigDict:
    """A locked copy of a configuration with some keys, by their full names, set to values that are theirs."""
    config = config.copy_and_resolve_references()
    for name, value in values.items():
        _set(config, name, value)
    return config.lock()


def _drop_arguments(config: ConfigDict, name_key: str, name: str) -> None:
    """Makes way for another SDE or network: the arguments of the present one that it does not have, or that
    have another meaning there, get its defaults.
    """
    section = config[name_key.partition(".")[0]]
    if section.name == name:
        return
    present = {key.partition(".")[2] for key in argument_keys(name_key, section.name)}
    with config.unlocked():
        for argument in present & set(section):
            del section[argument]
        section.name = name
        complete(config)


def _place(name: str) -> int:
    """When a key is set: those first that others depend on."""
    return 0 if name in TABLES else 1 if name == "sampling.stochastic" else 2


def _choose_sampler(config: ConfigDict, name: str) -> None:
    if name != config.sampling.sampler:
        _set(config, "sampling.grid", AUTO)  # the grid was chosen for the sampler before
    _set(config, "sampling.sampler", name)
    _set(config, "sampling.stochastic", find_sampler(name).stochastic)


def _set(config: ConfigDict, name: str, value: object) -> None:
    *sections, last = name.split(".")
    with config.unlocked(), config.ignore_type():  # a number may take the place of "auto"
        section = config
        for part in sections:
            section = section[part]
        section[last] = value


def find_key(name: str, keys: dict[str, Key]) -> Key:
    """keys[name].

    Raises:
        UserError: If there is no such key; the message names the likeliest one.
    """
    if name in keys:
        return keys[name]
    section = name.partition(".")[0] + "."
    of_section = [key for key in keys if key.startswith(section)]
    alike = [key for key in keys if key.rpartition(".")[2] == name.rpartition(".")[2]]
    if not alike:
        start = section if of_section else ""
        rests = [key.removeprefix(start) for key in of_section or keys]
        short = name.removeprefix(start)
        close = difflib.get_close_matches(short, rests, MOST_SUGGESTED)
        alike = [start + rest for rest in close or rests if close or rest.startswith(short)]
    hint = f": did you mean {' or '.join(alike[:MOST_SUGGESTED])}?" if alike else ";"
    advice = f"--help_config {section} lists all of this section" if of_section else "--help_config lists all"
    raise UserError(f"unknown configuration key {name!r}{hint} {advice}")


def check(config: ConfigDict) -> None:
    """Refuses unknown keys, and values of another type or out of range.

    Raises:
        UserError: If there is one.
    """
    keys = declared_keys(config)
    for section in ("sde", "model"):
        name = config[section].name
        given = [f"{section}.{argument}" for argument in config[section]]
        unknown = [key for key in given if key not in keys]
        if unknown:
            accepted = [key.partition(".")[2] for key in argument_keys(f"{section}.name", name)]
            raise UserError(
                f"{section} {name!r} has no {', '.join(unknown)}: choose one of "
                f"{some_of(unknown[0].partition('.')[2], accepted)}"
            )
    for name, value in flatten(config).items():
        find_key(name, keys).check(name, value)


def save_config(config: ConfigDict, workdir: Path) -> Path:
    """Writes the resolved configuration to the run directory."""
    path = workdir / CONFIG_FILE
    write_json(path, config.to_dict())
    return path


def read_config(workdir: Path) -> ConfigDict:
    """The configuration of a run directory, locked.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    path = workdir / CONFIG_FILE
    if (workdir / SYSTEM_FILE).exists():
        raise UserError(
            f"{workdir} holds a system of several runs, and one run is needed here: name one of its folders"
        )
    if not path.is_file():
        raise UserError(
            f"{workdir} holds no run ({CONFIG_FILE} is missing): "
            f"train one first with --mode train --workdir {workdir}"
        )
    advice = "restore it from a copy, or train in another --workdir"
    record = read_json(path, dict.fromkeys(SECTIONS, Values(kind=dict)), advice)
    try:
        _check_sections(record)
        _name_label(record)
        config = ConfigDict(with_tuples(record))
        _check_is_whole(config, "it")
        present = flatten(config)
        older = [name for name in OF_TRAINING if name not in present]
        complete(config)
        check(config)
        # Where to write, and to send, is up to the command line, not to whoever made the run.
        config.sampling.output = config.training.wandb = ""
    except (UserError, ValueError, KeyError, AttributeError) as error:  # the last two of odd names
        raise UserError(f"{path} is damaged ({error}): {advice}") from error
    if older:
        _say_older(path, ", ".join(f"{name}={KEYS[name].default!r}" for name in older))
    return config.lock()


@functools.cache  # once, however often a command reads the file
def _say_older(path: Path, defaults: str) -> None:
    warn(f"{path} is from before these keys, whose defaults are taken: {defaults}")


def read_run(workdir: Path, overrides: Overrides, mode: str, more: Overrides = ()) -> ConfigDict:
    """The configuration of a run directory with overrides, for a mode.

    A run directory may be somebody else's: it is data, and nothing that it names is executed.

    Args:
        workdir: The run directory.
        overrides: What the user sets, (dotted key, text).
        mode: The mode that it is for.
        more: Further overrides.

    Raises:
        UserError: If there is no run, an override cannot be applied, or only the run names a function.
    """
    config = read_config(workdir)
    uses_data = mode not in ("train", "data") and mode in KEYS["data.path"].modes
    other_data = "data." if uses_data and read_data_info(workdir).num_train == 0 else ""
    config = apply_overrides(config, [*overrides, *more], mode, also=other_data)
    for key, use in FUNCTIONS.items():
        if mode in KEYS[key].modes and key not in dict(overrides):
            section, name = key.split(".")
            refuse_function(config[section][name], key, use)
    return config


def _check_sections(record: dict[str, Any]) -> None:
    """Checks what must hold before the keys can be checked: sections are objects, names of constructors text.

    Raises:
        ValueError: If it does not hold.
    """
    for name in (*KEYS, *option_keys()):
        section, prefix = record, ""
        for part in name.split(".")[:-1]:
            if part in section:
                check_fields(section, {part: Values(kind=dict)}, prefix)
                section, prefix = section[part], f"{prefix}{part}."
    for name in CONSTRUCTORS:
        part, _, key = name.partition(".")
        check_fields(record[part], {key: Values(kind=str)}, f"{part}.")


def _name_label(record: dict[str, Any]) -> None:
    """Makes text of the class that older runs kept as a number."""
    label = record["sampling"].get("label")
    if type(label) is int:
        record["sampling"]["label"] = str(label)


def differing_keys(a: ConfigDict, b: ConfigDict) -> list[str]:
    """The keys whose values differ, or that only one of the two has."""
    flat_a, flat_b = flatten(a), flatten(b)
    return [
        key
        for key in {**flat_a, **flat_b}
        if key not in flat_a or key not in flat_b or flat_a[key] != flat_b[key]
    ]
