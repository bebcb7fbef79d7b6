"""The import arrows: models and sde_lib know nothing of the project, samplers know sde_lib, run knows all."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "models": {"models", "torch"},
    "sde_lib": {"sde_lib", "torch", "torchdiffeq"},
    "samplers": {"samplers", "torch", "torchdiffeq", "sde_lib"},
}


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            packages.add(node.module.partition(".")[0])
    return packages


@pytest.mark.parametrize("package", list(ALLOWED))
def test_import_arrows(package: str):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        foreign = imported_packages(path) - ALLOWED[package] - set(sys.stdlib_module_names)
        assert not foreign, f"{path.relative_to(ROOT)} must not import {', '.join(sorted(foreign))}"
