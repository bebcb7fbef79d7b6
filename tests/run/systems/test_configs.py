"""Every system of run/configs/: its stages fit each other, and each takes a training step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.build import data_options
from score_diffusion.run.builders.training import build_trainer
from score_diffusion.run.config_files import system_names
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.resolve_auto import resolve
from score_diffusion.run.systems.configuration import load_system

CASCADES = [name for name in system_names() if name.startswith(("cascade", "glide"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASCADES)
def test_stages_fit_and_train(name: str, tmp_path: Path):
    overrides = [("training.batch_size", 2), ("data.num_images", 40), ("training.held_out", 2)]
    if "mnist" in name:  # the package with these digits may be missing
        digits = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
        np.savez(tmp_path / "digits.npz", x_train=digits, y_train=np.arange(40) % 10)
        overrides.append(("data.path", str(tmp_path / "digits.npz")))
    _, configs = load_system(name, tmp_path, overrides)
    before: tuple[int, ...] = ()
    for config in configs.values():
        dataset = load_dataset(data_options(config.data))
        channels, *sides = dataset.shape
        factor = config.model.upscale
        assert bool(factor) == bool(before)
        assert not factor or before == (channels, *(side // factor for side in sides))
        before = dataset.shape
        trainer = build_trainer(resolve(config, dataset, torch.device("cpu")), dataset, torch.device("cpu"))
        trainer.advance()
        assert bool(trainer.statistics.summary())
