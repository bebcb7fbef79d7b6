"""Inputs of inference: files, folders, patterns, arrays; brought to a shape, or refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_diffusion.run.data.inputs import InputReader, named_paths, with_shape
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (3, 6, 8, 3), np.uint8)


def reader(levels: int | None = 256, most: int = 50, **options: object) -> InputReader:
    return InputReader(DataOptions(workers=2, **options), Scaling(levels=levels), most)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, image in enumerate(COLOURS):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    return tmp_path


def brightness(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels.astype(np.float32) / 127.5 - 1)


def test_images_by_file_list_pattern_folder_and_zip(folder: Path):
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for k in range(3):
            archive.write(folder / f"{k}.png", f"{k}.png")
    expected = brightness(COLOURS.transpose(0, 3, 1, 2))
    for text, numbers in (
        (f"{folder}/1.png", [1]),
        (f"{folder}/2.png,{folder}/0.png", [2, 0]),
        (",".join([f"{folder}/1.png"] * 50), [1] * 50),
        (f"{folder}/[02].png", [0, 2]),
        (str(folder), [0, 1, 2]),
        (f"{folder}/images.zip", [0, 1, 2]),
    ):
        inputs = reader().truth(text, (3, 6, 8))
        assert inputs.names == tuple(f"{k}.png" for k in numbers) and inputs.found == len(numbers)
        torch.testing.assert_close(inputs.samples, expected[numbers])
    few = reader(most=2).truth(str(folder), (3, 6, 8))
    assert (len(few.samples), len(few.names), few.found) == (2, 2, 3)


def test_images_are_cropped_resized_and_made_grey_as_in_training(folder: Path, capsys):
    inputs = reader(crop="center").truth(f"{folder}/0.png", (1, 3, 3))
    with Image.open(folder / "0.png") as image:
        grey = image.convert("L").crop((1, 0, 7, 6)).resize((3, 3), Image.Resampling.LANCZOS)
    torch.testing.assert_close(inputs.samples, brightness(np.asarray(grey)[None, None]))
    assert "brought to 3x3 (height x width)" in capsys.readouterr().err


def test_measured_images_keep_their_size(folder: Path):
    same = reader().measurements(str(folder), (3, 6, 8), "measurements", images=True)
    torch.testing.assert_close(same.samples, brightness(COLOURS.transpose(0, 3, 1, 2)))
    with pytest.raises(UserError, match=r"image .*0.png of .* is 6x8, and measurements are 3x4"):
        reader().measurements(str(folder), (3, 3, 4), "measurements", images=True)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_of_grey_levels_and_of_numbers(suffix: str, tmp_path: Path):
    path, levels = tmp_path / f"x.{suffix}", RNG.integers(0, 17, (4, 6, 8), np.uint8)
    write = np.save if suffix == "npy" else np.savez
    write(path, levels)
    inputs = reader(17).truth(str(path), (1, 6, 8))
    torch.testing.assert_close(inputs.samples[:, 0], torch.from_numpy(levels.astype(np.float32) / 8 - 1))
    assert inputs.names[1] == f"x.{suffix} 1"
    numbers = RNG.uniform(-1, 1, (4, 1, 6, 8))
    write(path, numbers)
    torch.testing.assert_close(reader(17).truth(str(path), (1, 6, 8)).samples, torch.from_numpy(numbers))
    write(path, 100 * numbers)
    torch.testing.assert_close(
        reader(None).truth(str(path), (1, 6, 8)).samples, torch.from_numpy(100 * numbers)
    )
    with pytest.raises(UserError, match="brightness from -1 to 1"):
        reader(17).truth(str(path), (1, 6, 8))


def test_brightness_from_0_to_1_is_announced(tmp_path: Path, capsys):
    numbers = RNG.uniform(0, 1, (4, 1, 6, 8))
    for values, levels, warns in ((numbers, 17, True), (2 * numbers - 1, 17, False), (numbers, None, False)):
        np.save(tmp_path / "x.npy", values)
        reader(levels).truth(str(tmp_path / "x.npy"), (1, 6, 8))
        assert ("give values from 0 to 1 as 2x - 1" in capsys.readouterr().err) == warns


def test_arrays_of_other_layouts():
    x = RNG.normal(size=(2, 3, 4, 5))
    for given in (x, np.moveaxis(x, 1, -1)):
        np.testing.assert_array_equal(with_shape(given, (3, 4, 5), "it"), x)
    np.testing.assert_array_equal(with_shape(x[0], (3, 4, 5), "it"), x[:1])
    grey = x[:, :1]
    for given in (grey, grey[:, 0], grey[0], grey[0, 0]):
        np.testing.assert_array_equal(
            with_shape(given, (1, 4, 5), "it"), grey[: len(with_shape(given, (1, 4, 5), ""))]
        )
    np.testing.assert_array_equal(with_shape(x[0, 0], (5,), "it"), x[0, 0])
    for bad in (x[:0], x[..., :4], x[0, 0]):
        with pytest.raises(UserError, match=r"it have shape \(n, 3, 4, 5\)"):
            with_shape(bad, (3, 4, 5), "it")


def test_refusals(folder: Path):
    np.save(folder / "words.npy", np.array(["a", "b"]))
    np.save(folder / "levels.npy", np.full((1, 6, 8), 3, np.int16))
    np.save(folder / "negative.npy", np.full((1, 6, 8), -3))
    (folder / "empty").mkdir()
    for text, levels, message in (
        (f"{folder}/words.npy", 256, "have shape"),
        (f"{folder}/levels.npy", None, "must hold floating-point numbers, got dtype int16"),
        (f"{folder}/negative.npy", 256, "smallest value is -3"),
        (f"{folder}/0.png", None, "are arrays of shape"),
        (f"{folder}/empty", 256, "holds no image"),
        (f"{folder}/0.png,{folder}/none.png", 256, "input .*none.png' does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            reader(levels).truth(text, (1, 6, 8))
    assert named_paths(f"{folder}/*.png") == [folder / f"{k}.png" for k in range(3)]
