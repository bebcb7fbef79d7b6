"""Configurations: found by name or path, changed key by key, kept as JSON in the run directory.

A configuration is a locked `ml_collections.ConfigDict` with the sections of configs/base.py. The type of a
key is the type of its default, and no key can be added from the command line.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import json
import math
from collections.abc import Iterable
from pathlib import Path

from ml_collections import ConfigDict

from score_diffusion.run.configs import base
from score_diffusion.run.data.user_function import absolute
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic

CONFIGS = Path(__file__).parent / "configs"
CONFIG_FILE = "config.json"
AUTO = "auto"
AUTO_KEYS = {  # keys that may be "auto" (a rule of NCSNv2), and their types otherwise
    "sde.sigma_max": float,
    "sde.N": int,
    "sampling.ald_step_size": float,
}

SIZE_KEYS = ("data.image_size",)  # keys that may be one number or two, (height, width)

AT_LEAST_ONE = (
    "data.num_points",
    "data.workers",
    "training.steps",
    "training.batch_size",
    "training.accumulate",
    "training.snapshot_every",
    "training.max_skipped",
    "training.log_every",
    "training.sample_every",
    "training.checkpoint_every",
    "training.keep",
    "sampling.num_samples",
    "sampling.batch_size",
    "likelihood.num_images",
    "likelihood.batch_size",
    "likelihood.bound_draws",
)
POSITIVE = (
    "training.learning_rate",
    "training.patience",
    "training.min_snr_gamma",
    "training.p_std",
    "sampling.rtol",
    "sampling.atol",
    "sampling.sde_rtol",
    "sampling.sde_atol",
    "likelihood.rtol",
    "likelihood.atol",
)
NOT_NEGATIVE = (
    "training.warmup_steps",
    "training.ema_decay",
    "training.grad_clip",
    "training.images",
    "training.max_minutes",
    "training.held_out",
    "training.vlb_weight",
    "data.memory_gib",
    "sampling.clip",
    "sampling.nfe",
    "sampling.steps",
    "likelihood.clip",
    "likelihood.bound_terms",
)
BELOW = {  # keys that are 0, or whose values lie between 0 and this
    "training.extra_ema_decays": 1.0,
    "training.ema_sigma_rels": 0.28,  # 1/√12 is the width of the average of all weights alike
    "sampling.ema": 1.0,
    "sampling.ema_sigma_rel": 0.28,
}


def config_names() -> list[str]:
    """The experiments that `--config NAME` knows."""
    names = []
    for stem in sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "base")):
        experiments = getattr(
            importlib.import_module(f"score_diffusion.run.configs.{stem}"), "EXPERIMENTS", {}
        )
        names += [f"{stem}:{experiment}" for experiment in experiments] or [stem]
    return names


def load_config(name: str) -> ConfigDict:
    """The configuration of an experiment.

    Args:
        name: A name in `config_names()`, or the path of a .py file that defines get_config() -> ConfigDict. A
            file of several experiments has them as the keys of EXPERIMENTS, defines get_config(experiment),
            and is named NAME:EXPERIMENT.

    Returns:
        The complete configuration, locked.

    Raises:
        UserError: If there is no such configuration, or the file does not define a complete one.
    """
    stem, _, experiment = name.partition(":")
    if name in config_names():
        module = importlib.import_module(f"score_diffusion.run.configs.{stem}")
    elif stem.endswith(".py"):
        module = _import_file(Path(stem))
    else:
        close = difflib.get_close_matches(name, config_names(), n=1)
        raise UserError(
            f"unknown configuration {name!r}{f', did you mean {close[0]!r}?' if close else ''}; "
            f"choose one of {', '.join(config_names())}, or give the path of a .py file"
        )
    if not hasattr(module, "get_config"):
        raise UserError(f"{name} must define get_config() -> ml_collections.ConfigDict, and does not")
    experiments = getattr(module, "EXPERIMENTS", {"": None})
    if experiment not in experiments:
        raise UserError(
            f"{stem} has no experiment {experiment!r}; choose one of {', '.join(map(repr, experiments))}"
        )
    config = module.get_config(experiment) if experiment else module.get_config()
    _check_complete(config, name)
    config.data.path = absolute(config.data.path) if config.data.path else ""
    return config.lock()


def _import_file(path: Path) -> object:
    if not path.is_file():
        raise UserError(f"configuration file {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"user_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is the user's to see, in one sentence
        raise UserError(f"configuration file {path} does not run: {type(error).__name__}: {error}") from error
    return module


def _check_complete(config: ConfigDict, source: str) -> None:
    """All keys of base.py must be there; of `sde` and `model`, whose keys are arguments, only the name."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"{source} must give an ml_collections.ConfigDict, it gives {type(config).__name__}")
    required = [key for key in flatten(base.get_config()) if not key.startswith("model.")]
    present = flatten(config)
    missing = [key for key in [*required, "sde.name", "model.name"] if key not in present]
    if missing:
        raise UserError(
            f"{source} lacks {', '.join(missing)}; start from score_diffusion.run.configs.base.get_config()"
        )


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """The configuration as {"section.key": value}."""
    flat = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return flat


def config_text(config: ConfigDict) -> str:
    """One line `section.key = value` per key, as the command line spells them."""
    return "\n".join(f"{key} = {value!r}" for key, value in flatten(config).items())


def split_overrides(argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separates `--config.section.key=value` and `--config.section.key value` from the other arguments.

    Returns:
        The other arguments, and the overrides as (dotted key, text).

    Raises:
        UserError: If an override has no value.
    """
    rest, overrides, arguments = [], [], iter(argv)
    for argument in arguments:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals:
            text = next(arguments, None)
            if text is None or text.startswith("--"):
                raise UserError(f"--config.{key} needs a value: --config.{key}=VALUE")
        overrides.append((key, text))
    return rest, overrides


def apply_overrides(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> ConfigDict:
    """The configuration with overrides (dotted key, text) applied and its numbers checked; a new, locked one.

    Raises:
        UserError: If a key does not exist, or a value is not of the default's type or out of range.
    """
    config = config.copy_and_resolve_references()
    for key, text in overrides:
        flat = flatten(config)
        if key not in flat:
            raise UserError(_unknown_key(key, flat))
        value = parse_value(key, text, flat[key])
        if key == "data.path" and value:
            value = absolute(value)  # the run directory is used from other folders too
        with config.unlocked(), config.ignore_type():  # a number may take the place of "auto"
            section, _, name = key.rpartition(".")
            (config[section] if section else config)[name] = value
    check_numbers(config)
    return config.lock()


def _unknown_key(key: str, flat: dict[str, object]) -> str:
    close = difflib.get_close_matches(key, flat, n=1)
    section = key.partition(".")[0] + "."
    valid = [name for name in flat if name.startswith(section)] or list(flat)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"unknown configuration key {key!r}{hint}; choose one of {', '.join(valid)}"


def parse_value(key: str, text: str, default: object) -> object:
    """The value that `text` spells, of the type of the default.

    Raises:
        UserError: If the text does not spell such a value.
    """
    if key in AUTO_KEYS and text == AUTO:
        return AUTO
    try:
        if key in SIZE_KEYS:
            default = (0, 0) if "," in text else 0
        return AUTO_KEYS[key](text) if key in AUTO_KEYS else _parse(text, default)
    except (ValueError, SyntaxError) as error:
        kind = AUTO_KEYS.get(key, type(default))
        wanted = "a tuple such as 1,2,2" if kind is tuple else f"of type {kind.__name__}"
        raise UserError(
            f"configuration key {key!r} must be {wanted} like its default {default!r}, got {text!r}"
        ) from error


def _parse(text: str, default: object) -> object:
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        return ("false", "true").index(text.lower()) == 1
    if isinstance(default, int | float):
        return type(default)(text)
    value = ast.literal_eval(text)
    if default is None:
        return value
    items = value if isinstance(value, tuple | list) else (value,)
    types = {type(item) for item in default} or {float}  # the tuples that are empty by default hold numbers
    if not {type(item) for item in items} <= types:
        raise ValueError("items of another type")
    return tuple(items)


def check_numbers(config: ConfigDict) -> None:
    """Refuses counts below 1, amounts out of range and non-finite numbers before they are computed with."""
    flat = flatten(config)
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"configuration key {key!r} must be a finite number, got {value}")
    for key in AT_LEAST_ONE:
        if flat[key] < 1:
            raise UserError(f"configuration key {key!r} must be at least 1, got {flat[key]}")
    for key in NOT_NEGATIVE:
        if flat[key] < 0:
            raise UserError(f"configuration key {key!r} must not be negative, got {flat[key]}")
    for key in POSITIVE:
        if flat[key] <= 0:
            raise UserError(f"configuration key {key!r} must be above 0, got {flat[key]}")
    if flat["training.ema_decay"] >= 1:
        raise UserError(
            f"configuration key 'training.ema_decay' must be below 1, got {flat['training.ema_decay']}"
        )
    for key, limit in BELOW.items():
        values = flat[key] if isinstance(flat[key], tuple) else (flat[key],)
        if not all(0 < value < limit or flat[key] == 0 for value in values):
            raise UserError(f"configuration key {key!r} must lie above 0 and below {limit}, got {flat[key]}")


def save_config(config: ConfigDict, workdir: Path) -> Path:
    """Writes the resolved configuration to the run directory."""
    path = workdir / CONFIG_FILE
    write_atomic(path, (json.dumps(config.to_dict(), indent=2) + "\n").encode())
    return path


def read_config(workdir: Path) -> ConfigDict:
    """The configuration of a run directory, locked.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{workdir} holds no run ({CONFIG_FILE} is missing): "
            f"train one first with --mode train --workdir {workdir}"
        )
    try:
        config = ConfigDict(_with_tuples(json.loads(path.read_text())))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): restore it from a copy, or train in another --workdir"
        ) from error
    for name, section in base.get_config().items():  # a run from before a key existed gets its default
        if isinstance(section, ConfigDict) and name != "model" and isinstance(config.get(name), ConfigDict):
            config[name] = ConfigDict({**section.to_dict(), **config[name].to_dict()})
    if isinstance(config.get("model"), ConfigDict) and config.model.get("name") == "unet":
        defaults = base.get_config().model.to_dict() | base.unet_defaults()  # without the preset's numbers
        config.model = ConfigDict(defaults | config.model.to_dict())
    _check_complete(config, str(path))
    return config.lock()


def _with_tuples(value: object) -> object:
    """JSON has lists where a configuration has tuples."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def differing_keys(a: ConfigDict, b: ConfigDict) -> list[str]:
    """The keys whose values differ, or that only one of the two has."""
    flat_a, flat_b = flatten(a), flatten(b)
    return [
        key
        for key in {**flat_a, **flat_b}
        if key not in flat_a or key not in flat_b or flat_a[key] != flat_b[key]
    ]
