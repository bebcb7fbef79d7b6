"""The flags of the command line, and the configuration keys among them.

Nothing here imports torch, so that `--help` and mistyped flags are answered at once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from score_diffusion.run.errors import UserError, some_of
from score_diffusion.run.files import default_workdir, expanded
from score_diffusion.run.keys import MODES

DEVICES = ("auto", "cpu", "cuda")
SHORT_FLAGS = {
    **{flag: f"sampling.{flag}" for flag in ("sampler", "nfe", "grid", "label", "guidance")},
    "classifier": "sampling.classifier.run",
    "prompt": "sampling.prompt",
    "prompts": "sampling.prompts",
    "variations": "sampling.unclip.images",
    **{flag: f"restore.{flag}" for flag in ("task", "input", "noise", "method")},
    "mask": "restore.inpaint.mask",
}
"""Flags that are short for a key, which they stand for in every mode but those of `OTHER_KEYS`."""
OTHER_KEYS = {
    "restore": {flag: f"restore.{flag}" for flag in ("sampler", "nfe")},
    "interpolate": {"input": "interpolate.input"},
}
"""The keys that flags stand for in modes where they are others."""

Overrides = list[tuple[str, str]]
"""Configuration keys by their full names, each with the text of its new value."""


@dataclass(frozen=True)
class CommandLine:
    """What a command line asks for."""

    flags: flags.FlagValues
    overrides: Overrides
    path: Path | None
    """The argument without a name, which only `--mode convert` takes."""
    runs: tuple[Path, ...] = ()
    """The arguments without names of the modes `compare` and `demo`."""

    @property
    def workdir(self) -> Path:
        """The run directory."""
        if self.flags.workdir:
            return expanded(self.flags.workdir)
        if self.flags.mode == "compare":
            return Path("runs/comparison")
        return default_workdir(self.config)

    @property
    def config(self) -> str:
        """The name of the experiment: by default "auto" for data of the user's own, else "vpsde"."""
        own_data = self.flags.mode in ("train", "data") and "data.path" in dict(self.overrides)
        return self.flags.config or ("auto" if own_data else "vpsde")


class ModeParser(flags.EnumParser):
    """Reads a mode, and suggests others for one that there is not."""

    def parse(self, argument: str) -> str:
        if argument not in self.enum_values:
            raise ValueError(f"choose one of {some_of(argument, self.enum_values)}; --help lists all")
        return argument


def define_flags() -> flags.FlagValues:
    """All flags except --config.section.key, which `split_overrides` takes out."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # options may stand after arguments without names
    define_string = functools.partial(flags.DEFINE_string, flag_values=values)
    define_enum = functools.partial(flags.DEFINE_enum, flag_values=values)
    define_integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    define_boolean = functools.partial(flags.DEFINE_boolean, flag_values=values)
    flags.DEFINE(ModeParser(list(MODES)), "mode", None, "What to do.", values)
    define_string(
        "config",
        None,
        "Experiment: a name, the path of a .py file, or of a .json or .yaml file of settings, a run's "
        "config.json for example; not needed to resume training in a --workdir. By default vpsde, or auto "
        "where --config.data.path names your own data.",
    )
    define_string("workdir", None, "Run directory; by default runs/NAME.")
    define_string(
        "sampler",
        None,
        "Name of a sampler, short for --config.sampling.sampler; list shows them all.",
    )
    define_integer("nfe", None, "Network evaluations: short for --config.sampling.nfe.")
    define_string("grid", None, "Time grid of the sampler: short for --config.sampling.grid.")
    define_string(
        "label",
        None,
        "Classes to draw, by name or index: 7 or cat or 3,5,7: short for --config.sampling.label.",
    )
    define_string("task", None, "What --mode restore undoes, inpaint, superres, ...: --config.restore.task.")
    define_string("input", None, "Files to restore, or to interpolate: short for --config.MODE.input.")
    define_string("noise", None, "Noise of their measurement: short for --config.restore.noise.")
    define_string("method", None, "How to restore: short for --config.restore.method.")
    define_string("mask", None, "What --task inpaint lacks: short for --config.restore.inpaint.mask.")
    define_string(
        "guidance",
        None,
        "Guidance of the samples: cfg, autoguidance, classifier or clip: short for "
        "--config.sampling.guidance.",
    )
    define_string("scale", None, "Scale of the guidance: short for --config.sampling.GUIDANCE.scale.")
    define_string("classifier", None, "Run of the classifier: short for --config.sampling.classifier.run.")
    define_string("prompt", None, "Text to draw: short for --config.sampling.prompt.")
    define_string("variations", None, "Images that unCLIP varies: --config.sampling.unclip.images.")
    define_string("prompts", None, "File of texts, one a line: short for --config.sampling.prompts.")
    define_enum("device", "auto", DEVICES, "Where to compute; auto takes CUDA where there is one.")
    define_string("from", None, "Convert a checkpoint of score_sde_pytorch, diffusers, ....")
    define_string("to", None, "Convert the run's checkpoint to diffusers.")
    define_boolean("quiet", False, "Print warnings and errors only.")
    define_boolean("dry_run", False, "Print configuration, size and memory, and stop.")
    define_string(
        "help_config",
        None,
        "Explain the configuration keys, all or those of a section: --help_config training.",
    )
    define_boolean("version", False, "Print the version.")
    define_boolean("help", False, "Show this text.", short_name="h")
    return values


def read_command_line(argv: list[str]) -> CommandLine:
    """Parses the arguments after the program's name.

    Raises:
        UserError, flags.Error: If they are no command.
    """
    values = define_flags()
    arguments, overrides = split_overrides(argv)
    if "--help_config" in arguments[-1:]:
        arguments[-1] += "="  # all sections
    _, *rest = values(["main.py", *arguments])
    if values.help or values.version or values.help_config is not None:
        return CommandLine(values, overrides, None)
    if values.mode is None and not rest:
        raise UserError(f"--mode is required: choose one of {some_of('', MODES)}; --help lists all")
    path = expanded(rest.pop(0)) if rest and values.mode == "convert" else None
    runs = tuple(map(expanded, rest)) if values.mode in ("compare", "demo") else ()
    if rest and not runs:
        raise UserError(f"unknown argument {rest[0]!r}; every option has the form --name=value")
    keys = SHORT_FLAGS | OTHER_KEYS.get(values.mode, {})
    if values.prompt is not None and not values.prompt.strip():
        raise UserError("--prompt is empty: write a text, or --label -1 to draw without one")
    overrides += [
        (key, str(values[flag].value)) for flag, key in keys.items() if values[flag].value is not None
    ]
    if values.scale is not None:
        guidance = dict(overrides).get("sampling.guidance")
        if guidance is None:
            raise UserError("--scale is the scale of a guidance: add --guidance cfg, or another one")
        overrides.append((f"sampling.{guidance}.scale", values.scale))
    return CommandLine(values, overrides, path, runs)


def split_overrides(argv: list[str]) -> tuple[list[str], Overrides]:
    """Separates `--config.section.key=value` and `--config.section.key value` from the other arguments.

    Returns:
        The other arguments, and the overrides.

    Raises:
        UserError: If an override has no value.
    """
    rest: list[str] = []
    overrides: Overrides = []
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals:
            following = next(arguments, None)
            if following is None or following.startswith("--"):
                raise UserError(f"--config.{key} needs a value: --config.{key}=VALUE")
            text = following
        overrides.append((key, text))
    return rest, overrides
