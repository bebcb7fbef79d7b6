"""Score-based diffusion models: SDEs, networks, samplers, and the commands that train and use them.

    from score_diffusion import load_run, train
    from score_diffusion.samplers import PCSampler
    from score_diffusion.sde_lib import VPSDE

An installation holds `sde_lib`, `models`, `samplers` and `run` inside this package, so that it adds one name
to site-packages. In a checkout they are the folders next to this one.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from score_diffusion.run.python.run import Run, load_run
    from score_diffusion.run.python.system import System, load_system
    from score_diffusion.run.python.trainer import Trainer
    from score_diffusion.run.python.training import train

__version__ = "0.1.0"

__all__ = ["Run", "System", "Trainer", "load_run", "load_system", "train"]

_HOMES = {  # files of run/python/
    "Run": "run",
    "Trainer": "trainer",
    "load_run": "run",
    "System": "system",
    "load_system": "system",
    "train": "training",
}

_here = Path(__file__).parent
if not (_here / "sde_lib").is_dir():  # in a checkout
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> object:
    """Imports a name of `__all__` when it is first used: `import score_diffusion` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.run.python.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
