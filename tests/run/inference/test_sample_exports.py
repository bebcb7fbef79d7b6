"""Samples in further forms: what is written, and that it shows the samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image, ImageSequence

from score_diffusion import train
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.inference.sample_exports import draw_frames, file_names
from score_diffusion.run.inference.trained_model import SampleConditions, TrainedModel
from score_diffusion.samplers import make_sampler
from score_diffusion.sde_lib import VESDE, VPSDE, Gaussian

ALL = "--config.sampling.save=npz,grid,png,gif,safetensors"


def test_everything_that_is_asked_for_is_written(trained: Path, cli: Callable, capsys):
    assert cli("sample", trained, ALL) == 0
    output, folder = capsys.readouterr().out, trained / "samples"
    with np.load(folder / "eabm.npz") as arrays:
        samples = arrays["samples"]
    pixels = ((samples[:, 0] + 1) * 127.5).round()
    for k in range(5):
        picture = np.asarray(Image.open(folder / f"eabm/00{k}.png").convert("L"))
        assert picture.shape == (8, 8) and np.array_equal(picture, pixels[k])
    film = Image.open(folder / "eabm.gif")
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]
    assert len(frames) == 6  # 4 steps have 5 times; the samples
    assert np.array_equal(frames[-1], np.asarray(Image.open(folder / "eabm.png")))
    assert film.info["duration"] > 1000 and film.info["loop"] == 0
    assert np.array_equal(safetensors.numpy.load_file(folder / "eabm.safetensors")["samples"], samples)
    for name in ("eabm", "eabm.gif", "eabm-path.png", "eabm.safetensors"):
        assert str(folder / name) in output
    assert cli("sample", trained, "--config.sampling.save=png") == 0  # the same settings, no name taken twice
    assert (folder / "eabm-2/004.png").exists() and not (folder / "eabm-2.png").exists()


def test_only_array_and_grid_are_written_by_default(trained: Path, cli: Callable):
    before = {path.name for path in (trained / "samples").iterdir()}
    assert cli("sample", trained) == 0
    assert {path.name for path in (trained / "samples").iterdir()} - before == {"eabm.npz", "eabm.png"}


def test_names_of_classes_become_names_of_files():
    score = Gaussian(torch.zeros(2), torch.tensor(1.0)).score(VPSDE())
    conditions = SampleConditions.of_classes([1, 0], ("a/b", "..\\c d"))
    model = TrainedModel(score, VPSDE(), DataInfo("x", (2,), Scaling(), 1, 1), 1, 1e-5, conditions=conditions)
    assert file_names(model, 2) == ["000-.._c_d", "001-a_b"]


def test_pictures_of_points_are_refused_before_anything_is_drawn(tmp_path: Path, refused: Callable):
    from score_diffusion.run.main import main

    settings = {"training.steps": 1, "training.batch_size": 8, "training.preview_samples": 0}
    train("toy2d", tmp_path / "run", settings)
    arguments = ["--mode", "sample", "--workdir", str(tmp_path / "run"), "--nfe", "4"]
    code = main([*arguments, "--config.sampling.save=png"])
    assert "a file for each image, and the samples are points" in refused(code)
    assert main([*arguments, "--config.sampling.save=gif"]) == 0
    with Image.open(tmp_path / "run/samples/eabm.gif") as film:
        assert film.n_frames == 5  # type: ignore[attr-defined]
    assert refused(main([*arguments, "--config.sampling.save=jpg"])).endswith(
        "separated by commas, got 'jpg', did you mean 'png'?"
    )


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["VP", "VE"])
def test_frames_keep_the_scale_of_unit_data_and_end_with_the_samples(sde):
    """In the user's units, from noise of the data's width to the data."""
    shift, scale = 10.0, 2.0
    score = Gaussian(torch.zeros(1), torch.tensor(1.0)).score(sde)
    data = DataInfo("x", (1,), Scaling(None, (shift,), (scale,), "float64"), 1, 1)
    sampler = make_sampler("eabm", sde, 12, denoise=True)
    frames = draw_frames(TrainedModel(score, sde, data, 1, 1e-5), sampler, 0, 400)
    assert frames.shape == (13, 400, 1) and frames.dtype == np.float64
    np.testing.assert_allclose(frames.mean((1, 2)), shift, atol=4 * scale / 20)
    np.testing.assert_allclose(frames.std((1, 2)), scale, rtol=0.15)
    result = sampler(score, (400, 1), 0)
    np.testing.assert_allclose(frames[-1], data.scaling.model_to_user(result.samples).numpy())
