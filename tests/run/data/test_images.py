from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from score_diffusion.run.errors import UserError
from tests.run.data.helpers import PIXELS, load, numbers, write_images, zipped


def test_each_real_folder_is_read_once(tmp_path: Path):
    """Links that point upwards would multiply a folder or never end."""
    cats = write_images(tmp_path / "pets/cats", range(5))
    write_images(tmp_path / "pets/dogs", range(5, 8))
    (cats / "up").symlink_to("..")
    (cats / "self").symlink_to(".")
    (tmp_path / "pets/aliases").symlink_to("dogs")
    data = load(tmp_path / "pets")
    assert len(data.train) + len(data.test) == 8 and data.classes == ("cats", "dogs")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(cats)
    assert len(load(tmp_path / "elsewhere").train) >= 3


def test_pipes_sockets_and_devices_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_images(tmp_path / "pets", range(5))
    os.mkfifo(folder / "x.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "y.png"))
        data = load(folder)
    assert len(data.train) + len(data.test) == 5
    assert "2 pipes, sockets or devices are passed over" in capsys.readouterr().err
    for name in ("data.zip", "a.tar.gz", "train-images-idx3-ubyte", "x.npy"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="must be a file or a folder, it is a pipe"):
            load(tmp_path / name)
    (tmp_path / "arrays").mkdir()
    os.mkfifo(tmp_path / "arrays/x_train.npy")
    with pytest.raises(UserError, match="x_train.npy must be a regular file"):
        load(tmp_path / "arrays")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """os.walk leaves it out without a word, and a class is lost."""
    for name in ("cats", "dogs"):
        write_images(tmp_path / name, range(4))
    scandir = os.scandir

    def refusing(path: os.PathLike) -> object:
        if Path(path).name == "dogs":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match="folder .*dogs cannot be read .Permission denied"):
        load(tmp_path)


def test_pages_and_further_formats_are_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pages = [Image.fromarray(image) for image in PIXELS[:5]]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    write_images(tmp_path, range(5, 7), ".ppm"), write_images(tmp_path, range(7, 9), ".bmp")
    (tmp_path / "photo.heic").write_bytes(b"")
    for path in (tmp_path, zipped(tmp_path, tmp_path.with_suffix(".zip"))):
        for memory_gib in (4.0, 0.0):
            data = load(path, memory_gib=memory_gib)
            assert numbers(data.train) | numbers(data.test) == set(range(9))
            assert len(data.train) + len(data.test) == 9
    assert "files that end in .heic are not read" in capsys.readouterr().err


def test_frames_that_are_left_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    frames = [Image.fromarray(image) for image in PIXELS[:3]]
    for name in ("a", "b"):
        frames[0].save(tmp_path / f"{name}.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "misnamed.png", format="TIFF", save_all=True, append_images=frames[1:])
    data = load(tmp_path)
    assert len(data.train) + len(data.test) == 3
    assert capsys.readouterr().err.count("several frames: of such files only the first is read") == 1
