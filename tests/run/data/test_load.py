from __future__ import annotations

import gzip
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.errors import UserError
from tests.run.data.helpers import folder_of_images, load, zipped

POINTS = np.random.default_rng(0).normal(size=(20, 5))


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
    header = bytes([0, 0, 8, 3])
    (tmp_path / "long-idx3-ubyte").write_bytes(header + np.array([1, 2, 2], ">u4").tobytes() + b"12345")
    huge = header + np.array([2**31, 2**15, 2**15], ">u4").tobytes() + bytes(10_000)
    (tmp_path / "huge-idx3-ubyte.gz").write_bytes(gzip.compress(huge))
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
        "long-idx3-ubyte": "4 bytes, and more follow",
        "huge-idx3-ubyte.gz": "takes .* GiB by its header and data.memory_gib is 4",
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
        with pytest.raises(UserError, match="for your own images, not digits"):
            load_dataset(options)


def test_standardizing_images_is_announced(tmp_path: Path, capsys):
    np.save(tmp_path / "images.npy", np.arange(480, dtype=np.uint16).astype(np.uint8).reshape(10, 6, 8))
    load(tmp_path / "images.npy", standardize="per_channel")
    assert "data.standardize is for numbers, and" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "meaning"), [("-1", "no class"), ("all", "all classes")])
def test_names_of_classes_that_label_takes_for_something_else(name: str, meaning: str, tmp_path: Path):
    arrays = {"x_train": np.zeros((8, 4, 4), np.uint8), "y_train": np.array([name, "dog"] * 4)}
    np.savez(tmp_path / "named.npz", **arrays)
    with pytest.raises(UserError, match=f"has a class '{name}', which means {meaning} to --label: rename it"):
        load(tmp_path / "named.npz")


def test_an_unknown_name_is_refused():
    with pytest.raises(
        UserError,
        match="9 names, such as digits, captioned_digits, mnist5k, shapes, single_shapes",
    ):
        load_dataset(DataOptions(name="cats"))
