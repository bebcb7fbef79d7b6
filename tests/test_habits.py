"""What keeps the code readable: short functions, short files, no import circle, a package in every folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("sde_lib", "models", "samplers", "run")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LONGEST_FUNCTION, LONGEST_FILE = 60, 450


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("score_diffusion", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(path): path for path in FILES}


def too_long(path: Path) -> Iterator[str]:
    """The functions of a file that are too long, and the file itself if it is."""
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    if len(text.splitlines()) > LONGEST_FILE:
        yield name
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                yield f"{name}: {node.name}"


def imported_modules(path: Path) -> set[str]:
    """The modules of this project that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:  # a module of the package, or a name in it
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else str(node.module))
    return found & set(MODULES)


def test_functions_and_files_are_short():
    others = (path for folder in ("benchmarks", "tests") for path in sorted((ROOT / folder).rglob("*.py")))
    found = {name for path in (*FILES, *others) for name in too_long(path)}
    assert not found, f"functions of over {LONGEST_FUNCTION} lines or files of over {LONGEST_FILE}: {found}"


def test_no_import_circle():
    graph = {module: imported_modules(path) - {module} for module, path in MODULES.items()}
    assert sum(map(len, graph.values())) > len(graph)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"an import circle: {' <- '.join(error.args[1])}")


def test_every_folder_with_code_is_a_package():
    """A folder without __init__.py would be missing from the wheel."""
    missing = {path.parent for path in FILES if not (path.parent / "__init__.py").exists()}
    assert not missing, f"add an __init__.py to {missing}"
