"""Training in the latent space of an autoencoder, and everything that is done with such a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from score_diffusion import load_run
from score_diffusion.run.builders.data import load_run_data
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import load_config, read_config, with_values
from score_diffusion.run.data.info import DataInfo, read_data_info
from score_diffusion.run.data.load import load_arrays
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.encoded_data.cache import Encoder
from score_diffusion.run.encoded_data.latent_space import LatentSpace
from score_diffusion.run.encoded_data.latents import in_latent_space
from score_diffusion.run.inference.sample_files import draw
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.main import main
from score_diffusion.samplers import make_sampler
from score_diffusion.sde_lib import VPSDE, GaussianMixture

FEW = "--config.training.steps=4", "--config.training.batch_size=8", "--config.training.checkpoint_every=2"


class Linear(nn.Module):
    """An autoencoder z = W x, x = U z of points in the shape of images (1, 2, 2)."""

    factor = 2

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W = nn.Parameter(torch.randn(2, 4, generator=generator))
        self.U = nn.Parameter(torch.randn(4, 2, generator=generator))

    def encode(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.W.T).reshape(-1, 2, 1, 1)

    def decode(self, z: Tensor) -> Tensor:
        return (z.flatten(1) @ self.U.T).reshape(-1, 1, 2, 2)


@pytest.mark.slow
def test_decoded_samples_of_gaussian_data_have_the_law_of_the_closed_form(tmp_path: Path):
    """x ~ N(m, S) has latents N(W m, W S Wᵀ), and decoded samples U W S Wᵀ Uᵀ, in standardized units of x."""
    rng = np.random.default_rng(0)
    A, m = rng.normal(size=(4, 4)), 5 * rng.normal(size=4)
    x = (rng.normal(size=(6000, 4)) @ A.T + m).reshape(-1, 1, 2, 2)
    options = DataOptions(layout="channels_first")
    dataset = load_arrays((x[:5000], x[5000:]), options)
    linear = Linear()
    space = LatentSpace(linear, dataset.scaling)
    latents = in_latent_space(dataset, Encoder(tmp_path, "linear", space.encode), options)

    W, U = (weights.detach().double().numpy() for weights in (linear.W, linear.U))
    (shift,), (scale,) = dataset.scaling.shift, dataset.scaling.scale
    mean, cov = W @ ((x[:5000].reshape(-1, 4).mean(0) - shift) / scale), W @ A @ A.T @ W.T / scale**2
    codes = latents.scaling.stored_to_user(latents.train).reshape(-1, 2).numpy()
    np.testing.assert_allclose(codes.mean(0), mean, atol=1e-5)
    np.testing.assert_allclose(np.cov(codes.T), cov, rtol=0.1, atol=0.1)
    pooled = (np.trace(np.cov(codes.T, bias=True)) / 2 + mean.var()) ** 0.5
    assert latents.scaling.scale == pytest.approx((pooled,), rel=1e-5)  # measured over all elements

    (z_shift,), (z_scale,) = latents.scaling.shift, latents.scaling.scale
    law = GaussianMixture(
        torch.tensor((mean - z_shift) / z_scale).reshape(1, 2, 1, 1),
        torch.tensor(cov / z_scale**2)[None],
        torch.ones(1),
    )
    sde = VPSDE()
    trained = TrainedModel(law.score(sde), sde, DataInfo.of(latents), 0, 1e-3, latent_space=space)
    sampler = make_sampler("eabm", sde, 20, denoise=True)
    ((samples, _),) = draw(trained, sampler, range(6000), 0, 6000)
    assert samples.shape == (6000, 1, 2, 2)
    flat = samples.reshape(-1, 4)
    np.testing.assert_allclose(
        flat.mean(0), scale * (U @ mean) + shift, atol=0.05 * scale * abs(U @ mean).max()
    )
    expected = scale**2 * U @ cov @ U.T
    np.testing.assert_allclose(np.cov(flat.T), expected, atol=0.06 * abs(expected).max())

    inputs = trained.model_inputs(dataset.test)
    torch.testing.assert_close(inputs, latents.test)
    torch.testing.assert_close(trained.from_user(dataset.scaling.stored_to_user(dataset.test)), latents.test)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("autoencoder") / "run"
    small = "--config.model.channels=8", "--config.training.preview_samples=0"
    command = ["--mode", "train", "--config", "autoencoder_digits", "--workdir", str(run), *FEW, *small]
    assert main(command) == 0
    return run


def train(workdir: Path, tiny: str, autoencoder: Path, *arguments: str) -> int:
    given = ["--mode", "train", "--config", tiny, "--workdir", str(workdir), *FEW]
    return main([*given, f"--config.data.autoencoder={autoencoder}", *arguments])


TINY = str(Path(__file__).parent / "tiny.py")


@pytest.fixture(scope="module")
def latent(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("latent") / "run"
    assert train(run, TINY, autoencoder, "--config.training.conditional=True") == 0
    return run


@pytest.fixture
def run(latent: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(latent, tmp_path / "run"))


def test_the_run_records_its_latents(latent: Path, autoencoder: Path):
    info, config = read_data_info(latent), read_config(latent)
    assert info.shape == (2, 4, 4) and info.decoded.shape == (1, 8, 8) and info.decoded.levels == 17
    assert config.data.autoencoder == str(autoencoder.resolve())
    codes = load_run_data(config.data, info).train
    assert codes.std() == pytest.approx(1, abs=1e-3) and codes.mean() == pytest.approx(0, abs=1e-5)
    assert (latent / "samples/step_00000004.png").exists()


def test_samples_are_decoded_in_every_form(run: Path):
    save = "--config.sampling.save=npz,grid,png,gif,safetensors"
    assert main(["--mode", "sample", "--workdir", str(run), save]) == 0
    with np.load(run / "samples/eabm.npz") as file:
        samples = file["samples"]
    assert samples.shape == (5, 1, 8, 8)
    levels = (samples + 1) * 8
    np.testing.assert_allclose(levels, levels.round(), atol=1e-5)  # the grey levels of the data
    python = load_run(run).sample(5)
    assert np.array_equal(python.samples, samples) and python.data.shape == (1, 8, 8)
    assert len(list((run / "samples/eabm").glob("*.png"))) == 5 and (run / "samples/eabm.gif").exists()
    space = load_run(run)._models.unconditioned().latent_space
    assert isinstance(space, LatentSpace)


def test_batches_decide_no_decoded_sample(run: Path):
    for size in (2, 5):
        command = ["--mode", "sample", "--workdir", str(run), f"--config.sampling.batch_size={size}"]
        assert main(command) == 0
    with np.load(run / "samples/eabm.npz") as a, np.load(run / "samples/eabm-2.npz") as b:
        assert np.array_equal(a["samples"], b["samples"])


@pytest.mark.slow
def test_likelihood_is_named_for_what_it_is(run: Path, capsys):
    assert main(["--mode", "likelihood", "--workdir", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "negative log-likelihood of latents, nats" in printed and "bits/dim " not in printed.split("\n")[1]
    record = json.loads((run / "likelihood.json").read_text())
    assert "bits_per_dim" not in record and record["negative_log_likelihood_of_latents"]
    images = np.random.default_rng(0).integers(0, 17, (2, 8, 8), np.uint8)
    assert load_run(run).log_likelihood(images, settings={"rtol": 1e-2, "atol": 1e-2}).log_prob.shape == (2,)


def test_samples_are_measured_against_the_images(run: Path):
    assert main(["--mode", "evaluate", "--workdir", str(run), "--config.sampling.num_samples=6"]) == 0
    record = json.loads((run / "evaluation.json").read_text())
    assert record["measured_on"] == "raw pixels" and record["num_reference"] == 899


@pytest.mark.slow
def test_paths_and_codes_go_through_the_decoder(run: Path):
    model = load_run(run)
    images = np.random.default_rng(0).integers(0, 17, (2, 8, 8), np.uint8)
    codes = model.encode(images, rtol=1e-4, atol=1e-4)
    assert codes.shape == (2, 2, 4, 4)
    trained = model._models.unconditioned()
    x = trained.model_inputs(torch.from_numpy(images)[:, None])
    there_and_back = model.decode(codes, rtol=1e-4, atol=1e-4).samples
    np.testing.assert_allclose(there_and_back, trained.to_user(x).numpy(), atol=0.3)  # neighbouring levels
    pairs = "--config.interpolate.num_pairs=1", "--config.interpolate.num_samples=3"
    assert main(["--mode", "interpolate", "--workdir", str(run), *pairs]) == 0
    with np.load(run / "interpolated/paths.npz") as file:
        assert file["samples"].shape == (1, 3, 1, 8, 8) and file["codes"].shape == (1, 2, 2, 4, 4)


@pytest.mark.slow
def test_a_training_that_was_stopped_is_resumed_bit_for_bit(
    autoencoder: Path, tmp_path: Path, same: Callable
):
    constant = "--config.training.schedule=constant"
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(whole, TINY, autoencoder, constant) == 0
    assert train(stopped, TINY, autoencoder, constant, "--config.training.steps=2") == 0
    assert main(["--mode", "train", "--workdir", str(stopped), "--config.training.steps=4"]) == 0
    a, b = (checkpoint.at_step(path, 4) for path in (whole, stopped))
    assert same(a.model, b.model) and same(a.optimizer, b.optimizer)


@pytest.mark.slow
def test_the_autoencoder_may_move_but_not_change(run: Path, autoencoder: Path, tmp_path: Path, refused):
    moved = Path(shutil.copytree(autoencoder, tmp_path / "moved"))
    sample = ["--mode", "sample", "--workdir", str(run)]
    assert main([*sample, f"--config.data.autoencoder={moved}"]) == 0
    assert main(["--mode", "train", "--workdir", str(moved), "--config.training.steps=5"]) == 0
    message = refused(main([*sample, f"--config.data.autoencoder={moved}"]))
    assert f"the weights in {moved} are not those that the run was trained with" in message


def test_a_network_of_latents_is_written_with_a_word_about_its_decoder(
    autoencoder: Path, tmp_path: Path, capsys
):
    run = tmp_path / "run"
    assert train(run, TINY, autoencoder, "--config.model.norm_groups=4") == 0
    assert main(["--mode", "convert", "--to", "diffusers", str(tmp_path / "new"), "--workdir", str(run)]) == 0
    assert f"draws latents, which the autoencoder of {autoencoder} decodes" in capsys.readouterr().out


def test_tiles_are_for_latents(run: Path, trained: Path, refused):
    sample = ["--mode", "sample", "--config.sampling.tile=4", "--workdir"]
    assert main([*sample, str(run)]) == 0
    assert "sampling.tile=4 is for runs that were trained on latents" in refused(
        main([*sample, str(trained)])
    )


REFUSED = {
    "none": ("sample", "", "was trained on the latents of an autoencoder, and data.autoencoder names none"),
    "missing": ("sample", "nowhere", "nowhere holds no run: train an autoencoder there"),
    "another network": (
        "sample",
        "{run}",
        "holds a unet, and data.autoencoder needs the run of an",
    ),
    "restoring": (
        "restore",
        "{autoencoder}",
        "measurements are of pixels, and this run's model works on",
    ),
}


@pytest.mark.parametrize(("mode", "value", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_done(mode: str, value: str, message: str, run: Path, autoencoder: Path, refused):
    given = value.format(run=run, autoencoder=autoencoder)
    assert message in refused(
        main(["--mode", mode, "--workdir", str(run), f"--config.data.autoencoder={given}"])
    )


def test_a_model_of_pixels_takes_no_autoencoder(trained: Path, autoencoder: Path, refused):
    command = ["--mode", "sample", "--workdir", str(trained), f"--config.data.autoencoder={autoencoder}"]
    assert "this one was not: leave it out" in refused(main(command))


def test_an_autoencoder_of_other_data_is_refused(tmp_path: Path, autoencoder: Path, refused):
    np.savez(tmp_path / "x.npz", x_train=np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8))
    other = f"--config.data.path={tmp_path / 'x.npz'}"
    assert f"the autoencoder of {autoencoder} is for" in refused(
        train(tmp_path / "run", TINY, autoencoder, other)
    )


def test_latents_may_be_left_unscaled_and_the_dry_run_writes_nothing(
    autoencoder: Path, tmp_path: Path, snapshot
):
    run = Path(shutil.copytree(autoencoder, tmp_path / "autoencoder"))
    before = snapshot(run)
    assert train(tmp_path / "run", TINY, run, "--config.data.standardize=none", "--dry_run") == 0
    assert snapshot(run) == before and not (tmp_path / "run").exists()
    config = with_values(load_config("vpsde"), {"data.autoencoder": str(run), "data.standardize": "none"})
    latents = load_run_data(config.data)
    assert not latents.scaling.standardizes and len(list((run / "encoded").iterdir())) == 2


def test_the_data_mode_shows_reconstructions(autoencoder: Path, tmp_path: Path, capsys):
    command = ["--mode", "data", "--workdir", str(tmp_path), f"--config.data.autoencoder={autoencoder}"]
    assert main(command) == 0
    assert "samples of shape (2, 4, 4), latents of 17 grey levels" in capsys.readouterr().out
    assert (tmp_path / "data.png").exists()
