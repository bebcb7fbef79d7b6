"""`--config auto`: every kind of data gets a network that takes it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from score_diffusion.run.build import build_model, build_sde
from score_diffusion.run.config import apply_overrides, load_config, read_config
from score_diffusion.run.fit_to_data import settings_for
from score_diffusion.run.main import main

SHAPES = [
    *((1,), (2,), (30,), (128,)),
    *((1, 8, 8), (1, 12, 12), (3, 16, 16), (1, 28, 28), (3, 32, 32), (3, 64, 48), (1, 30, 30), (2, 9, 9)),
    *((1, 128), (2, 50), (1, 16, 16, 16)),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_network_takes_the_data(shape: tuple[int, ...]):
    chosen = settings_for(shape, 1000)
    config = apply_overrides(load_config("auto"), [(name, str(value)) for name, value in chosen.items()])
    model = build_model(config.model, build_sde(config.sde), shape)  # tries it once
    assert sum(p.numel() for p in model.parameters()) > 1000


def test_sides_are_halved_to_seven_at_least():
    """28 = 2 x 14 = 4 x 7 has three levels, 32 has three, 64 has four, and 8 has the two of the digits."""
    levels = {side: len(settings_for((1, side, side), 1)["model.multipliers"]) for side in (8, 28, 32, 64, 9)}
    assert levels == {8: 2, 28: 3, 32: 3, 64: 4, 9: 1}


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64, 128])
def test_attention_sees_at_most_256_positions(side: int):
    levels = settings_for((3, side, side), 1000)["model.attention_levels"]
    assert levels and all((side // 2**level) ** 2 <= 256 for level in levels)


def test_large_sets_are_seen_twenty_times_at_least():
    settings = settings_for((1, 28, 28), 60_000)
    assert settings["training.steps"] * settings["training.batch_size"] >= 20 * 60_000


def test_own_data_take_it_by_default_and_keep_what_is_set(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("points.npz", rng.normal(size=(100, 5)).astype(np.float32))
    keys = ["--config.data.path=points.npz", "--config.training.steps=2", "--config.model.width=32"]
    assert main(["--mode", "train", *keys]) == 0
    config = read_config(tmp_path / "runs/auto")
    assert (config.model.name, config.model.width, config.training.batch_size) == ("mlp", 32, 64)
    assert main(["--mode", "train", *keys]) == 0  # the same data, the same configuration: it resumes
    assert main(["--mode", "sample", "--config", "auto", "--config.sampling.num_samples=4"]) == 0
    assert np.load("runs/auto/samples/eabm.npz")["samples"].shape == (4, 5)


def test_without_data_it_says_what_to_name(capsys, tmp_path):
    assert main(["--mode", "train", "--config", "auto", "--workdir", str(tmp_path / "run")]) == 2
    assert "--config.data.path=PATH" in capsys.readouterr().err


def test_another_network_starts_from_its_own_defaults():
    config = apply_overrides(load_config("vpsde"), [("model.name", "mlp"), ("model.depth", "2")])
    assert config.model.depth == 2 and "attention_levels" not in config.model
    assert config.model.width == 256  # the constructor's
    assert math.isclose(apply_overrides(load_config("vpsde"), [("sde.name", "vesde")]).sde.sigma_max, 50.0)


def test_dry_run_compares_with_the_machine(capsys, tmp_path):
    argv = ["--mode", "train", "--config", "vpsde", "--dry_run", "--config.training.batch_size=8"]
    assert main([*argv, "--workdir", str(tmp_path / "run"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "of the machine" in out and "time, estimated" in out
    assert not (tmp_path / "run").exists()
