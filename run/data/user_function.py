"""Data from a user's Python function: data.path=FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION.

The function has no arguments and returns

    an array                         a tenth of which is held out
    (train, test)                    two arrays
    {"x_train": ..., ...}            and optionally y_train, x_test, y_test, cond_vector_train, ... as in an
                                     .npz file

as NumPy arrays or tensors; arrays.py says what they may hold. A mapped array that is larger than memory is
read sample by sample. The function is called whenever data are needed, and must return the same each time.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from score_diffusion.run.errors import UserError
from score_diffusion.run.files import absolute_path

FUNCTION = re.compile(r".+:[A-Za-z_]\w*")


def names_function(path: str) -> bool:
    """Whether data.path names a function; a file may have a colon in its name, too."""
    return FUNCTION.fullmatch(path) is not None and not Path(path).exists()


def refuse_function(path: str, key: str = "data.path", use: str = "data") -> None:
    """Refuses to call a function that only a run directory names, which may be somebody else's.

    Args:
        path: The value of a key in a run's config.json.
        key: The key.
        use: What the function is there for, in words.

    Raises:
        UserError: If the path names a function.
    """
    if names_function(path):
        raise UserError(
            f"the configuration of this run names the Python function {path} as its {use}, and a function is "
            f"called only if you name it yourself: --config.{key}={path} if you trust it, or "
            f"--config.{key}= with other {use}"
        )


def _split(path: str) -> tuple[str, str]:
    """The module and the name of a function."""
    module, _, name = path.rpartition(":")
    return module, name


def absolute(path: str) -> str:
    """data.path as it holds in any folder: paths of files become absolute, modules keep their names."""
    if not names_function(path):
        return str(absolute_path(path))
    module, function = _split(path)
    return f"{absolute_path(module)}:{function}" if module.endswith(".py") else path


def find_function(path: str, key: str = "data.path") -> Callable[..., Any]:
    """The function that a key names.

    Raises:
        UserError: If there is no such function.
    """
    module, name = _split(path)
    function = getattr(_module(module, key), name, None)
    if not callable(function):
        raise UserError(f"{key} {path}: {module} must define a function {name}(), and does not")
    return function


def call_function(path: str) -> dict[str, np.ndarray]:
    """The arrays that the function returns, by the names that array_files.py knows.

    Raises:
        UserError: If there is no such function, it raises an error, or it returns something else.
    """
    function = find_function(path)
    try:
        given = function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(f"data.path {path}: the function raised {sentence(error)}") from error
    return arrays_of(given, f"data.path {path}: what the function returned")


def arrays_of(given: object, what: str) -> dict[str, np.ndarray]:
    """The arrays that a user gives, by the names that array_files.py knows.

    Args:
        given: An array, (train, test) or a dictionary of arrays, as above.
        what: What it is, in messages.

    Raises:
        UserError: If it is something else.
    """
    if isinstance(given, tuple) and len(given) == 2:
        given = dict(zip(("x_train", "x_test"), given, strict=True))
    named = given if isinstance(given, dict) else {"array": given}
    try:
        arrays = {key: np.asarray(value) for key, value in named.items()}
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU
        raise UserError(f"{what} is no array: {sentence(error)}") from error
    if not arrays or any(array.ndim == 0 for array in arrays.values()):
        kinds = ", ".join(f"{key}: {type(value).__name__}" for key, value in named.items()) or "nothing"
        raise UserError(
            f"{what} must be an array, (train, test) or a dictionary with x_train and optionally y_train, "
            f"x_test, y_test; it is {kinds}"
        )
    return arrays


def _module(name: str, key: str) -> object:
    """The module of a name, or of the path of a .py file."""
    file = Path(name)
    if name.endswith(".py") and not file.is_file():
        raise UserError(f"{key} names a function of {name}, and there is no such file")
    try:
        if not name.endswith(".py"):
            return _import(name)
        loader = SourceFileLoader(f"user_data_{file.stem}", str(file))
        module = ModuleType(loader.name)
        module.__file__ = str(file)
        loader.exec_module(module)
    except (Exception, SystemExit) as error:  # as above
        raise UserError(f"{key} names a function of {name}, which raised {sentence(error)}") from error
    return module


def _import(name: str) -> object:
    here = str(Path.cwd())  # as with `python -m`, modules of the working directory are found
    if here in sys.path:
        return importlib.import_module(name)
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def sentence(error: BaseException) -> str:
    """An error of the user's code in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
