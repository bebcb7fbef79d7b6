from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.builders.training import build_trainer
from score_diffusion.run.config import load_config
from score_diffusion.run.errors import UserError
from tests.run.data.helpers import load

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(256, size=(20, 8, 10, 3), dtype=np.uint8)
POINTS = RNG.normal(size=(20, 5))


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_single_array_has_a_tenth_held_out(tmp_path: Path):
    np.save(tmp_path / "points.npy", POINTS)
    points = load(tmp_path / "points.npy")
    assert points.name == "points" and points.levels is None
    assert len(points.train) + len(points.test) == 20 and 1 <= len(points.test) <= 6
    assert points.train.dtype == torch.float32
    rows = points.scaling.stored_to_user(torch.cat([points.train, points.test])).float().sort(0).values
    torch.testing.assert_close(rows, torch.tensor(POINTS).float().sort(0).values)
    assert not torch.equal(points.test, load(tmp_path / "points.npy", seed=1).test)


def test_image_files(tmp_path: Path):
    colour = load(save(tmp_path / "a.npz", x_train=IMAGES, x_test=IMAGES[:3], y_train=np.arange(20)))
    assert (
        colour.shape == (3, 8, 10)
        and colour.levels == 256
        and len(colour.train) == 20
        and len(colour.test) == 3
    )
    assert torch.equal(colour.train[4, 2], torch.from_numpy(IMAGES[4, :, :, 2]))
    grey = load(save(tmp_path / "b.npz", anything=IMAGES[..., 0]))
    assert grey.shape == (1, 8, 10) and len(grey.train) + len(grey.test) == 20 and grey.labels is None
    assert colour.labels.tolist() == list(range(20)) and colour.test_labels is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.where(POINTS > 2, np.nan, POINTS)}, "NaN"),
        ({"x": np.full((4, 2), np.inf)}, "infinite"),
        ({"x": np.full((4, 2), 1e300)}, r"numbers of up to 1e\+300, more than float32 can hold"),
        ({"x": POINTS[:, 0]}, "shape"),
        ({"x": IMAGES[0, 0]}, "shape"),
        ({"x": IMAGES.transpose(0, 2, 3, 1)[:, :, :, :, None]}, "shape"),
        ({"x": IMAGES.transpose(0, 3, 1, 2)}, "C at most 4"),
        ({"x": POINTS.astype(np.int64)}, "dtype int64"),
        ({"x": np.array(["a", "b"])}, "dtype"),
        ({"x": np.array([{}, {}], dtype=object)}, "cannot be read"),
        ({"x": POINTS[:0]}, "empty"),
        ({"x": POINTS[:1]}, "at least 2"),
        ({"a": POINTS, "b": POINTS}, "a, b"),
        ({"x_train": POINTS, "x_test": POINTS[:, :2]}, "agree"),
        ({"x_train": IMAGES, "x_test": POINTS}, "agree"),
        ({}, "no array"),
        ({"x_train": IMAGES, "y_train": np.zeros(3, int)}, "class indices"),
        ({"x_train": IMAGES, "y_train": np.full(20, 0.5)}, "class indices"),
        ({"x_train": IMAGES, "y_train": np.arange(20) - 1}, "class indices"),
        (
            dict(x_train=IMAGES, y_train=np.arange(20) % 3, x_test=IMAGES[:2], y_test=np.array([0, 3])),
            "y_test of .* holds the class 3, which no sample of the training set has",
        ),
    ],
)
def test_bad_arrays_are_refused(arrays: dict, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message) as error:
        load(save(tmp_path / "data.npz", **arrays))
    assert "data.npz" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        {"train": "x_train", "val": "x_val", "test": "x_test"},
        {"train": "X_train", "val": "X_valid", "test": "X_test"},
        {"train": "train_images", "val": "val_images", "test": "test_images"},
        {"train": "x_train", "val": "x_validation"},
    ],
    ids=str,
)
def test_three_parts_by_their_usual_names(names: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """MedMNIST's, say. The validation set is for the loss during training; alone it is the test set, too."""
    rows = {"train": slice(12), "val": slice(12, 15), "test": slice(15, 20)}
    arrays = {name: IMAGES[rows[part]] for part, name in names.items()}
    labels = {}
    for name, x in arrays.items():
        of_labels = name.replace("x_", "y_").replace("X_", "Y_").replace("images", "labels")
        labels[of_labels] = np.arange(len(x))[:, None] % 2
    data = load(save(tmp_path / "a.npz", **arrays, **labels, extra=np.zeros(3)))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, array in {**arrays, **labels}.items():
        np.save(folder / f"{name}.npy", array)
    assert "extra not used" in capsys.readouterr().err
    channels_first = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    for found in (data, load(folder)) if "x_train" in names.values() else (data,):
        assert torch.equal(found.train, channels_first[:12]) and found.labels.tolist() == [0, 1] * 6
        if "test" in names:
            assert torch.equal(found.test, channels_first[15:20]) and torch.equal(
                found.held_out, channels_first[12:15]
            )
            assert found.held_out_conditions["label"].tolist() == [0, 1, 0]
        else:
            assert torch.equal(found.test, channels_first[12:15]) and found.validation is None
    both = {names["train"]: IMAGES, "x_val": IMAGES, "x_dev": IMAGES}
    with pytest.raises(UserError, match="holds x_val and x_dev, which mean the same"):
        load(save(tmp_path / "both.npz", **both))


def test_members_of_an_npz_that_are_no_arrays(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="holds no array"):
        load(tmp_path / "a.npz")
    header = (
        np.lib.format.magic(1, 0)
        + b"v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999, 9), }"
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("x_train.npy", header.ljust(128) + bytes(100))
    with pytest.raises(UserError, match="bomb.npz cannot be read"):
        load(tmp_path / "bomb.npz")


def test_bad_files_are_refused(tmp_path: Path):
    whole = save(tmp_path / "whole.npz", x=IMAGES).read_bytes()
    np.save(tmp_path / "images.npy", IMAGES)
    cases = {
        "cut.npz": whole[: len(whole) // 2],
        "noise.npz": b"noise" * 99,
        "nothing.npz": b"",
        "cut.npy": b"\x93NUMPY",
        "short.npy": (tmp_path / "images.npy").read_bytes()[:-99],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            load(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none.npz")
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(UserError, match=".npy or .npz"):
        load(tmp_path / "data.csv")


def test_held_out_samples_stay_held_out_as_others_come(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (400, 2, 2), np.uint8)
    few, many = (load(save(tmp_path / f"{n}.npz", x=pixels[:n])) for n in (200, 400))
    rows = {part: {tuple(x.flatten().tolist()) for x in getattr(many, part)} for part in ("train", "test")}
    assert all(tuple(x.flatten().tolist()) in rows["test"] for x in few.test)
    assert all(tuple(x.flatten().tolist()) in rows["train"] for x in few.train)
    assert 20 <= len(many.test) <= 60


def test_the_loss_during_training_is_that_of_the_validation_set(tmp_path: Path):
    """And of the test set where there is no third part."""
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    arrays = dict(x_train=images[:20], x_test=images[20:25], x_val=images[25:])
    config = load_config(str(Path(__file__).parents[1] / "tiny.py"))
    config.data.dequantize = False
    config.training.held_out = 5
    for part, expected in (("x_val", images[25:]), ("x_test", images[20:25])):
        data = load(save(tmp_path / "a.npz", **arrays))
        trainer = build_trainer(config, data, torch.device("cpu"))
        pixels = data.scaling.stored_to_model(torch.from_numpy(expected)[:, None])
        assert torch.equal(trainer.held_out.x_0, pixels), part
        arrays.pop("x_val", None)
