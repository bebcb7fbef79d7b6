"""Data sets in the latent space of another run's network: what is computed, cached, recorded, refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo, read_data_info, write_data_info
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.sources import Stream
from score_diffusion.run.encoded_data.cache import Encoder, check_unchanged, encoded
from score_diffusion.run.encoded_data.latents import in_latent_space
from score_diffusion.run.errors import UserError

FACTOR, OFFSET = 3.0, 1.0


class Halving:
    """An encoder with known codes: the means of 2x2 pixels, times 3, plus 1. Counts what it encodes."""

    def __init__(self) -> None:
        self.samples, self.calls = 0, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.samples, self.calls = self.samples + len(x), self.calls + 1
        return FACTOR * torch.nn.functional.avg_pool2d(x, 2) + OFFSET


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (150, 8, 8), np.uint8)


@pytest.fixture
def dataset(images: np.ndarray, tmp_path: Path) -> Dataset:
    path = tmp_path / "images.npz"
    np.savez(
        path, x_train=images[:120], y_train=np.arange(120) % 3, x_test=images[120:], y_test=np.arange(30) % 3
    )
    return load_dataset(DataOptions(path=str(path), workers=2))


def make_encoder(folder: Path, weights: str = "a") -> tuple[Encoder, Halving]:
    folder.mkdir(exist_ok=True)
    network = Halving()
    return Encoder(folder, weights, network), network


def expected(stored: Tensor) -> np.ndarray:
    x = 2 * stored.double() / 255 - 1
    return (FACTOR * torch.nn.functional.avg_pool2d(x, 2) + OFFSET).numpy()


def test_latents_are_the_codes_standardized_by_the_training_set(dataset: Dataset, tmp_path: Path):
    encoder, _ = make_encoder(tmp_path / "run")
    latents = in_latent_space(dataset, encoder, DataOptions())
    codes = expected(dataset.train)
    assert latents.shape == (1, 4, 4) and latents.levels is None
    assert latents.scaling.shift == pytest.approx((codes.mean(),))
    assert latents.scaling.scale == pytest.approx((codes.std(),))
    np.testing.assert_allclose(latents.train, (codes - codes.mean()) / codes.std(), atol=1e-5)
    np.testing.assert_allclose(
        latents.scaling.stored_to_user(latents.test), expected(dataset.test), atol=1e-5
    )
    assert torch.equal(latents.conditions["label"], dataset.conditions["label"])
    assert latents.decoded is dataset and latents.encoders == {"autoencoder": "a"}


def test_latents_may_be_left_unscaled(dataset: Dataset, tmp_path: Path):
    encoder, _ = make_encoder(tmp_path / "run")
    latents = in_latent_space(dataset, encoder, DataOptions(standardize="none"))
    assert (latents.scaling.shift, latents.scaling.scale) == ((0.0,), (1.0,))
    np.testing.assert_allclose(latents.train, expected(dataset.train), atol=1e-5)


def test_a_run_keeps_its_scale_on_other_data(dataset: Dataset, tmp_path: Path):
    encoder, _ = make_encoder(tmp_path / "run")
    scaling = in_latent_space(dataset, encoder, DataOptions()).scaling
    other = replace(dataset, train=dataset.train // 2, digest="other")
    assert in_latent_space(other, encoder, DataOptions(), scaling).scaling == scaling
    assert in_latent_space(other, encoder, DataOptions()).scaling != scaling


def test_codes_are_computed_once(dataset: Dataset, tmp_path: Path):
    encoder, network = make_encoder(tmp_path / "run")
    first = in_latent_space(dataset, encoder, DataOptions())
    assert network.samples == 150
    again = in_latent_space(dataset, encoder, DataOptions())
    assert network.samples == 150 and torch.equal(first.train, again.train)


@pytest.mark.parametrize("change", ["weights", "data", "a torn file"])
def test_codes_are_computed_again_for(change: str, dataset: Dataset, tmp_path: Path):
    encoder, _ = make_encoder(tmp_path / "run")
    first = in_latent_space(dataset, encoder, DataOptions())
    encoder, network = make_encoder(tmp_path / "run", "b" if change == "weights" else "a")
    if change == "data":
        dataset = replace(dataset, digest="another")
    if change == "a torn file":
        for path in (tmp_path / "run/encoded").iterdir():
            path.write_bytes(path.read_bytes()[:100])
    again = in_latent_space(dataset, encoder, DataOptions())
    assert network.samples == 150 and torch.equal(first.train, again.train)


def test_a_streamed_set_has_the_same_codes(images: np.ndarray, tmp_path: Path):
    for name, part in {"x_train": images[:120], "x_test": images[120:]}.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        np.save(tmp_path / f"data/{name}.npy", part)
    options = DataOptions(path=str(tmp_path / "data"), workers=2)
    whole = in_latent_space(load_dataset(options), make_encoder(tmp_path / "a")[0], options)
    options = replace(options, memory_gib=0.0)
    streamed = in_latent_space(load_dataset(options), make_encoder(tmp_path / "b")[0], options)
    assert isinstance(streamed.train, Stream)
    assert torch.equal(streamed.train[:], whole.train) and streamed.scaling == whole.scaling


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_run_that_cannot_be_written_serves_too(dataset: Dataset, tmp_path: Path, capsys):
    encoder, _ = make_encoder(tmp_path / "run")
    (tmp_path / "run").chmod(0o500)
    codes = encoded(encoder, dataset.test, dataset.scaling, "content", "test")
    np.testing.assert_allclose(codes, expected(dataset.test), atol=1e-5)
    assert "cannot be written" in capsys.readouterr().err


def test_an_interrupted_computation_leaves_no_file(dataset: Dataset, tmp_path: Path):
    (tmp_path / "run").mkdir()
    calls: list[int] = []

    def interrupted(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        encoded(Encoder(tmp_path / "run", "a", interrupted), dataset.train, dataset.scaling, "c", "train")
    assert list((tmp_path / "run/encoded").iterdir()) == []


def test_refusals(dataset: Dataset, tmp_path: Path):
    encoder, _ = make_encoder(tmp_path / "run")
    with pytest.raises(UserError, match="the latents of an image are not mirrored with it"):
        in_latent_space(dataset, encoder, DataOptions(flip=True))
    broken = replace(encoder, encode=lambda x: x / 0, weights="b")
    with pytest.raises(UserError, match="are not finite for some samples"):
        in_latent_space(dataset, broken, DataOptions())
    check_unchanged(encoder, "data.autoencoder", "a")
    check_unchanged(encoder, "data.autoencoder", None)
    with pytest.raises(
        UserError, match="are not those that the run was trained with.*--config.data.autoencoder="
    ):
        check_unchanged(encoder, "data.autoencoder", "b")


def test_a_run_records_what_it_needs_to_decode(dataset: Dataset, tmp_path: Path):
    encoder, _ = make_encoder(tmp_path / "run")
    info = DataInfo.of(in_latent_space(dataset, encoder, DataOptions()))
    write_data_info(tmp_path, info)
    assert read_data_info(tmp_path) == info
    assert info.decoded == DataInfo.of(dataset) and info.encoders == {"autoencoder": "a"}
    assert str(info) == "120 and 30 held-out samples of shape (1, 4, 4), latents of 256 grey levels"


DAMAGE: dict[str, Callable[[dict], object]] = {
    "lacks decoded.shape": lambda record: record["decoded"].pop("shape"),
    "encoders": lambda record: record.update(encoders={"autoencoder": 3}),
    "latents of latents": lambda record: record["decoded"].update(decoded=dict(record["decoded"])),
}


@pytest.mark.parametrize(("words", "damage"), DAMAGE.items())
def test_a_damaged_record_is_refused(words: str, damage: Callable, dataset: Dataset, tmp_path: Path):
    encoder, _ = make_encoder(tmp_path / "run")
    write_data_info(tmp_path, DataInfo.of(in_latent_space(dataset, encoder, DataOptions())))
    record = json.loads((tmp_path / "data.json").read_text())
    damage(record)
    (tmp_path / "data.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"damaged.*{words}"):
        read_data_info(tmp_path)
