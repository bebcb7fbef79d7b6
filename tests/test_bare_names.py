"""In a checkout the folders can be imported under their bare names, and nothing is ever loaded twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import score_diffusion

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def run_at_the_root(code: str) -> None:
    """Runs the code in the checkout, in an interpreter of its own."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


SAME_OBJECTS = """
import importlib, pickle

for folder in ("sde_lib", "models", "samplers"):
    bare = importlib.import_module(folder)
    full = importlib.import_module(f"score_diffusion.{folder}")
    assert bare.__all__ == full.__all__ and len(full.__all__) > 5
    for name in full.__all__:
        one, other = getattr(bare, name), getattr(full, name)
        assert one is other if callable(one) else one == other  # tables hold the same classes

from sde_lib import VPSDE

assert VPSDE.__module__.startswith("score_diffusion.")
assert type(pickle.loads(pickle.dumps(VPSDE()))) is VPSDE
"""

NO_FILES = """
for statement, message in (
    ("import sde_lib.sde", "No module named 'sde_lib.sde'"),
    ("import score_diffusion.sde_lib.sde, sde_lib.sde", "No module named 'sde_lib.sde'"),
    ("from models.unet import UNet", "No module named 'models.unet'"),
    ("from samplers import registry", "cannot import name 'registry' from 'samplers'"),
    ("import run.main", "No module named 'run.main'"),
):
    try:
        exec(statement)
    except ImportError as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"{statement} loads a second copy")
"""

NOTHING_BARE = """
import sys
import score_diffusion.run.main, score_diffusion.run.commands.train, score_diffusion.samplers

loaded = {name.partition(".")[0] for name in sys.modules}
assert "score_diffusion" in loaded and not loaded & {"sde_lib", "models", "samplers", "run"}, loaded
"""


def test_every_name_is_the_same_object_under_both_names():
    run_at_the_root(SAME_OBJECTS)


def test_a_file_cannot_be_imported_under_a_bare_name():
    run_at_the_root(NO_FILES)


def test_the_project_itself_loads_nothing_under_a_bare_name():
    run_at_the_root(NOTHING_BARE)


def test_the_version_has_one_source():
    assert (
        f'__version__ = "{score_diffusion.__version__}"' in (ROOT / "score_diffusion/__init__.py").read_text()
    )
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
