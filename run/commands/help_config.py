"""`--help_config`: the configuration keys with their defaults, values and explanations.

`python -m score_diffusion.run.commands.help_config docs/configuration.md` writes the page of all of them.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from score_diffusion.run.errors import UserError, some_of
from score_diffusion.run.files import write_atomic
from score_diffusion.run.key_types import Key
from score_diffusion.run.keys import CONVERT_FROM, CONVERT_TO, KEYS, MODES

USES = (*(mode for mode in MODES if mode != "convert"), CONVERT_FROM, CONVERT_TO)

INTRODUCTION = """# Configuration keys

This page is written by `python -m score_diffusion.run.commands.help_config docs/configuration.md`;
a test compares it with the code. `--help_config` prints the same on the terminal,
`--help_config training` one section of it, and `--dry_run` the keys of a configuration with their
values.

Set a key with `--config.section.key=value`, or in a configuration file (`run/configs/` has
examples). Values of several numbers are separated by commas. An experiment may set other values
than the defaults below. Of a system of several runs, `--config.STAGE.section.key=value` sets a key
of one stage, and `--config.section.key=value` the key of every stage that has it. Keys marked ✓ may
change when training is resumed, the others are fixed for a run.
"""


def groups() -> dict[str, dict[str, Key]]:
    """All keys by section; each SDE, network, sampler, guidance, task and method has a group of its own."""
    from score_diffusion.run.constructor_keys import (  # here: it imports torch
        CONSTRUCTORS,
        argument_keys,
        guidance_keys,
        named_keys,
        restore_keys,
        sampler_keys,
    )

    options_of = {
        "sampling.sampler": sampler_keys,
        "sampling.guidance": guidance_keys,
        "restore.method": restore_keys,
    }
    found: dict[str, dict[str, Key]] = {}
    for name, key in named_keys().items():
        found.setdefault(name.rpartition(".")[0] or name, {})[name] = key
        for choice in CONSTRUCTORS.get(name, ()):
            found[f"{name}={choice}"] = argument_keys(name, choice)
        options = options_of.get(name, dict)()
        for option, of_choice in options.items():
            found.setdefault(option.rpartition(".")[0], {})[option] = of_choice
    return found


def help_config(beginning: str) -> int:
    """Prints the keys whose names begin in a way; returns the exit code.

    Raises:
        UserError: If there are none.
    """
    prefix = f"{beginning.rstrip('.')}." if beginning else ""
    chosen = {
        title: {name: key for name, key in keys.items() if f"{name}.".startswith(prefix)}
        for title, keys in groups().items()
    }
    if not any(chosen.values()):
        sections = dict.fromkeys(name.partition(".")[0] for name in KEYS)
        raise UserError(
            f"no configuration key begins with {beginning!r}: choose one of {some_of(beginning, sections)}; "
            "--help_config lists all keys"
        )
    for title, keys in chosen.items():
        if keys:
            print(f"{title}\n")
        for name, key in keys.items():
            resumed = "; may change when training is resumed" if key.may_change else ""
            print(f"  --config.{name}={spelled(key.default)}\n      {key.explanation}")
            print(f"      {key.requirement}{resumed}\n")
    return 0


def spelled(value: object) -> str:
    """A value as the command line spells it."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or "()"
    return str(value).lower() if isinstance(value, bool) else str(value)


def page() -> str:
    """All keys as a page in Markdown."""
    return "\n".join([INTRODUCTION, *(_section(title, keys) for title, keys in groups().items() if keys)])


def _section(title: str, keys: dict[str, Key]) -> str:
    taken = {mode: [name for name, key in keys.items() if mode in key.modes] for mode in USES}
    words = [
        f"`{mode}`" + ("" if names == list(keys) else f" ({', '.join(f'`{_last(n)}`' for n in names)})")
        for mode, names in taken.items()
        if names
    ]
    rows = [
        f"| `{_last(name)}` | {_cell(spelled(key.default))} | {key.requirement} | {key.explanation} | "
        f"{'✓' if key.may_change else ''} |"
        for name, key in keys.items()
    ]
    header = ["| key | default | values | explanation | resume |", "|---|---|---|---|---|"]
    return "\n".join(
        [f"## {title}", "", *textwrap.wrap(f"Taken by {', '.join(words)}.", 100), "", *header, *rows, ""]
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _cell(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    write_atomic(Path(sys.argv[1]), page().encode())
