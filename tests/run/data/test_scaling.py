from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.build import build_sde
from score_diffusion.run.config import load_config
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo, read_data_info, write_data_info
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Moments, Scaling
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.scoring import (
    GaussianDequantization,
    Scores,
    UniformDequantization,
    bound_held_out,
    score_held_out,
)
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.main import main
from score_diffusion.sde_lib import GaussianMixture


def load(path: Path, array: np.ndarray, **keys: object) -> Dataset:
    np.save(path, array)
    return load_dataset(DataOptions(path=str(path), **keys))


def test_images_go_to_the_model_and_back_unchanged():
    digits = load_digits()
    scaling = digits.scaling
    u = 0.999 * torch.rand(digits.test.shape)  # at u = 1 less a rounding error the next bin begins
    x, pixels = scaling.stored_to_model(digits.test, u), scaling.stored_to_model(digits.test)
    assert pixels.min() == -1 and pixels.max() == 1
    assert x.dtype == torch.float32 and (x - pixels).abs().max() <= scaling.bin_width
    assert torch.equal(scaling.model_to_user(x), pixels)
    assert torch.equal(scaling.stored_to_user(digits.test), pixels)
    assert scaling.model_to_user(torch.tensor([-9.0, 9.0])).tolist() == [-1, 1]
    assert scaling.bits_offset == -math.log2(2 / 16)


def test_bins_fill_the_line():
    k, ends, scaling = torch.arange(16), torch.tensor([0.0, 1.0], dtype=torch.float64), Scaling(levels=17)
    below, above = (scaling.stored_to_model(k, end.expand(16)) for end in ends)
    torch.testing.assert_close(above[:-1], below[1:])
    torch.testing.assert_close(above - below, torch.full_like(above, scaling.bin_width))


def test_the_toys_are_left_alone():
    scaling = load_dataset(DataOptions(name="moons", num_points=100)).scaling
    x = torch.randn(3, 2)
    assert scaling.stored_to_model(x, torch.rand(3, 2)) is x
    assert scaling.stored_to_user(x) is x and scaling.model_to_user(x) is x
    assert scaling.bits_offset == 0 and not scaling.standardizes


def test_moments_of_chunks_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(size=(1000, 3)) * [1e-3, 1, 1e5] + [1e6, 0, -3]
    moments = Moments((0,))
    for chunk in np.array_split(values, [1, 2, 500]):
        moments.add(chunk)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.std, values.std(0), rtol=1e-8)
    assert (moments.low == values.min(0)).all() and (moments.high == values.max(0)).all()


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_each_column_of_points_has_mean_0_and_deviation_1(memory_gib: float, tmp_path: Path):
    points = np.random.default_rng(0).normal(size=(400, 3)) * [1e3, 1e-3, 1] + [5e3, 0, 1.7e9]
    data = load(tmp_path / "a.npy", points, memory_gib=memory_gib)
    train, test = data.train[:], data.test[:]
    assert train.dtype == torch.float32 and train.double().mean(0).abs().max() < 1e-5
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(3), rtol=1e-5, atol=0)
    # In the user's units they are what they were, time stamps to 7 digits of their spread, too.
    back = data.scaling.stored_to_user(torch.cat([train, test]))
    assert back.dtype == torch.float64
    np.testing.assert_allclose(np.sort(back, 0), np.sort(points, 0), rtol=0, atol=1e-6 * points.std(0).max())
    spread = (np.sort(back, 0) - np.sort(points, 0)) / points.std(0)
    assert np.abs(spread).max() < 1e-6
    assert data.scaling.bits_offset == pytest.approx(np.log2(data.scaling.scale).mean())


@pytest.mark.parametrize(
    ("shape", "layout", "stored"),
    [
        ((30, 1, 16), "auto", (1, 16)),
        ((30, 16, 2), "auto", (2, 16)),
        ((30, 12, 16), "channels_first", (12, 16)),
        ((30, 12, 16), "channels_last", (16, 12)),
        ((30, 3, 6, 5), "auto", (3, 6, 5)),
        ((30, 6, 5, 3), "auto", (3, 6, 5)),
        ((30, 1, 6, 5, 7), "auto", (1, 6, 5, 7)),
        ((30, 6, 5, 7, 2), "auto", (2, 6, 5, 7)),
    ],
    ids=str,
)
def test_signals_images_and_fields(shape: tuple, layout: str, stored: tuple, tmp_path: Path):
    """One number each standardizes them, and their channels come first."""
    values = np.random.default_rng(0).gamma(2.0, size=shape).astype(np.float32) * 40 + 7
    data = load(tmp_path / "a.npy", values, layout=layout)
    streamed = load(tmp_path / "a.npy", values, layout=layout, memory_gib=0.0)
    assert data.shape == streamed.shape == stored and len(data.scaling.shift) == 1
    assert torch.equal(streamed.train[:], data.train)
    assert abs(data.train.mean()) < 1e-4 and abs(data.train.std() - 1) < 1e-2
    back = data.scaling.stored_to_user(torch.cat([data.train, data.test]))
    assert back.dtype == torch.float32
    first = values if shape[1:] == stored else np.moveaxis(values, -1, 1)
    np.testing.assert_allclose(
        np.sort(back.flatten(1).sum(1)), np.sort(first.reshape(30, -1).sum(1)), rtol=1e-5
    )
    known = {tuple(np.round(sample.ravel(), 2)) for sample in first}
    assert all(tuple(np.round(sample.ravel(), 2)) in known for sample in back.numpy())


def test_channels_of_different_units(tmp_path: Path):
    values = np.random.default_rng(0).normal(size=(50, 2, 32)) * [[[1e3], [1e-3]]]
    each = load(tmp_path / "a.npy", values, standardize="per_channel")
    torch.testing.assert_close(each.train.std((0, 2)), torch.ones(2), rtol=1e-3, atol=0)
    assert load(tmp_path / "a.npy", values).train[:, 1].std() < 1e-5
    bare = load(tmp_path / "a.npy", values, standardize="none")
    assert not bare.scaling.standardizes and bare.train[:, 0].std() > 900
    with pytest.raises(UserError, match="data.standardize must be one of auto, per_channel, none, got 'off'"):
        DataOptions(standardize="off")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((20, 2), 5.0), "constant columns.*column 0 is always 5, column 1 is always 5"),
        (np.random.default_rng(0).normal(size=(20, 3)) * [1, 0, 1] + 0.1, "column 1 is always 0.1"),
        (np.full((20, 1, 8), -2.5), "is constant, all its numbers are -2.5"),
        (0.1 + np.arange(20)[:, None] % 2 * 1.4e-17 + np.zeros((20, 2)), "column 0 is always 0.1"),
        (np.zeros((20, 12, 12)), r"set --config.data.layout=channels_first or channels_last"),
        (np.zeros((20, 3, 2)), r"set --config.data.layout"),
        (np.zeros((20, 1, 2, 2, 2, 2)), r"must have the shape of points \(N, D\)"),
    ],
    ids=str,
)
def test_what_cannot_be_standardized_is_named(array: np.ndarray, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.npy", array)


def test_data_that_are_read_again_take_the_scaling_of_the_run(tmp_path: Path):
    values = np.random.default_rng(0).normal(size=(50, 2)) + 3
    np.save(tmp_path / "a.npy", values)
    of_run = Scaling(None, (1.0, 2.0), (3.0, 4.0), "float64")
    data = load_dataset(DataOptions(path=str(tmp_path / "a.npy")), of_run)
    assert data.scaling == of_run and data.train.mean() > 0.1
    write_data_info(tmp_path, DataInfo.of(data))
    assert read_data_info(tmp_path) == DataInfo.of(data)


@pytest.mark.slow
def test_likelihoods_are_of_the_users_units(tmp_path: Path):
    """The exact score gives the density of the data's own law; every figure is that of standardized numbers
    plus the sum of log(scale).
    """
    data = load(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(2000, 2)) * [20, 0.03] + 9)
    config = load_config("vpsde")
    config.sde.N = 40
    sde = build_sde(config.sde)
    score = GaussianMixture(torch.zeros(1, 2), torch.ones(1)).score(sde)
    trained = TrainedModel(score, sde, DataInfo.of(data), 0, 1e-5)
    held_out = data.test[:60]
    test = data.scaling.stored_to_user(held_out).numpy()
    (mean, std), log_scale = (
        np.array([data.scaling.shift, data.scaling.scale]),
        np.log(data.scaling.scale).sum(),
    )

    def scores(model: TrainedModel, dequantize: Callable = UniformDequantization) -> Scores:
        options = dict(batch_size=100, seed=0, divergence="exact")
        return score_held_out(model, held_out, dequantize(model, 0), **options)

    truth = (0.5 * ((test - mean) / std) ** 2 + np.log(std) + 0.5 * math.log(2 * math.pi)).sum(1)
    np.testing.assert_allclose(scores(trained).values, truth, atol=0.01)
    of_bare = replace(trained, data=DataInfo.of(replace(data, scaling=Scaling())))
    for dequantize in (UniformDequantization, GaussianDequantization):
        ours, theirs = scores(trained, dequantize), scores(of_bare, dequantize)
        np.testing.assert_allclose(ours.values - theirs.values, log_scale, rtol=1e-9)
    for terms in (None, 20):
        ours, theirs = (
            bound_held_out(model, held_out, batch_size=100, seed=0, n_terms=terms)
            for model in (trained, of_bare)
        )
        np.testing.assert_allclose(ours.values - theirs.values, log_scale, rtol=1e-9)
        assert ours.mean == pytest.approx(sum(term.mean for term in ours.terms.values()))


@pytest.mark.slow
def test_points_far_from_unit_scale_train_and_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The inputs of a new user: numbers from 5000 to 6000, beside a column of a thousandth."""
    rng = np.random.default_rng(0)
    np.save(
        tmp_path / "mine.npy", np.column_stack([rng.random(400) * 1000 + 5000, rng.normal(size=400) * 1e-3])
    )
    workdir = tmp_path / "run"
    command = ["--workdir", str(workdir), "--config", "toy2d", f"--config.data.path={tmp_path / 'mine.npy'}"]
    assert main(["--mode", "data", *command]) == 0
    printed = capsys.readouterr().out
    assert "range" in printed and "standardized" in printed
    steps = [
        "--config.training.steps=300",
        "--config.training.warmup_steps=20",
        "--config.training.batch_size=128",
    ]
    assert main(["--mode", "train", *command, *steps]) == 0
    run = ["--workdir", str(workdir)]
    assert main(["--mode", "sample", *run, "--config.sampling.num_samples=400"]) == 0
    with np.load(next((workdir / "samples").glob("*.npz"))) as file:
        samples = file["samples"]
    assert np.abs(samples.mean(0) - [5500, 0]).max() < 40 and abs(samples[:, 1].mean()) < 2e-4
    np.testing.assert_allclose(samples.std(0), [288.7, 1e-3], rtol=0.15)
    assert ((samples[:, 0] > 4900) & (samples[:, 0] < 6100)).mean() > 0.95
    assert main(["--mode", "likelihood", *run, "--config.likelihood.divergence=exact"]) == 0
    nats = json.loads((workdir / "likelihood.json").read_text())["negative_log_likelihood"]
    assert nats == pytest.approx(
        math.log(1000) + 0.5 * math.log(2 * math.pi * math.e) + math.log(1e-3), abs=0.5
    )
    assert main(["--mode", "evaluate", *run, "--config.sampling.num_samples=400"]) == 0
    real = json.loads((workdir / "evaluation.json").read_text())["real"]
    assert 0.01 < real["sliced_wasserstein"] < 0.3  # of standardized numbers, not of metres


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 16), (2, 8, 8), (1, 8, 8, 8)], ids=str)
def test_signals_images_and_fields_go_through_all_modes(shape: tuple, cli: Callable, tmp_path: Path):
    values = np.random.default_rng(0).normal(size=(40, *shape)) * 50 + 300
    np.save(tmp_path / "a.npy", values.astype(np.float32))
    path = f"--config.data.path={tmp_path / 'a.npy'}"
    workdir = tmp_path / "run"
    assert cli("data", workdir, path) == 0
    assert cli("train", workdir, path) == 0
    assert cli("sample", workdir) == cli("likelihood", workdir) == cli("evaluate", workdir) == 0
    with np.load(next((workdir / "samples").glob("*.npz"))) as file:
        assert file["samples"].shape == (5, *shape) and 100 < file["samples"].mean() < 500
    assert "negative_log_likelihood" in json.loads((workdir / "likelihood.json").read_text())
    assert (workdir / "samples/step_00000008.png").exists()
