"""Errors that a caller can put right are one class; everything else keeps its traceback."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from score_diffusion import sde_lib
from score_diffusion.sde_lib import VPSDE, InputError

FILES = sorted(Path(sde_lib.__file__).parent.glob("*.py"))


def test_it_is_a_value_error():
    with pytest.raises(ValueError, match="beta_min"):
        VPSDE(beta_min=-1.0)
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_library_raises_no_other_value_error(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            assert ast.unparse(node.exc.func) in ("InputError", "TypeError"), f"line {node.lineno}"
