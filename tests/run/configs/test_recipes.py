"""Experiments whose parts are tested elsewhere, from training to likelihood on the command line, tiny."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from score_diffusion.run.main import main

UNET = {"model.channels": 8, "model.blocks_per_level": 1, "model.heads": 1}
DIT = {"model.width": 16, "model.depth": 1, "model.heads": 2}
RECIPES = {
    "edm": ("edm", UNET, "karras, 4 steps from 80"),
    "edm2": ("edm", UNET | {"training.objective": "uncertainty"}, "karras, 4 steps from 80"),
    "dit": ("dit", DIT, "from 1"),
    "likelihood": ("vpsde_likelihood", UNET | {"training.first_time": 1e-6}, "from 1"),
    "dit, learned variance": (
        "dit",
        DIT | {"model.learned_variance": True, "training.objective": "hybrid", "training.times": "discrete"},
        "from 1",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "options", "grid"), RECIPES.values(), ids=RECIPES.keys())
def test_trains_samples_and_scores(config: str, options: dict, grid: str, tmp_path: Path, capsys):
    options = options | {"training.steps": 3, "training.batch_size": 8}
    arguments = [f"--config.{key}={value}" for key, value in options.items()]
    workdir = ["--workdir", str(tmp_path / "run")]
    assert main(["--mode", "train", "--config", config, *workdir, *arguments]) == 0
    assert main(["--mode", "sample", *workdir, "--config.sampling.num_samples=2", "--nfe", "9"]) == 0
    assert grid in capsys.readouterr().out
    (file,) = (tmp_path / "run/samples").glob("*.npz")
    with np.load(file) as arrays:
        assert arrays["samples"].shape == (2, 1, 8, 8) and np.isfinite(arrays["samples"]).all()
        assert arrays["nfe"] == 9
    quick = [f"--config.likelihood.{key}" for key in ("num_images=3", "rtol=0.01", "atol=0.01")]
    assert main(["--mode", "likelihood", *workdir, *quick]) == 0
    assert json.loads((tmp_path / "run/likelihood.json").read_text())["bits_per_dim"] > 0
