"""The wheel, installed outside the checkout: it is complete, adds one name, and its command works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import score_diffusion

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("score_diffusion", "sde_lib", "models", "samplers", "run")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source distribution, the wheel built from it, and one built from the checkout."""
    folder = tmp_path_factory.mktemp("built")
    checkout = folder / "checkout"  # a copy: setuptools leaves its work in the folder that it builds
    for name in FOLDERS:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    run(sys.executable, "-c", BUILD, "build_sdist", folder, cwd=checkout)
    shutil.unpack_archive(next(folder.glob("*.tar.gz")), folder / "unpacked")
    source = next((folder / "unpacked").iterdir())
    run(sys.executable, "-c", BUILD, "build_wheel", folder, cwd=source)
    run(sys.executable, "-c", BUILD, "build_wheel", folder / "direct", cwd=checkout)
    return folder


@pytest.fixture(scope="module")
def python(built: Path) -> Path:
    """The interpreter of a fresh environment with the wheel in it, and the dependencies of this one."""
    environment = built / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=built)
    interpreter = environment / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", interpreter)
    run(*pip, "install", "--no-deps", "--no-index", next(built.glob("*.whl")), cwd=built)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(
        sysconfig.get_paths()["purelib"]
    )  # an editable install is no path
    return interpreter


def test_the_wheel_has_every_file(built: Path):
    tree = {path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    tree |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "run/demo/page").iterdir()}
    expected = {name if name.startswith("score_diffusion/") else f"score_diffusion/{name}" for name in tree}
    for wheel in (*built.glob("*.whl"), *built.glob("direct/*.whl")):
        files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        assert files == {*expected, "score_diffusion/py.typed"}


def test_it_adds_one_name_of_one_version(python: Path):
    packages = next(python.parents[1].glob("lib/python*/site-packages"))
    added = {path.name for path in packages.iterdir()} - {"dependencies.pth"}
    assert added == {"score_diffusion", f"score_diffusion-{score_diffusion.__version__}.dist-info"}
    code = "import importlib.metadata; print(importlib.metadata.version('score-diffusion'))"
    assert run(python, "-c", code, cwd=python.parent).strip() == score_diffusion.__version__


@pytest.mark.parametrize("regular", [True, False], ids=["with __init__", "without __init__"])
def test_it_harms_no_project_with_the_same_folders(regular: bool, python: Path, tmp_path: Path):
    for folder in FOLDERS[1:]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"NAME = '{folder}'")
        if regular:
            (tmp_path / folder / "__init__.py").touch()
    code = [
        "import models.mine, run.mine, samplers.mine, sde_lib.mine",
        "from score_diffusion.samplers import PCSampler",
        "from score_diffusion.models import UNet",
        "from score_diffusion.run import main",
        "print(models.mine.NAME, run.mine.NAME, samplers.mine.NAME, sde_lib.mine.NAME, main.__file__)",
    ]
    *names, file = run(python, "-c", "\n".join(code), cwd=tmp_path).split()
    assert names == ["models", "run", "samplers", "sde_lib"]
    assert Path(file).is_relative_to(python.parents[1])


def test_train_sample_convert(python: Path, tmp_path: Path):
    """The command, in a folder that has a models/ and a run/ of its own, and none of the checkout."""
    pytest.importorskip("diffusers")
    for folder in ("models", "run"):
        (tmp_path / folder).mkdir()

    def command(mode: str, *arguments: str) -> str:
        script = python.with_name("score-diffusion")
        return run(script, "--mode", mode, *arguments, "--workdir", "run/ddpm", cwd=tmp_path)

    keys = ("channels=8", "norm_groups=8", "noise_input=step", "embedding=sinusoidal", "embedding_scale=1.0")
    model = [f"--config.model.{key}" for key in keys]
    training = ["--config.training.steps=2", "--config.training.batch_size=4"]
    assert "Training finished" in command("train", "--config", "ddpm", *model, *training)
    command("sample", "--sampler", "ddim", "--nfe", "4", "--config.sampling.num_samples=2")
    assert (tmp_path / "run/ddpm/samples/ddim.npz").exists()
    command("convert", "--to", "diffusers", "theirs")
    index = json.loads((tmp_path / "theirs/model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
