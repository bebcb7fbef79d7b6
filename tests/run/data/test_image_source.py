from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_diffusion.run.errors import UserError
from tests.run.data.helpers import PIXELS, encoded, load, numbers, write_images, zipped


def damaged(folder: Path) -> Path:
    write_images(folder, range(12))
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
    damaged(tmp_path / "train/cats"), write_images(tmp_path / "train/dogs", range(12, 16))
    write_images(tmp_path / "test/dogs", range(16, 18))
    data = load(tmp_path, skip_bad_files=True)
    assert (len(data.train), len(data.test)) == (13, 2) and data.test_labels.tolist() == [1, 1]
    for image, label in zip(data.train, data.labels, strict=True):
        assert label == (numbers(image[None]).pop() >= 12)


def test_no_other_decoder_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An EPS file starts Ghostscript, whatever its name; others of Pillow's decoders crash."""
    import subprocess

    folder = write_images(tmp_path / "pets", range(4))
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
    folder = write_images(tmp_path / "pets", range(4))

    def failing(image: Image.Image) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "getexif", failing)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
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
    folder = write_images(tmp_path / "pets", range(3))
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
