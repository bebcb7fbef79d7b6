from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_diffusion.run.data.archives import read_cifar, read_idx
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.toys import TOYS, load_digits
from score_diffusion.run.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(256, size=(20, 8, 10, 3), dtype=np.uint8)
POINTS = RNG.normal(size=(20, 5))


def load(path: Path, **keys: object) -> Dataset:
    """What a path gives with other options."""
    return load_dataset(DataOptions(path=str(path), **keys))


def test_digits_are_split_in_halves():
    digits = load_digits()
    assert digits.train.shape == (898, 1, 8, 8) and digits.test.shape == (899, 1, 8, 8)
    assert digits.train.dtype == torch.uint8 and digits.levels == 17
    assert (digits.train.min(), digits.train.max()) == (0, 16)


@pytest.mark.parametrize("name", list(TOYS))
def test_toys_have_about_unit_variance_and_separate_held_out_points(name: str):
    options = DataOptions(name=name)
    toy, again = load_dataset(options), load_dataset(options)
    assert toy.shape == (2,) and toy.levels is None and len(toy.train) == options.num_points
    for part in (toy.train, toy.test):
        assert part.mean(0).abs().max() < 0.05 and (part.std(0) - 1).abs().max() < 0.05
    assert torch.equal(toy.train, again.train)
    assert not (toy.train[:500, None] == toy.test[:500]).all(2).any()


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
        ({"x": np.full((4, 2), 1e300)}, "infinite"),
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


# Images from files.

PIXELS = np.random.default_rng(3).integers(0, 256, (12, 6, 9, 3), np.uint8)


def folder_of_images(root: Path, pixels=PIXELS) -> Path:
    for i, image in enumerate(pixels):
        folder = root / ("cats" if i % 3 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return root


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


def test_folders_and_zips_of_images(tmp_path: Path):
    """The same images, with their folders as classes, whichever way they come."""
    folder = folder_of_images(tmp_path / "pets")
    for path in (folder, zipped(folder, tmp_path / "pets.zip")):
        data = load(path)
        assert (data.name, data.shape, data.levels) == ("pets", (3, 6, 9), 256)
        assert data.classes == ("cats", "dogs")
        pixels, labels = torch.cat([data.train, data.test]), torch.cat([data.labels, data.test_labels])
        for image, label in zip(pixels, labels, strict=True):
            same = [i for i in range(12) if (PIXELS[i].transpose(2, 0, 1) == image.numpy()).all()]
            assert len(same) == 1 and data.classes[label] == ("cats" if same[0] % 3 else "dogs")


def test_layouts_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """train and test below any number of folders; hidden folders are none, linked ones are."""
    root = tmp_path / "pets/all"
    folder_of_images(root / "train", PIXELS[:8])
    folder_of_images(root / "test", PIXELS[8:])
    folder_of_images(root / ".ipynb_checkpoints", PIXELS)
    for path in (tmp_path / "pets", zipped(tmp_path / "pets", tmp_path / "pets.zip")):
        data = load(path)
        assert (len(data.train), len(data.test), data.classes) == (8, 4, ("cats", "dogs"))
    (tmp_path / "linked").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "linked" / name).symlink_to(root / "train" / name)
    data = load(tmp_path / "linked")
    assert len(data.train) + len(data.test) == 8 and data.classes == ("cats", "dogs")
    folder_of_images(root / "val", PIXELS[8:])
    with pytest.raises(UserError, match="holds test, train, val side by side"):
        load(tmp_path / "pets")


def test_images_are_cropped_and_resized(tmp_path: Path):
    flat = np.zeros((1, 4, 8, 3), np.uint8)
    flat[:, :, 2:6] = 200  # the middle square
    folder = folder_of_images(tmp_path / "flat", np.concatenate([flat, flat // 2]))
    data = load(folder, image_size=(2, 2))
    assert sorted(data.train.unique().tolist() + data.test.unique().tolist()) == [100, 200]
    assert load(folder, image_size=(2, 2), crop="none").shape == (3, 2, 2)
    with pytest.raises(UserError, match="crop must be one of center, none"):
        load(folder, image_size=(2, 2), crop="left")


def test_held_out_samples_stay_held_out_as_others_come(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (400, 2, 2), np.uint8)
    few, many = (load(save(tmp_path / f"{n}.npz", x=pixels[:n])) for n in (200, 400))
    rows = {part: {tuple(x.flatten().tolist()) for x in getattr(many, part)} for part in ("train", "test")}
    assert all(tuple(x.flatten().tolist()) in rows["test"] for x in few.test)
    assert all(tuple(x.flatten().tolist()) in rows["train"] for x in few.train)
    assert 20 <= len(many.test) <= 60


def test_mnist_and_cifar_archives(tmp_path: Path):
    grey, labels = PIXELS[..., 0], np.arange(12, dtype=np.uint8) % 4
    header = bytes([0, 0, 8, 3]) + np.array(grey.shape, ">u4").tobytes()
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header + grey.tobytes()))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(bytes([0, 0, 8, 1]) + np.array([12], ">u4").tobytes() + labels.tobytes())
    )
    images = read_idx(path)
    assert np.array_equal(images["x_train"], grey) and np.array_equal(images["y_train"], labels)
    data = load(path)
    assert data.shape == (1, 6, 9) and data.classes == ("0", "1", "2", "3")
    records = np.random.default_rng(1).integers(0, 256, (6, 3073), np.uint8)
    records[:, 0] %= 10
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for n in (1, 2):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{n}.bin")
            data = records[3 * n - 3 : 3 * n].tobytes()
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    images = read_cifar(tmp_path / "cifar-10-binary.tar.gz")
    planes = records[:, 1:].reshape(6, 3, 32, 32)
    assert np.array_equal(images["x_train"].transpose(0, 3, 1, 2), planes)
    assert images["y_train"].tolist() == records[:, 0].tolist()
    data = load(tmp_path / "cifar-10-binary.tar.gz")
    assert data.shape == (3, 32, 32) and data.classes[0] == "airplane" and len(data.classes) == 10


def test_bad_image_sources_are_refused(tmp_path: Path):
    folder = folder_of_images(tmp_path / "good")
    whole = zipped(folder, tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for name, size in (("a", (4, 4)), ("b", (4, 5))):
        Image.new("L", size).save(tmp_path / f"mixed/{name}.png")
    for name, member in (("up.zip", "../../cats/a.png"), ("root.zip", "/cats/a.png")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, b"")
    flipped = bytearray(whole)
    flipped[flipped.index(b"IDAT") + 20] ^= 1  # in the data of the first image
    (tmp_path / "flipped.zip").write_bytes(flipped)
    locked = bytearray(whole)
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the headers of the first image
        locked[locked.index(signature) + flags] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    shutil.copytree(folder, tmp_path / "short")
    (tmp_path / "short/cats/01.png").write_bytes((folder / "cats/01.png").read_bytes()[:-30])
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken/cats/01.png").write_bytes(b"not an image")
    (tmp_path / "cut-idx3-ubyte").write_bytes(
        bytes([0, 0, 8, 3]) + np.array([9, 2, 2], ">u4").tobytes() + b"x"
    )
    (tmp_path / "no-idx3-ubyte").write_bytes(b"something else")
    (tmp_path / "bad.tar.gz").write_bytes(b"no archive")
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar/data_batch_1.bin").write_bytes(b"12345")
    (tmp_path / "cifar100").mkdir()
    (tmp_path / "cifar100/data_batch_1.bin").write_bytes(bytes([10, *bytes(3072)]))
    for name, message in {
        "cut.zip": "cut short or damaged",
        "empty": "holds no image",
        "mixed": "differ in size.*a.png.* is 4x4 and image b.png .*is 5x4.*image_size",
        "up.zip": "member '../../cats/a.png' whose name leads out of it",
        "root.zip": "member '/cats/a.png' whose name leads out of it",
        "flipped.zip": "image cats/01.png of .* cannot be read .*CRC",
        "locked.zip": "image cats/01.png of .* cannot be read .*encrypted",
        "short": "image cats/01.png of .* cannot be read .*truncated",
        "broken": "image cats/01.png of .* cannot be read",
        "cut-idx3-ubyte": "36 bytes, and 1 follow",
        "no-idx3-ubyte": "not an idx file",
        "bad.tar.gz": "cut short or damaged",
        "cifar": "not a multiple of 3073",
        "cifar100": "label 10",
        "nothing.zip": "does not exist",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_keys_that_would_do_nothing_are_refused(tmp_path: Path):
    np.save(tmp_path / "points.npy", POINTS)
    with pytest.raises(UserError, match="data.flip mirrors images"):
        load(tmp_path / "points.npy", flip=True)
    for options in (DataOptions(image_size=(3, 3)), DataOptions(channels=3)):
        with pytest.raises(UserError, match="your own images, not digits"):
            load_dataset(options)


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="digits, swiss_roll, moons, checkerboard, 8gaussians"):
        load_dataset(DataOptions(name="cats"))
