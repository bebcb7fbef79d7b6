"""Image embeddings in data sets: conditions of a decoder, or samples of a prior."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from score_diffusion.run.builders.encoders import load_contrastive_encoders
from score_diffusion.run.config import read_config
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo, read_data_info
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.encoded_data.embeddings import (
    ContrastiveEncoders,
    of_embeddings,
    with_embeddings,
    with_unit_entries,
)
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main

IMAGES = 40


@pytest.fixture
def dataset() -> Dataset:
    return load_dataset(DataOptions(name="single_shapes", num_images=IMAGES))


def image_embedding(x: Tensor) -> Tensor:
    """The mean of each channel, and 1."""
    return with_unit_entries(torch.cat([x.mean((2, 3)), torch.ones(len(x), 1)], 1))


def text_embedding(ids: Tensor) -> Tensor:
    return with_unit_entries(torch.stack([ids.float().mean(1), *ids[:, :3].float().T], 1))


def make_encoders(dataset: Dataset, folder: Path, weights: str = "a") -> ContrastiveEncoders:
    folder.mkdir(exist_ok=True)
    return ContrastiveEncoders(folder, weights, image_embedding, text_embedding, DataInfo.of(dataset))


def test_embeddings_have_entries_of_unit_size():
    vectors = with_unit_entries(torch.randn(5, 9, dtype=torch.float64))
    torch.testing.assert_close(vectors.square().mean(1), torch.ones(5, dtype=torch.float64))


def test_a_decoder_is_conditioned_on_the_embeddings_of_its_images(dataset: Dataset, tmp_path: Path):
    data = with_embeddings(dataset, make_encoders(dataset, tmp_path / "run"))
    assert data.train is dataset.train and data.vocabulary is None and data.condition_sizes == {"vector": 4}
    for images, conditions in ((data.train, data.conditions), (data.test, data.test_conditions)):
        expected = image_embedding(2 * images[:].float() / 255 - 1)
        torch.testing.assert_close(conditions["vector"], expected, rtol=1e-5, atol=1e-6)


def test_a_prior_has_embeddings_as_samples_and_captions_as_conditions(dataset: Dataset, tmp_path: Path):
    data = of_embeddings(dataset, make_encoders(dataset, tmp_path / "run"))
    expected = image_embedding(2 * dataset.train[:].float() / 255 - 1)
    assert data.shape == (4,) and data.levels is None and data.scaling.stored_to_user(expected) is expected
    torch.testing.assert_close(data.train, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(data.conditions["text"], dataset.conditions["text"])
    torch.testing.assert_close(data.conditions["vector"], text_embedding(dataset.conditions["text"]))
    torch.testing.assert_close(
        data.test_conditions["vector"], text_embedding(dataset.test_conditions["text"])
    )
    assert data.condition_sizes == {"vector": 4, "text": dataset.vocabulary.size}


def test_other_weights_and_another_use_are_other_data(dataset: Dataset, tmp_path: Path):
    encoders = make_encoders(dataset, tmp_path / "run")
    other = make_encoders(dataset, tmp_path / "run", "b")
    digests = {
        make(dataset, e).digest for make in (with_embeddings, of_embeddings) for e in (encoders, other)
    }
    assert len(digests) == 4
    assert with_embeddings(dataset, other).encoders == {"encoder": "b"}


def test_foreign_data_are_refused(dataset: Dataset, tmp_path: Path):
    encoders = make_encoders(dataset, tmp_path / "run")
    larger = load_dataset(DataOptions(name="single_shapes", num_images=IMAGES, image_size=(24, 24)))
    with pytest.raises(
        UserError, match=r"are for samples of shape \(3, 16, 16\).* and the data are .*24, 24"
    ):
        with_embeddings(larger, encoders)
    with pytest.raises(UserError, match="data.embeddings=samples needs images with captions, and 'single"):
        of_embeddings(replace(dataset, vocabulary=None), encoders)
    others = replace(dataset.vocabulary, words=("red", "square"))
    with pytest.raises(UserError, match="were trained on captions of other words than those of 'single"):
        of_embeddings(replace(dataset, vocabulary=others), encoders)


SMALL = (
    *("--config.training.steps=4", "--config.training.batch_size=8", "--config.data.num_images=40"),
    *("--config.training.held_out=8", "--config.data.name=single_shapes"),
)
UNET = (
    *("--config.model.channels=8", "--config.model.multipliers=1,", "--config.model.blocks_per_level=1"),
    *("--config.model.heads=2", "--config.model.attention_levels=()"),
)
PRIOR = (
    *("--config.model.name=prior", "--config.model.width=16", "--config.model.depth=1"),
    *("--config.model.prediction=x0", "--config.training.weighting=x0", "--config.data.embeddings=samples"),
)


def train(workdir: Path, *arguments: str) -> int:
    return main(["--mode", "train", "--workdir", str(workdir), *SMALL, *arguments])


def sample(workdir: Path, *arguments: str) -> int:
    few = ("--config.sampling.num_samples=3", "--nfe", "4")
    return main(["--mode", "sample", "--workdir", str(workdir), *few, *arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directories towers, prior and decoder, each trained for four steps."""
    folder = tmp_path_factory.mktemp("unclip")
    assert train(folder / "towers", "--config", "clip_shapes", *UNET) == 0
    encoder = f"--config.data.encoder={folder / 'towers'}"
    conditional = "--config.training.conditional=True"
    assert train(folder / "prior", "--config", "vpsde", encoder, conditional, *PRIOR) == 0
    assert train(folder / "decoder", "--config", "vpsde", encoder, conditional, *UNET) == 0
    return folder


def test_a_prior_draws_embeddings_under_a_prompt(runs: Path):
    config, info = read_config(runs / "prior"), read_data_info(runs / "prior")
    assert info.shape == (64,) and config.model.vector_dim == 64
    assert config.model.encoder_words == info.vocabulary.size
    assert sample(runs / "prior", "--prompt", "a small red square") == 0
    encoders = load_contrastive_encoders(str(runs / "towers"), info)
    text = encoders.encode_text(info.vocabulary.encode(["a small red square"]))
    with np.load(runs / "prior/samples/eabm.npz") as file:
        assert file["samples"].shape == (3, 64)
        np.testing.assert_allclose(file["cond_vector"], text.expand(3, 64), rtol=1e-6)


def test_a_decoder_draws_images_under_held_out_embeddings(runs: Path):
    assert sample(runs / "decoder") == 0
    encoders = load_contrastive_encoders(str(runs / "towers"), read_data_info(runs / "decoder"))
    held_out = load_dataset(DataOptions(name="single_shapes", num_images=40)).test[:3]
    with np.load(runs / "decoder/samples/eabm.npz") as file:
        expected = encoders.encode(2 * held_out.float() / 255 - 1)
        np.testing.assert_allclose(file["cond_vector"], expected, rtol=1e-4, atol=1e-4)
        assert file["samples"].shape == (3, 3, 16, 16)


def test_what_does_not_fit_is_refused_in_one_sentence(
    runs: Path, tmp_path: Path, refused: Callable[[int], str], trained: Path
):
    message = refused(sample(runs / "prior", "--prompt", "a small purple square"))
    assert "has 'purple', which no training caption had" in message
    assert "--prompt is empty" in refused(sample(runs / "prior", "--prompt", " "))
    other = tmp_path / "towers"
    assert train(other, "--config", "clip_shapes", *UNET, "--config.seed=1") == 0
    encoder = f"--config.data.encoder={other}"
    message = refused(sample(runs / "prior", "--prompt", "a red circle", encoder))
    assert "are not those that the run was trained with: restore them, or name the run" in message
    again = shutil.copytree(runs / "decoder", tmp_path / "decoder")
    message = refused(train(Path(again), "--config.training.steps=6", encoder))
    assert "are not those that the run was trained with" in message
    message = refused(train(tmp_path / "new", "--config", "vpsde", f"--config.data.encoder={trained}"))
    assert "holds no encoders of images and captions without noise: train some by" in message
    large = ("--config.data.image_size=24", f"--config.data.encoder={runs / 'towers'}")
    assert "are for samples of shape (3, 16, 16)" in refused(
        train(tmp_path / "l", "--config", "vpsde", *large)
    )
