"""--mode convert: run directories that sample, score and train on, and the way back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import read_config
from score_diffusion.run.inference.trained_model import load_trained
from score_diffusion.run.main import main
from score_diffusion.sde_lib import DDPM, linear_betas

pytest.importorskip("diffusers")
from diffusers import UNet2DModel  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    """A diffusers network of DDPM's form for grey images of 8x8."""
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, freq_shift=1, flip_sin_to_cos=False, attention_head_dim=None,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def convert(*arguments):
    return main(["--mode", "convert", *map(str, arguments)])


def test_a_converted_network_has_the_score_of_its_own(folder, tmp_path):
    assert convert("--from", "diffusers", folder, "--workdir", tmp_path / "run") == 0
    trained = load_trained(tmp_path / "run", read_config(tmp_path / "run"), torch.device("cpu"))
    model, sde, k = UNet2DModel.from_pretrained(folder).eval(), DDPM(linear_betas(1000)), 300
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), (k + 1) / 1000)
    with torch.no_grad():
        theirs = -model(x, k).sample / sde.sqrt_1m_alphas_cumprod[k]
        torch.testing.assert_close(trained.score(x, t), theirs, rtol=1e-4, atol=1e-5)


def test_it_samples_scores_and_goes_back(folder, tmp_path):
    run = tmp_path / "run"
    assert convert("--from", "diffusers", folder, "--workdir", run) == 0
    small = ["--workdir", str(run), "--config.sampling.num_samples=2", "--nfe", "4"]
    assert main(["--mode", "sample", "--sampler", "ddim", *small]) == 0
    scored = ["--config.likelihood.num_images=2", "--config.likelihood.rtol=1e-2", _pixels(tmp_path)]
    scored += ["--config.likelihood.method=both", "--config.likelihood.bound_terms=2"]
    assert main(["--mode", "likelihood", "--workdir", str(run), *scored]) == 0
    assert main(["--mode", "report", "--workdir", str(run)]) == 0
    back = tmp_path / "back"
    assert convert("--to", "diffusers", back, "--workdir", run) == 0
    assert json.loads((back / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    x, before = torch.randn(2, 1, 8, 8), UNet2DModel.from_pretrained(folder)
    after = UNet2DModel.from_pretrained(back / "unet")
    with torch.no_grad():
        torch.testing.assert_close(after.eval()(x, 7).sample, before.eval()(x, 7).sample)


def test_it_trains_on_with_any_data_and_settings(folder, tmp_path, refused, capsys):
    """From then on it is a run like any other."""
    run = tmp_path / "run"
    assert convert("--from", "diffusers", folder, "--workdir", run) == 0
    train = ["--mode", "train", "--workdir", str(run)]
    assert "the network is for samples of shape (1, 8, 8), 256 grey levels" in refused(main(train))
    assert "model.dropout is 0.0 there and 0.1 here" in refused(main([*train, "--config.model.dropout=0.1"]))
    settings = ("learning_rate=1e-6", "warmup_steps=0", "batch_size=4", "held_out=4", "ema_decay=0.5")
    train += [_pixels(tmp_path), *(f"--config.training.{setting}" for setting in settings)]
    before = checkpoint.latest(run).model
    assert main([*train, "--config.training.steps=2"]) == 0
    assert "resuming" in capsys.readouterr().out
    trained = checkpoint.latest(run)
    assert trained.step == 2
    for name, weights in trained.model.items():  # Adam's steps are as long as the learning rate
        torch.testing.assert_close(weights, before[name], rtol=0, atol=3e-6)
    assert any(not torch.equal(trained.model[name], before[name]) for name in before)
    assert main(["--mode", "train", "--workdir", str(run), "--config.training.steps=3"]) == 0
    assert checkpoint.latest(run).step == 3
    changed = main([*train, "--config.training.batch_size=2"])
    assert "training.batch_size is 4 there and 2 here" in refused(changed)
    scored = ["--mode", "likelihood", "--workdir", str(run)]
    assert "--config.data.flip cannot change after training" in refused(
        main([*scored, "--config.data.flip=true"])
    )
    assert "cannot change" not in refused(main([*scored, "--config.data.path=none.npy"]))
    not_tracked = refused(main([*scored, "--config.sampling.ema=0.999"]))
    assert "sampling.ema must be an average that was kept in training, 0.5" in not_tracked


def _pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    return f"--config.data.path={tmp_path / 'images.npy'}"


def test_bad_input(folder, tmp_path, refused):
    run = tmp_path / "run"
    assert "one of --from=score_sde_pytorch|diffusers|" in refused(convert(folder, "--workdir", run))
    unknown = convert("--from", "jax", folder, "--workdir", run)
    assert "unknown format 'jax'; choose one of" in refused(unknown)
    assert "needs the path" in refused(convert("--from", "diffusers", "--workdir", run))
    assert "does not exist" in refused(convert("--from", "diffusers", tmp_path / "no", "--workdir", run))
    wrong = convert("--from", "guided_diffusion", folder / "config.json", "--workdir", run)
    assert "it holds more than tensors and numbers, or is damaged" in refused(wrong)
    assert not run.exists()
    assert convert("--from", "diffusers", folder, "--workdir", run) == 0
    assert checkpoint.exists(run)
    assert "is not empty" in refused(convert("--from", "diffusers", folder, "--workdir", run))
    assert "is there already" in refused(convert("--to", "diffusers", folder, "--workdir", run))
    dry = convert("--from", "diffusers", folder, "--workdir", tmp_path / "other", "--dry_run")
    assert "--dry_run has no meaning" in refused(dry)


def test_classes(tmp_path, refused):
    """A network with classes draws the class that is asked for, each from the same noise."""
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8, num_class_embeds=3,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "theirs")
    run = str(tmp_path / "run")
    assert convert("--from", "diffusers", tmp_path / "theirs", "--workdir", run) == 0
    draw = ["--mode", "sample", "--workdir", run, "--sampler", "ddim", "--nfe", "3"]
    for label in ("0", "2", "2"):
        draw_one = ["--config.sampling.num_samples=2", f"--config.sampling.label={label}"]
        assert main([*draw, *draw_one]) == 0
    first, second, again = (
        np.load(tmp_path / "run" / "samples" / f"ddim{suffix}.npz")["samples"] for suffix in ("", "-2", "-3")
    )
    assert np.array_equal(second, again) and not np.array_equal(first, second)
    wrong = main([*draw, "--config.sampling.label=3"])
    assert "one of the network's 3 classes, 0 to 2, got 3" in refused(wrong)
