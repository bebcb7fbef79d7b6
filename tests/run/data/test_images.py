"""What users' folders hold: links, pipes, pages, damaged files, archives of Windows and of EDM."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 6, 9, 3), np.uint8)


def load(path: Path, **keys: object) -> Dataset:
    return load_dataset(DataOptions(path=str(path), workers=2, **keys))


def write(folder: Path, numbers: range, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        Image.fromarray(PIXELS[i]).save(folder / f"{i:02d}{suffix}")
    return folder


def zipped(folder: Path, path: Path, separator: str = "/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            name = file.relative_to(folder).as_posix()
            info = zipfile.ZipInfo(name)
            info.filename = name.replace("/", separator)  # which ZipInfo() would set right
            archive.writestr(info, file.read_bytes())
    return path


def numbers(samples: torch.Tensor) -> set[int]:
    """Which of PIXELS the samples are."""
    known = {image.transpose(2, 0, 1).tobytes(): i for i, image in enumerate(PIXELS)}
    return {known[sample.numpy().tobytes()] for sample in samples[:]}


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Valid", "Test"),
        ("training", "validation", "testing"),
        ("TRAIN", None, "TEST"),
        ("train", "valid", None),
        ("training", None, "testing"),
        ("pets/Training", "pets/Dev", "pets/Testing"),
    ],
)
@pytest.mark.parametrize("layout", ["folder", "zip", "zip of Windows", "class first"])
def test_held_out_images_are_not_trained_on(
    train: str, validation: str | None, test: str | None, layout: str, tmp_path: Path
):
    path = tmp_path / "set"
    for name, images in ((train, range(12)), (validation, range(12, 18)), (test, range(18, 24))):
        for k, animal in enumerate(("cats", "dogs")):
            if name is not None:
                folders = Path(animal, Path(name).name) if layout == "class first" else Path(name, animal)
                write(path / folders, images[k::2])
    if layout.startswith("zip"):
        path = zipped(path, tmp_path / "set.zip", "\\" if "Windows" in layout else "/")
    for memory_gib in (4.0, 0.0):
        data = load(path, memory_gib=memory_gib)
        assert data.classes == ("cats", "dogs") and numbers(data.train) == set(range(12))
        scored = range(18, 24) if test else range(12, 18)
        assert numbers(data.test) == set(scored)
        for samples, labels in ((data.train, data.labels), (data.test, data.test_labels)):
            for i in range(len(samples)):
                assert numbers(samples[i : i + 1]) <= set(range(labels[i], 24, 2))
        if validation and test:
            assert numbers(data.validation) == set(range(12, 18)) and data.held_out is data.validation
        else:
            assert data.validation is None and data.held_out is data.test


def test_folders_that_leave_it_open_are_refused(tmp_path: Path):
    write(tmp_path / "a/train", range(3)), write(tmp_path / "a/Training", range(3, 6))
    write(tmp_path / "a/test", range(6, 9))
    with pytest.raises(UserError, match="holds folders Training and train, which both mean train data"):
        load(tmp_path / "a")
    write(tmp_path / "b/val", range(3)), write(tmp_path / "b/test", range(3, 6))
    with pytest.raises(UserError, match="holds test, val side by side"):
        load(tmp_path / "b")
    (
        write(tmp_path / "c/train", range(3)),
        write(tmp_path / "c/test", range(3, 6)),
        write(tmp_path / "c", range(6, 7)),
    )
    with pytest.raises(UserError, match="holds 06.png, test, train side by side"):
        load(tmp_path / "c")
    write(tmp_path / "d/train", range(3)), write(tmp_path / "d/car", range(3, 6))  # vehicles
    assert load(tmp_path / "d").classes == ("car", "train")


def test_classes_of_held_out_images_alone_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for folder, images in (("train/a", range(4)), ("train/b", range(4, 8)), ("test/c", range(8, 10))):
        write(tmp_path / folder, images)
    data = load(tmp_path)
    assert data.classes == ("a", "b") and data.test_labels is None and len(data.test) == 2
    assert "2 test images are in folders that no training image is in" in capsys.readouterr().err


def test_each_real_folder_is_read_once(tmp_path: Path):
    """Links that point upwards would multiply a folder or never end."""
    cats = write(tmp_path / "pets/cats", range(5))
    write(tmp_path / "pets/dogs", range(5, 8))
    (cats / "up").symlink_to("..")
    (cats / "self").symlink_to(".")
    (tmp_path / "pets/aliases").symlink_to("dogs")
    data = load(tmp_path / "pets")
    assert len(data.train) + len(data.test) == 8 and data.classes == ("cats", "dogs")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(cats)
    assert len(load(tmp_path / "elsewhere").train) >= 3


def test_pipes_sockets_and_devices_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write(tmp_path / "pets", range(5))
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
    with pytest.raises(UserError, match="x_train.npy is no regular file"):
        load(tmp_path / "arrays")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """os.walk leaves it out without a word, and a class is lost."""
    for name in ("cats", "dogs"):
        write(tmp_path / name, range(4))
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
    write(tmp_path, range(5, 7), ".ppm"), write(tmp_path, range(7, 9), ".bmp")
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


def test_edm_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Numbered shelves are no classes: dataset.json says them."""
    for shelf in range(3):
        write(tmp_path / f"set/0000{shelf}", range(shelf * 4, shelf * 4 + 4))
    labels = [[f"0000{i // 4}/{i:02d}.png", 7 * (i % 3)] for i in range(12)]
    cases = {
        "labels": ({"labels": labels}, ("0", "7", "14")),
        "none": ({"labels": None}, ()),
        "vectors": ({"labels": [[name, [0.5, label]] for name, label in labels]}, ()),
    }
    for content, classes in cases.values():
        (tmp_path / "set/dataset.json").write_text(json.dumps(content))
        for path in (tmp_path / "set", zipped(tmp_path / "set", tmp_path / "set.zip")):
            data = load(path)
            assert data.classes == classes and len(data.train) + len(data.test) == 12
            for image, label in zip(data.train, data.labels if classes else (), strict=False):
                assert numbers(image[None]).pop() % 3 == label
    assert "labels that are no class indices: they are not used" in capsys.readouterr().err
    for content, message in (
        (json.dumps({"labels": labels[:5]}), "has no label for 00001/05.png"),
        (json.dumps({"labels": 5}), "must hold pairs"),
        ("[" * 100_000, "cannot be read"),
        ("{", "cannot be read"),
    ):
        (tmp_path / "set/dataset.json").write_text(content)
        with pytest.raises(UserError, match=f"dataset.json of .*{message}"):
            load(tmp_path / "set")


def damaged(folder: Path) -> Path:
    write(folder, range(12))
    for i in (2, 5, 7):
        content = (folder / f"{i:02d}.png").read_bytes()
        (folder / f"{i:02d}.png").write_bytes(b"no image" if i == 5 else content[: len(content) // 2])
    return folder


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_all_damaged_files_are_named_and_left_out_on_demand(
    memory_gib: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = damaged(tmp_path / "pets")
    for path in (folder, zipped(folder, tmp_path / "pets.zip")):
        if memory_gib:
            with pytest.raises(UserError) as error:
                load(path)
            assert "3 of 12 images cannot be read" in str(error.value) and "skip_bad_files" in str(
                error.value
            )
            assert all(f"{name}.png" in str(error.value) for name in ("02", "05", "07"))
        data = load(path, memory_gib=memory_gib, skip_bad_files=True)
        assert numbers(data.train) | numbers(data.test) == set(range(12)) - {2, 5, 7}
        assert "3 of 12 images are left out" in capsys.readouterr().err


def test_labels_stay_with_their_images_where_files_are_left_out(tmp_path: Path):
    damaged(tmp_path / "train/cats"), write(tmp_path / "train/dogs", range(12, 16))
    write(tmp_path / "test/dogs", range(16, 18))
    data = load(tmp_path, skip_bad_files=True)
    assert (len(data.train), len(data.test)) == (13, 2) and data.test_labels.tolist() == [1, 1]
    for image, label in zip(data.train, data.labels, strict=True):
        assert label == (numbers(image[None]).pop() >= 12)


def encoded(format: str, image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def test_no_other_decoder_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An EPS file starts Ghostscript, whatever its name; others of Pillow's decoders crash."""
    import subprocess

    folder = write(tmp_path / "pets", range(4))
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail("started a program"))
    image = Image.fromarray(PIXELS[0])
    hostile = {
        "eps": encoded("EPS", image),
        "spider": encoded("SPIDER", image.convert("F")),
        "ico": encoded("ICO", image),
        "pcx": encoded("PCX", image),
        "tga": encoded("TGA", image),
        "random": bytes(range(256)) * 9,
        "empty": b"",
    }
    for content in hostile.values():
        (folder / "500.png").write_bytes(content)
        with pytest.raises(UserError, match="image 500.png of .* cannot be read"):
            load(folder)


@pytest.mark.parametrize(
    "error", [TypeError("IFDRational"), AttributeError("x"), MemoryError(), RecursionError()]
)
def test_whatever_a_decoder_raises_is_one_sentence(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write(tmp_path / "pets", range(4))

    def failing(image: Image.Image) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "getexif", failing)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_flipped_bytes_give_an_image_or_a_sentence(format: str, tmp_path: Path):
    whole = encoded(format, Image.fromarray(PIXELS[0]))
    rng = np.random.default_rng(0)
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/a.png").write_bytes(encoded("PNG", Image.fromarray(PIXELS[1])))
    for _ in range(60):
        content = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
        for place in rng.integers(len(content), size=rng.integers(0, 6)):
            content[place] = rng.integers(256)
        (tmp_path / "pets/b.png").write_bytes(content)
        try:
            load(tmp_path / "pets", image_size=(4, 4))
        except UserError as error:
            assert "cannot be read" in str(error) or "bits" in str(error)


def test_what_would_fill_the_memory_is_refused(tmp_path: Path):
    """By sizes that stand in headers, before contents are read."""
    folder = write(tmp_path / "pets", range(3))
    header = struct.pack(">4sIIBBBBB", b"IHDR", 40_000, 40_000, 1, 0, 0, 0, 0)
    bomb = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bomb + b"\0\0\0\0IDAT")
    with pytest.raises(UserError, match="bomb.png .*1600 megapixels, above data.max_megapixels=100"):
        load(folder, image_size=(4, 4))
    (folder / "bomb.png").unlink()
    with pytest.raises(UserError, match="5.4e-05 megapixels, above data.max_megapixels=1e-05"):
        load(folder, max_megapixels=1e-5)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "00.png", "00.png")
        archive.writestr("01.png", (folder / "01.png").read_bytes() + bytes(3 * 2**20))
    with pytest.raises(UserError, match="01.png .*takes 3.* MiB unpacked, above data.max_file_mib=2"):
        load(tmp_path / "bomb.zip", max_file_mib=2.0)
    assert len(load(tmp_path / "bomb.zip").train) == 1


# Bits.


def grey(path: Path, values: np.ndarray, suffix: str = ".png") -> Path:
    path.mkdir(parents=True)
    for i, image in enumerate(values):
        Image.fromarray(image).save(path / f"{i}{suffix}")
    return path


def test_twelve_bits_in_sixteen(tmp_path: Path):
    """Their 8 high bits are kept when data.bits says so; nothing else would tell, and is asked for."""
    values = np.random.default_rng(0).integers(0, 4096, (6, 5, 5)).astype(np.uint16)
    for suffix in (".png", ".tif"):
        folder = grey(tmp_path / suffix[1:], values, suffix)
        with pytest.raises(
            UserError, match=r"no value above 40\d\d: set --config.data.bits .* 12 or more, or to 16"
        ):
            load(folder)
        data = load(folder, bits=12)
        stored = torch.cat([data.train, data.test])[:, 0].numpy()
        assert {image.tobytes() for image in stored} == {(v >> 4).astype(np.uint8).tobytes() for v in values}
        assert data.levels == 256
        dark = load(folder, bits=16)
        assert torch.cat([dark.train, dark.test]).max() == values.max() >> 8
        with pytest.raises(UserError, match="its largest value is 4.*, which takes more than data.bits=11"):
            load(folder, bits=11)


def test_bytes_in_wider_integers(tmp_path: Path):
    """Pillow's mode I and 16-bit files of 0..255 once became constant."""
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 5))
    values[0, 0, 0] = 255
    wide = grey(tmp_path / "i", values.astype(np.int32), ".tif")
    with pytest.raises(UserError, match="32-bit integers whose range is not known: set --config.data.bits="):
        load(wide)
    sixteen = grey(tmp_path / "16", values.astype(np.uint16))
    with pytest.raises(UserError, match="no value above 255: set --config.data.bits .* 8 or more"):
        load(sixteen)
    expected = {v.astype(np.uint8).tobytes() for v in values}
    for folder in (wide, sixteen):
        data = load(folder, bits=8)
        assert {image.numpy().tobytes() for image in torch.cat([data.train, data.test])} == expected


def test_full_sixteen_bits_need_no_word(tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 65536, (6, 5, 5)).astype(np.uint16)
    data = load(grey(tmp_path / "a", values))
    assert torch.cat([data.train, data.test]).max() == values.max() >> 8


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint8, ">u2"])
def test_arrays_of_any_integers(dtype: object, tmp_path: Path):
    bits = 5 if dtype == np.uint8 else 12
    values = np.random.default_rng(0).integers(0, 2**bits, (30, 5, 4)).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    if dtype != np.uint8:
        with pytest.raises(UserError, match="whose range is not known: set --config.data.bits"):
            load(tmp_path / "a.npy")
    for keys in ({}, {"memory_gib": 0.0}):
        data = load(tmp_path / "a.npy", bits=bits, **keys)
        stored = torch.cat([data.train[:], data.test[:]])[:, 0].numpy()
        expected = {(v >> max(0, bits - 8)).astype(np.uint8).tobytes() for v in values}
        assert {image.tobytes() for image in stored} == expected and data.levels == 2 ** min(bits, 8)
    with pytest.raises(UserError, match="takes more than data.bits=4"):
        load(tmp_path / "a.npy", bits=4)
    assert int(load(tmp_path / "a.npy", bits=bits, image_size=(2, 2)).train.max()) < 2 ** min(bits, 8)
    np.save(tmp_path / "negative.npy", -values.astype(np.int64))
    with pytest.raises(UserError, match="grey levels are not negative"):
        load(tmp_path / "negative.npy", bits=bits)


def test_images_with_channels_first(tmp_path: Path):
    np.save(tmp_path / "a.npy", PIXELS.transpose(0, 3, 1, 2))
    with pytest.raises(UserError, match="C at most 4.*data.layout=channels_first"):
        load(tmp_path / "a.npy")
    data = load(tmp_path / "a.npy", layout="channels_first")
    assert numbers(data.train) | numbers(data.test) == set(range(24))


def test_data_that_use_little_of_their_range_are_named(
    cli: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """By --mode train as by --mode data."""
    np.save(tmp_path / "constant.npy", np.full((20, 8, 8), 7, np.uint8))
    np.save(tmp_path / "dark.npy", np.random.default_rng(0).integers(0, 16, (20, 8, 8), np.uint8))
    np.save(tmp_path / "good.npy", np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8))
    for name, message in (
        ("constant", "all training samples have the one grey level 7 of 256"),
        ("dark", "training samples use nothing but the grey levels 0 to 15 of 256"),
        ("good", ""),
    ):
        for mode, few in (("data", []), ("train", ["--config.training.steps=1"])):
            path = f"--config.data.path={tmp_path / name}.npy"
            assert cli(mode, tmp_path / f"{name}-{mode}", path, *few) == 0
            warned = capsys.readouterr().err
            assert message in warned and ("grey level" in warned) == bool(message)
