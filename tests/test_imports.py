"""The import arrows: models and sde_lib know nothing of the project, samplers know sde_lib, run knows all.

Inside run/ each room may import the rooms that ROOMS lists for it, which has no circle, and no command
imports another.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "score_diffusion"
FOLDERS = {
    "models": {"models", "torch"},
    "sde_lib": {"sde_lib", "torch"},
    "samplers": {"samplers", "torch", "torchdiffeq", "sde_lib"},
}
ROOMS = {  # a folder of run/, or a file of it by its stem
    "errors": set(),
    "files": {"errors"},
    "image_grids": set(),
    "setting_files": {"errors", "json_files"},
    "plots": {"files", "image_grids"},
    "film": {"files", "image_grids", "plots"},
    "web_theme": set(),
    "web_page": {"plots", "web_theme"},
    "distributed": {"errors"},
    "console": {"distributed"},
    "machine": {"console", "errors"},
    "key_types": {"errors"},
    "json_files": {"errors", "key_types"},
    "data": {"console", "distributed", "errors", "files", "json_files", "key_types", "machine"},
    "keys": {"errors", "key_types"},
    "tasks": {"data", "errors", "files", "key_types"},
    "build": {"console", "data", "errors", "key_types", "machine"},
    "constructor_keys": {"build", "errors", "key_types", "keys", "tasks"},
    "configs": {"constructor_keys", "key_types", "keys"},
    "config_files": {"errors", "files"},
    "config": {
        *("config_files", "configs", "console", "constructor_keys", "data", "errors", "files"),
        *("json_files", "key_types", "keys", "setting_files"),
    },
    "checkpoints": {"console", "distributed", "errors", "files", "json_files", "key_types"},
    "encoded_data": {"console", "data", "distributed", "errors", "files", "machine"},
    "evaluation": {"console", "data", "errors", "files", "json_files", "key_types"},
    "training": {
        *("checkpoints", "console", "data", "distributed", "encoded_data", "errors", "files", "json_files"),
        *("key_types", "machine", "plots"),
    },
    "resolve_auto": {"build", "config", "data", "errors", "key_types", "training"},
    "inference": {
        *("checkpoints", "console", "data", "distributed", "encoded_data", "errors", "files", "film"),
        *("image_grids", "json_files", "key_types", "machine", "plots", "tasks", "training"),
    },
    "builders": {
        *("build", "checkpoints", "config", "data", "distributed", "encoded_data", "errors", "evaluation"),
        *("files", "inference", "key_types", "machine", "tasks", "training"),
    },
    "reporting": {
        *("builders", "config", "console", "data", "errors", "evaluation", "inference", "json_files"),
        *("key_types", "plots", "training", "web_page"),
    },
    "commands": {
        *("build", "builders", "checkpoints", "config", "configs", "console", "constructor_keys", "data"),
        *("distributed", "encoded_data", "errors", "evaluation", "files", "image_grids", "inference"),
        *("json_files", "key_types", "keys", "machine", "plots", "reporting", "resolve_auto", "training"),
        "web_page",
    },
    "systems": {
        *("build", "builders", "checkpoints", "config", "config_files", "console", "constructor_keys"),
        *("data", "distributed", "encoded_data", "errors", "files", "follow_run", "image_grids"),
        *("inference", "json_files", "key_types", "keys", "plots", "setting_files"),
    },
    "system_commands": {
        *("build", "builders", "checkpoints", "commands", "config", "console", "data", "distributed"),
        *("files", "inference", "reporting", "systems", "training", "web_page"),
    },
    "command_line": {"errors", "files", "keys"},
    "help_text": {"config_files", "keys"},
    "follow_run": {"config", "errors", "files", "keys"},
    "fit_to_data": {"build", "builders", "config", "console", "data", "errors", "files", "follow_run"},
    "python": {
        *("build", "builders", "checkpoints", "commands", "config", "constructor_keys", "data"),
        *("distributed", "errors", "evaluation", "files", "fit_to_data", "inference", "json_files"),
        *("key_types", "keys", "plots", "resolve_auto", "setting_files", "systems", "tasks", "training"),
    },
    "demo": {
        *("build", "builders", "config", "console", "constructor_keys", "data", "distributed", "errors"),
        *("film", "image_grids", "inference", "json_files", "key_types", "machine", "plots", "python"),
        *("systems", "tasks"),
    },
    "standard_streams": set(),
    "main": {
        *("command_line", "commands", "config", "console", "data", "demo", "distributed", "errors"),
        *("fit_to_data", "help_text", "keys", "machine", "standard_streams", "system_commands", "systems"),
    },
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports; of `from a.b import c` also a.b.c, in case c is a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports from {PROJECT} in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_folders(path: Path) -> set[str]:
    """The top-level packages that a file imports; of this project its folders."""
    parts = (name.split(".") for name in imports(path))
    return {names[1] if names[0] == PROJECT else names[0] for names in parts}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "run").with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    parts = (name.split(".") for name in imports(path))
    return {names[2] for names in parts if names[:2] == [PROJECT, "run"] and len(names) > 2}


@pytest.mark.parametrize("folder", list(FOLDERS))
def test_arrows_between_folders(folder: str):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        foreign = imported_folders(path) - FOLDERS[folder] - set(sys.stdlib_module_names)
        assert not foreign, f"{path.relative_to(ROOT)} must not import {', '.join(sorted(foreign))}"


def test_arrows_between_the_rooms_of_run():
    files = [
        path
        for path in sorted((ROOT / "run").rglob("*.py"))
        if path.parent.name != "run" or path.stem != "__init__"
    ]
    assert {room_of(path) for path in files} == set(ROOMS)
    for path in files:
        foreign = imported_rooms(path) - ROOMS[room_of(path)] - {room_of(path)}
        assert not foreign, f"{path.relative_to(ROOT)} must not import {', '.join(sorted(foreign))}"


def test_the_rooms_have_no_circle():
    order = list(TopologicalSorter(ROOMS).static_order())
    assert order[-1] == "main"


def test_no_command_imports_another():
    commands = sorted((ROOT / "run/commands").glob("*.py"))
    assert len(commands) > 5
    for path in commands:
        assert "commands" not in imported_rooms(path), f"{path.relative_to(ROOT)} imports another command"
