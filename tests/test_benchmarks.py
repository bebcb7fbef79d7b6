"""Every benchmark runs, at its smallest size, and prints its table."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from score_diffusion import train
from score_diffusion.run.main import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).resolve().parent.parent
SMALLEST = {  # arguments, and a row that the table must have
    "captions": ("--digits RUNS --scales 0 2 --each 1 --nfe 2 --picture PICTURE", "real images"),
    "cascade": ("RUNS --features pixels --levels 0 --samples 8 --nfe 2", "drawn at 0"),
    "data_loading": ("--images 300 --rounds 1 --steps 1 --batch_size 2", "zip of JPEG"),
    "ddpm_is_vpsde": ("--steps 32 64", "| 64 |"),
    "engine": ("--rounds 1 --steps 1 --cifar_images 300 --cifar_batch 2", "| cifar10, 3x32x32 |"),
    "evaluation": ("--numbers 32 64 --repeats 2", "| frechet distance | noisy | 1.12 |"),
    "exact_mixtures": ("--law ring --sde vp --samples 20", "| 2-D, 8 modes | vp |"),
    "inverse": (
        "--problem ring --noise 0.3 --samples 8 --nfe 12",
        "| 2-D ring of 8 modes, 1 row | 0.3 |",
    ),
    "guidance": ("--steps 2 --samples 2 --scales 1 --nfe 4 --workdir RUNS --picture PICTURE", "| clip | 1 |"),
    "likelihood": ("--coverage --law 2-D --sde vp --size 4 --repeats 3", "| 2-D | vp |"),
    "low_density": ("--steps 2 --picture PICTURE", "annealed Langevin, multiscale score"),
    "networks": ("--rounds 1 --batch 1", "NCSN++, bf16"),
    "overhead": ("--rounds 1", "| diffusers DDIM |"),
    "quality_vs_nfe": ("--problem ring --nfe 5 --fit --picture PICTURE", "| `eabm, fitted` |"),
    "unclip": ("--system RUNS --each 1 --nfe 2 --pairs 1 --points 2", "nearest of 48 captions"),
    "scaling": ("--parameters 56e6 --seconds_per_image 6e-4", "1,024"),
}
NO_SCRIPT = {"inverse_peers", "peers", "zoo"}  # parts of other ones


def test_all_are_listed():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == {*SMALLEST, *NO_SCRIPT}


@pytest.mark.parametrize("name", SMALLEST)
def test_it_runs(name: str, tmp_path: Path, capsys):
    if name in ("networks", "overhead", "quality_vs_nfe"):
        pytest.importorskip("diffusers")
    if name == "inverse":
        pytest.importorskip("azula")
    if name == "captions":
        settings = {"training.steps": 1, "training.preview_samples": 0, "training.held_out": 8}
        train("text_digits", tmp_path / "runs", settings | {"model.channels": 8})
    if name == "cascade":
        tiny = ROOT / "tests/run/tiny_system.py"
        main(["--mode", "train", "--config", str(tiny), "--workdir", str(tmp_path / "runs")])
    if name == "unclip":
        few = ("training.steps=1", "data.num_images=200", "training.held_out=8", "decoder.model.channels=8")
        few += ("decoder.training.preview_samples=0", "towers.model.channels=8")
        start = ("--mode", "train", "--config", "unclip_shapes", "--workdir", str(tmp_path / "runs"))
        main([*start, *(f"--config.{setting}" for setting in few)])
    arguments, row = SMALLEST[name]
    picture = tmp_path / "picture.png"
    arguments = arguments.replace("PICTURE", str(picture)).replace("RUNS", str(tmp_path / "runs"))
    importlib.import_module(f"benchmarks.{name}").main(arguments.split())
    assert row in capsys.readouterr().out
    assert picture.exists() == (str(picture) in arguments)
