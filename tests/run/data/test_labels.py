from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.errors import UserError
from tests.run.data.helpers import PIXELS, load


def labelled(path: Path, **labels: object) -> Dataset:
    np.savez(path / "a.npz", x_train=PIXELS[:20], x_test=PIXELS[20:], **labels)
    return load(path / "a.npz")


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (np.array([10**18 + 7, 3, 1_700_000_000]), ("3", "1700000000", "1000000000000000007")),
        (np.array([2**64 - 1, 0, 5], np.uint64), ("0", "5", "18446744073709551615")),
        (np.array([30_000_000] * 3), ("30000000",)),
        (np.array(["cat", "dog", "ape"]), ("ape", "cat", "dog")),
        (np.array([True, False, True]), ("False", "True")),
        (np.array([4, 2, 4], np.int8), ("2", "4")),
    ],
    ids=str,
)
@pytest.mark.parametrize("column", [False, True])
def test_classes_are_the_distinct_labels(values: np.ndarray, classes: tuple, column: bool, tmp_path: Path):
    """However large they are, and as a column too."""
    labels = values[np.arange(20) % 3]
    data = labelled(tmp_path, y_train=labels[:, None] if column else labels, y_test=values[[0, 1, 0, 1]])
    assert data.classes == classes and data.labels.dtype.is_signed
    assert [classes[k] for k in data.labels] == [str(label) for label in labels.tolist()]
    assert [classes[k] for k in data.test_labels] == [str(values[k]) for k in (0, 1, 0, 1)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(19), "must be class indices or names"),
        (np.zeros((20, 10), int), "must be class indices or names"),
        (np.zeros((20, 1, 1), int), "must be class indices or names"),
        (np.full(20, 0.5), "must be class indices or names"),
        (np.arange(20) - 1, "not negative, got -1"),
        (np.full(20, np.datetime64("2020-01-01")), "must be class indices or names"),
    ],
    ids=str,
)
def test_what_is_no_label_is_refused(labels: np.ndarray, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=f"y_train of .*{message}"):
        labelled(tmp_path, y_train=labels)


def test_labels_of_the_test_set_must_be_of_the_training_set(tmp_path: Path):
    train = np.array(["cat", "dog"])[np.arange(20) % 2]
    with pytest.raises(
        UserError, match="y_test of .* holds the class ape, which no sample of the training set"
    ):
        labelled(tmp_path, y_train=train, y_test=np.array(["cat", "ape", "cat", "dog"]))
    with pytest.raises(UserError, match="must be labels as those of the training set"):
        labelled(tmp_path, y_train=train, y_test=np.arange(4) % 2)


def test_a_network_without_classes_trains_on_labelled_data(cli: Callable, tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.full((20, 1), 10**12))
    few = ("--config.training.steps=1", f"--config.data.path={tmp_path / 'a.npz'}")
    assert cli("train", tmp_path / "run", *few) == 0


def test_labels_follow_the_samples_of_a_stream(tmp_path: Path):
    """Both are indexed alike, in memory and streamed, after a tenth is held out."""
    values = np.arange(60, dtype=np.uint8)
    np.save(tmp_path / "x_train.npy", np.broadcast_to(values[:, None, None], (60, 4, 4)))
    np.save(tmp_path / "y_train.npy", values[:, None].astype(np.int64) * 1000)
    for memory_gib in (4.0, 0.0):
        data = load(tmp_path, memory_gib=memory_gib)
        for samples, labels in ((data.train, data.labels), (data.test, data.test_labels)):
            assert len(samples) == len(labels) > 0
            assert [int(data.classes[k]) // 1000 for k in labels] == samples[:][:, 0, 0, 0].tolist()
