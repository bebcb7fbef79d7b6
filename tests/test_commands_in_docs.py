"""Every command line in the documents is one: its flags, keys, values, modes and experiments exist."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pytest

from score_diffusion.run.command_line import define_flags, read_command_line
from score_diffusion.run.commands.help_config import groups
from score_diffusion.run.config_files import config_names, find_module, system_names
from score_diffusion.run.constructor_keys import refuse_unused
from score_diffusion.run.setting_files import SUFFIXES
from tests.test_docs import DOCUMENTS, ROOT

PROGRAM = re.compile(r"^(?:torchrun .*?run/main\.py|python run/main\.py|score-diffusion)(?: |$)")
PLACEHOLDER = re.compile(r"[A-Z_]+|.*\.\.\.")
TORCHRUN = {"--max-restarts", "--nproc-per-node", "--rdzv-backend", "--shutdown-timeout"}
SCRIPTS = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py")]


@functools.cache
def keys():
    return {name: key for group in groups().values() for name, key in group.items()}


@functools.cache
def stages():
    """The names of the stages of all systems."""
    return {stage for name in system_names() for stage in find_module(name).get_stages()}


def without_stage(key: str) -> str:
    """A key of a stage, as in --config.STAGE.section.key, without the stage."""
    stage, _, rest = key.partition(".")
    return rest if stage in stages() else key


def commands(text: str):
    """The arguments of every command of a page, after the program's name."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^```(?:|sh|bash|console)\n(.*?)^```", text, re.S | re.M)
    unfenced = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    blocks += re.findall(r"(?:^ {4}\S.*\n)+", unfenced, re.M)
    spans = re.findall(r"`([^`]+)`", unfenced)
    blocks += [" ".join(span.split()) for span in spans if span.startswith(("--mode ", "score-diffusion "))]
    values = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.M))
    for block in blocks:
        values |= {name: rest.split()[0] for name, rest in re.findall(r"for (\w+) in ([^;\n]+)", block)}
        for line in block.splitlines():
            for name, value in values.items():
                line = line.replace(f"${name}", value)
            line = line.strip().removeprefix("$ ")
            program = PROGRAM.match(line)
            if program or line.startswith("--mode "):
                yield shlex.split(line[program.end() if program else 0 :], comments=True)


COMMANDS = [
    pytest.param(argv, id=f"{path.name}: {' '.join(argv)}")
    for path in DOCUMENTS
    if path.name != "CHANGELOG.md"
    for argv in commands(path.read_text())
]


def test_commands_are_found():
    assert len(COMMANDS) > 100


@pytest.mark.parametrize("argv", COMMANDS)
def test_a_command_is_one(argv):
    line = read_command_line([argument for argument in argv if argument != "..."])
    mode, name = line.flags.mode, line.flags.config
    if name and not PLACEHOLDER.fullmatch(name) and Path(name).suffix not in {".py", *SUFFIXES}:
        assert name in [*config_names(), *system_names()] or name.endswith(":NAME")
    for override, value in line.overrides:
        key = without_stage(override)
        assert key in keys(), f"there is no key {key}"
        if mode not in (None, "convert"):
            refuse_unused(key, mode, keys())
        if not PLACEHOLDER.fullmatch(value) and (key, value) != ("sampling.sampler", "list"):
            keys()[key].parse(key, value)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_keys_and_flags_in_the_text_exist(path):
    text = path.read_text()
    sections = {name.rpartition(".")[0] for name in keys()}
    for key in re.findall(r"--config\.([a-z_.0-9]+[a-z_0-9])(?=[=` ])", text):
        assert without_stage(key) in {*keys(), *sections, "section.key"}, (
            f"{path.name} has --config.{key}, which is no key"
        )
    flags = {f"--{flag}" for flag in define_flags()} | TORCHRUN
    flags |= {
        flag for script in SCRIPTS for flag in re.findall(r'add_argument\("(--\w+)"', script.read_text())
    }
    for flag in re.findall(r"`(--[a-z_]+)(?=[ =`])", text):
        assert flag in flags, f"{path.name} has {flag}, which is no flag"
