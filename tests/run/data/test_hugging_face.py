"""The package `datasets` is an extra that the tests do without; where it is installed, all of this runs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 6, 9, 3), np.uint8)


def load(name: object, **keys: object) -> Dataset:
    return load_dataset(DataOptions(name=f"hf:{name}", **keys))


def test_without_the_package_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf:ylecun/mnist needs the package datasets: pip install"):
        load("ylecun/mnist")


@pytest.fixture
def hub():
    return pytest.importorskip("datasets")


def images_and_labels(hub: object, rows: slice, **more: list) -> object:
    features = {"image": hub.Image(), "label": hub.ClassLabel(names=["cat", "dog"])}
    images = [Image.fromarray(image) for image in PIXELS[rows]]
    columns = {"image": images, "label": [int(image[0, 0, 0] % 2) for image in PIXELS[rows]], **more}
    features |= {key: hub.Value("string") for key in more}
    return hub.Dataset.from_dict(columns, features=hub.Features(features))


def check(data: Dataset) -> None:
    assert data.shape == (3, 6, 9) and data.levels == 256 and data.classes == ("cat", "dog")
    images = torch.cat([data.train[:], data.test[:]])
    labels = torch.cat([data.labels, data.test_labels])
    assert (images[:, 0, 0, 0] % 2 == labels).all()
    rows = {image.numpy().tobytes() for image in images}
    assert rows == {image.transpose(2, 0, 1).tobytes() for image in PIXELS}


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_splits_images_and_labels(hub: object, memory_gib: float, tmp_path: Path):
    images_and_labels(hub, slice(30)).save_to_disk(tmp_path / "one")
    data = load(tmp_path / "one", memory_gib=memory_gib)
    check(data)
    assert 1 <= len(data.test) <= 10
    parts = {"train": images_and_labels(hub, slice(20)), "validation": images_and_labels(hub, slice(20, 30))}
    hub.DatasetDict(parts).save_to_disk(tmp_path / "two")
    data = load(tmp_path / "two", memory_gib=memory_gib)
    check(data)
    assert torch.equal(data.test[:], torch.from_numpy(PIXELS[20:].transpose(0, 3, 1, 2)))


def test_three_splits(hub: object, tmp_path: Path):
    """The validation set is for the loss during training, the test set for scores; labels stay with both."""
    rows = {"train": slice(20), "valid": slice(20, 25), "test": slice(25, 30)}
    hub.DatasetDict({key: images_and_labels(hub, some) for key, some in rows.items()}).save_to_disk(
        tmp_path / "a"
    )
    data = load(tmp_path / "a")
    for samples, labels, first in (
        (data.validation, data.validation_conditions.get("label"), 20),
        (data.test, data.test_labels, 25),
    ):
        assert torch.equal(samples, torch.from_numpy(PIXELS[first : first + 5].transpose(0, 3, 1, 2)))
        assert labels.tolist() == (PIXELS[first : first + 5, 0, 0, 0] % 2).tolist()


def test_packages_that_run_code_of_a_data_set_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(__version__="2.14.5"))
    with pytest.raises(UserError, match="needs the package datasets 4 or later, got 2.14.5"):
        load("ylecun/mnist")


def test_what_does_not_fit_is_one_sentence(hub: object, tmp_path: Path):
    text = hub.Dataset.from_dict({"text": ["a", "b"]})
    text.save_to_disk(tmp_path / "text")
    with pytest.raises(UserError, match=r"must have one column of images, its columns are text \(Value\)"):
        load(tmp_path / "text")
    hub.DatasetDict(test=text).save_to_disk(tmp_path / "test")
    with pytest.raises(UserError, match="must have a split 'train', it has test"):
        load(tmp_path / "test")
    hub.Dataset.from_dict(
        {"image": [{"bytes": b"no image", "path": None}] * 3}, features=hub.Features(image=hub.Image())
    ).save_to_disk(tmp_path / "broken")
    with pytest.raises(UserError, match="3 of 3 images cannot be read: image 0 of .*broken, split train"):
        load(tmp_path / "broken")
    with pytest.raises(UserError, match="cannot be loaded .*: check the name"):
        load(tmp_path / "nothing")


def test_a_column_of_captions(hub: object, tmp_path: Path):
    """The column `text` is read instead of the labels; a missing caption is named."""
    text = [f"picture {i}" for i in range(30)]
    images_and_labels(hub, slice(30), text=text).save_to_disk(tmp_path / "texts")
    data = load(tmp_path / "texts")
    assert data.classes == () and set(data.conditions) == {"text"}
    rows = {image.transpose(2, 0, 1).tobytes(): i for i, image in enumerate(PIXELS)}
    for image, ids in zip(data.train, data.conditions["text"], strict=True):
        assert data.vocabulary.decode(ids) == f"picture {rows[image.numpy().tobytes()]}"
    images_and_labels(hub, slice(30), text=[*text[:-1], None]).save_to_disk(tmp_path / "none")
    with pytest.raises(UserError, match="the caption of image 29 of .* is empty"):
        load(tmp_path / "none")
