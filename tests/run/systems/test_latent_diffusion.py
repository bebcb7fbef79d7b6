"""Latent diffusion as a system of two stages: trained, sampled and refused as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from score_diffusion.run.main import main
from score_diffusion.run.systems.configuration import load_system

MINE = """
from score_diffusion.run.configs import autoencoder_digits, latent_mnist
KIND = "latent_diffusion"

def get_stages():
    autoencoder, diffusion = autoencoder_digits.get_config(), latent_mnist.get_stages()["diffusion"]
    autoencoder.model.channels, diffusion.data.name = 8, "digits"
    diffusion.model.update(channels=8, blocks_per_level=1, attention_levels=())
    for stage in (autoencoder, diffusion):
        stage.training.update(steps=2, batch_size=8)
        stage.sampling.update(num_samples=4, steps=3)
    return {"autoencoder": autoencoder, "diffusion": diffusion}
"""


@pytest.mark.slow
def test_it_is_trained_sampled_and_evaluated_as_one(tmp_path: Path, capsys):
    file, system = tmp_path / "mine.py", tmp_path / "system"
    file.write_text(MINE)
    few = "--config.training.preview_samples=2"
    assert main(["--mode", "train", "--config", str(file), "--workdir", str(system), few]) == 0
    assert main(["--mode", "sample", "--workdir", str(system), "--label", "7"]) == 0
    assert main(["--mode", "sample", "--workdir", str(system / "diffusion"), "--label", "7"]) == 0
    with np.load(next((system / "samples").glob("*.npz"))) as whole:
        with np.load(system / "diffusion/samples/eabm.npz") as stage:
            assert np.array_equal(whole["samples"], stage["samples"]) and whole["samples"].shape[1:] == (
                1,
                8,
                8,
            )
    assert main(["--mode", "evaluate", "--workdir", str(system)]) == 0
    assert "latents of 2 x 4 x 4" in capsys.readouterr().out


def test_the_stages_of_the_experiment_know_each_other(tmp_path: Path):
    _, configs = load_system("latent_mnist", tmp_path)
    assert configs["diffusion"].data.autoencoder == str((tmp_path / "autoencoder").resolve())
    _, others = load_system("unclip_shapes", tmp_path)
    assert {str(tmp_path.resolve() / "towers")} == {
        others[name].data.encoder for name in ("prior", "decoder")
    }
