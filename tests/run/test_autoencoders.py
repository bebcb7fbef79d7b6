"""Autoencoders on the command line: training, resuming, what is recorded, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from score_diffusion.run.builders.autoencoders import load_autoencoder
from score_diffusion.run.builders.data import load_shown_data
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import read_config
from score_diffusion.run.main import main
from score_diffusion.run.training.log import read_log

SMALL = (
    *("--config.model.channels=8", "--config.training.steps=4", "--config.training.batch_size=8"),
    *("--config.training.checkpoint_every=2", "--config.training.log_every=2"),
    *("--config.training.held_out=16", "--config.training.preview_samples=4"),
)
ADVERSARY = (
    "--config.training.autoencoding.adversarial_weight=0.5",
    "--config.training.autoencoding.adversarial_start=1",
)


def train(workdir: Path, *arguments: str, config: str = "autoencoder_digits") -> int:
    return main(["--mode", "train", "--config", config, "--workdir", str(workdir), *SMALL, *arguments])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("features") / "run"
    few = [argument for argument in SMALL if "preview" not in argument]
    command = ["--mode", "train", "--config", "classifier_features", "--workdir", str(run), *few]
    assert main([*command, "--config.model.multipliers=(1,)", "--config.model.attention_levels=()"]) == 0
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder_kl", "autoencoder_vq"])
def test_a_training_that_was_stopped_is_resumed_bit_for_bit(
    name: str, classifier: Path, tmp_path: Path, same: Callable
):
    """With every part of the loss; the discriminator's weights and moments are part of the checkpoint."""
    every = (*ADVERSARY, f"--config.training.autoencoding.perceptual={classifier}")
    every = (*every, f"--config.model.name={name}", "--config.training.schedule=constant")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(whole, *every) == 0
    assert train(stopped, *every, "--config.training.steps=2") == 0
    assert main(["--mode", "train", "--workdir", str(stopped), "--config.training.steps=4"]) == 0
    a, b = (checkpoint.at_step(run, 4) for run in (whole, stopped))
    assert any(name.startswith("discriminator") for name in a.objective)
    for part in ("model", "ema", "objective", "optimizer"):
        assert same(getattr(a, part), getattr(b, part)), part
    a, b = ([row["held_out_loss"] for row in read_log(run)] for run in (whole, stopped))
    assert a == b


def test_what_a_training_leaves(tmp_path: Path, capsys):
    assert train(tmp_path / "run", "--config.model.name=autoencoder_vq") == 0
    assert "share of the codes that are used" in capsys.readouterr().out
    rows = [row for row in read_log(tmp_path / "run") if "held_out_psnr" in row]
    assert [row["step"] for row in rows] == [2, 4] and 0 < rows[-1]["held_out_codes_used"] <= 1
    assert (tmp_path / "run/samples/step_00000004.png").exists()


def test_the_dry_run_knows_autoencoders(tmp_path: Path, capsys):
    assert train(tmp_path / "run", "--dry_run") == 0
    assert "parameters" in capsys.readouterr().out and not (tmp_path / "run").exists()


REFUSED = {
    "another objective": (
        ("--config.training.objective=dsm",),
        "training.objective=dsm does not train model 'autoencoder_kl': set it to autoencoding",
    ),
    "another network": (
        ("--config.model.name=unet",),
        "does not train model 'unet': set model.name=autoencoder_kl or autoencoder_vq",
    ),
    "points": (("--config.data.name=moons",), "takes images, the data are points"),
    "a size": (
        ("--config.model.multipliers=(1,1,1,1,1)",),
        "each side of x must be divisible by 16 for 5 levels",
    ),
    "conditions": (("--config.training.conditional=True",), "cannot be conditioned on the label of the data"),
    "no features": (("--config.training.autoencoding.perceptual=nowhere",), "nowhere holds no run"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_settings_are_refused(arguments: tuple[str, ...], message: str, tmp_path: Path, refused):
    assert message in refused(train(tmp_path / "run", *arguments))
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_autoencoder_draws_no_samples(tmp_path: Path, refused, capsys):
    assert train(tmp_path / "run") == 0
    capsys.readouterr()
    message = refused(main(["--mode", "sample", "--workdir", str(tmp_path / "run")]))
    assert "has no score and draws no samples: train a model in its latent space" in message
    assert json.loads((tmp_path / "run/data.json").read_text())["decoded"] is None


def test_reconstructions_are_measured(tmp_path: Path, capsys):
    run = tmp_path / "run"
    assert train(run) == 0
    measure = ["--mode", "evaluate", "--workdir", str(run), "--config.sampling.num_samples=30"]
    assert main(measure) == 0
    assert "Reconstructions compared with held-out data" in capsys.readouterr().out
    record = json.loads((run / "evaluation.json").read_text())
    net, _ = load_autoencoder(run)
    dataset = load_shown_data(read_config(run).data)
    x = dataset.scaling.stored_to_model(dataset.test[:30])
    decoded = dataset.scaling.model_to_user(net.decode(net.encode(x)))
    mse = (decoded - x).square().mean((1, 2, 3))
    assert record["psnr"] == pytest.approx((10 * torch.log10(4 / mse)).mean().item(), rel=1e-4)
    assert record["samples"]["frechet_distance"] >= 0 and record["num_samples"] == 30
