"""The files of run/configs/ and the user's own, which define experiments: one run, or a system of several."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from score_diffusion.run.errors import UserError, some_of
from score_diffusion.run.files import expanded

CONFIGS = Path(__file__).parent / "configs"
SYSTEM = "get_stages"
"""The function that makes a file one of a system."""


def experiment_files() -> list[Path]:
    """The files of run/configs/ that define experiments, in alphabetical order."""
    return sorted(path for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "base"))


def _modules() -> dict[str, ModuleType]:
    stems = [path.stem for path in experiment_files()]
    return {stem: importlib.import_module(f"score_diffusion.run.configs.{stem}") for stem in stems}


def config_names() -> list[str]:
    """The experiments of one run that `--config NAME` knows."""
    names = []
    for stem, module in _modules().items():
        if not hasattr(module, SYSTEM):
            names += [f"{stem}:{experiment}" for experiment in getattr(module, "EXPERIMENTS", {})] or [stem]
    return names


def system_names() -> list[str]:
    """The systems that `--config NAME` knows."""
    return [stem for stem, module in _modules().items() if hasattr(module, SYSTEM)]


def find_module(name: str) -> ModuleType:
    """The module of a name in `config_names()` or `system_names()`, or of the path of a .py file.

    Raises:
        UserError: If there is no such file, or it does not run.
    """
    stem = name.partition(":")[0]
    known = [*config_names(), *system_names()]
    if name in known:
        return importlib.import_module(f"score_diffusion.run.configs.{stem}")
    if stem.endswith(".py"):
        return _import_file(expanded(stem))
    raise UserError(
        f"unknown configuration {name!r}: choose one of {some_of(name, known)} (--help lists all), or give "
        "the path of a .py, .json or .yaml file"
    )


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"configuration file {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"user_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    with the_users_code(str(path)):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def the_users_code(source: str) -> Iterator[None]:
    """Puts whatever a configuration file raises into one sentence."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UserError(f"configuration {source} does not run: {type(error).__name__}: {error}") from error
