from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from run.config import load_config
from run.data import (
    TOYS,
    bin_width,
    load_dataset,
    load_digits,
    load_file,
    samples_to_raw,
    to_continuous,
    to_raw,
)
from run.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(256, size=(20, 8, 10, 3), dtype=np.uint8)
POINTS = RNG.normal(size=(20, 5))


def test_digits_are_split_in_halves():
    digits = load_digits()
    assert digits.train.shape == (898, 1, 8, 8) and digits.test.shape == (899, 1, 8, 8)
    assert digits.train.dtype == torch.uint8 and digits.levels == 17
    assert (digits.train.min(), digits.train.max()) == (0, 16)


def test_images_go_to_the_model_and_back_unchanged():
    digits = load_digits()
    u = 0.999 * torch.rand(digits.test.shape)  # at u = 1 less a rounding error the next bin begins
    x = to_continuous(digits.test, 17, u)
    raw = to_raw(digits.test, 17)
    assert raw.min() == -1 and raw.max() == 1
    assert x.dtype == torch.float32 and (x - raw).abs().max() <= bin_width(17)
    assert torch.equal(samples_to_raw(x, 17), raw)
    assert samples_to_raw(torch.tensor([-9.0, 9.0]), 17).tolist() == [-1, 1]


def test_bins_fill_the_line():
    k, ends = torch.arange(16), torch.tensor([0.0, 1.0], dtype=torch.float64)
    below, above = to_continuous(k, 17, ends[:1].expand(16)), to_continuous(k, 17, ends[1:].expand(16))
    torch.testing.assert_close(above[:-1], below[1:])
    torch.testing.assert_close(above - below, torch.full_like(above, bin_width(17)))
    assert bin_width(None) == 1


def test_points_are_left_alone():
    x = torch.randn(3, 2)
    assert (
        to_continuous(x, None, torch.rand(3, 2)) is x
        and to_raw(x, None) is x
        and samples_to_raw(x, None) is x
    )


@pytest.mark.parametrize("name", list(TOYS))
def test_toys_have_about_unit_variance_and_separate_held_out_points(name: str):
    section = load_config("toy2d").data
    section.name = name
    toy = load_dataset(section)
    again = load_dataset(section)
    assert toy.shape == (2,) and toy.levels is None and len(toy.train) == section.num_points
    for part in (toy.train, toy.test):
        assert part.mean(0).abs().max() < 0.05 and (part.std(0) - 1).abs().max() < 0.05
    assert torch.equal(toy.train, again.train)
    assert not (toy.train[:500, None] == toy.test[:500]).all(2).any()


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_single_array_has_a_tenth_held_out(tmp_path: Path):
    np.save(tmp_path / "points.npy", POINTS)
    points = load_file(tmp_path / "points.npy", seed=0)
    assert points.name == "points" and points.levels is None
    assert (
        points.train.shape == (18, 5) and points.test.shape == (2, 5) and points.train.dtype == torch.float32
    )
    rows = torch.cat([points.train, points.test]).sort(0).values
    torch.testing.assert_close(rows, torch.tensor(POINTS).float().sort(0).values)
    assert not torch.equal(points.test, load_file(tmp_path / "points.npy", seed=1).test)


def test_image_files(tmp_path: Path):
    colour = load_file(
        save(tmp_path / "a.npz", x_train=IMAGES, x_test=IMAGES[:3], y_train=np.arange(20)), seed=0
    )
    assert (
        colour.shape == (3, 8, 10)
        and colour.levels == 256
        and len(colour.train) == 20
        and len(colour.test) == 3
    )
    assert torch.equal(colour.train[4, 2], torch.from_numpy(IMAGES[4, :, :, 2]))
    grey = load_file(save(tmp_path / "b.npz", anything=IMAGES[..., 0]), seed=0)
    assert grey.shape == (1, 8, 10) and len(grey.train) == 18


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.where(POINTS > 2, np.nan, POINTS)}, "NaN"),
        ({"x": np.full((4, 2), np.inf)}, "infinite"),
        ({"x": np.full((4, 2), 1e300)}, "infinite"),
        ({"x": POINTS[:, 0]}, "shape"),
        ({"x": IMAGES.astype(np.float32)}, "images must be uint8"),
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
    ],
)
def test_bad_arrays_are_refused(arrays: dict, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message) as error:
        load_file(save(tmp_path / "data.npz", **arrays), seed=0)
    assert "data.npz" in str(error.value) and "\n" not in str(error.value)


def test_bad_files_are_refused(tmp_path: Path):
    whole = save(tmp_path / "whole.npz", x=IMAGES).read_bytes()
    cases = {
        "cut.npz": whole[: len(whole) // 2],
        "noise.npz": b"noise" * 99,
        "nothing.npz": b"",
        "cut.npy": b"\x93NUMPY",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            load_file(tmp_path / name, seed=0)
    with pytest.raises(UserError, match="does not exist"):
        load_file(tmp_path / "none.npz", seed=0)
    with pytest.raises(UserError, match=".npy or .npz"):
        load_file(tmp_path / "data.csv", seed=0)


def test_an_unknown_name_is_refused():
    section = load_config("vpsde").data
    section.name = "cats"
    with pytest.raises(UserError, match="digits, swiss_roll, moons, checkerboard, 8gaussians"):
        load_dataset(section)
