"""Damaged files of every format are read or refused in one sentence: never a crash, whatever the bytes.

FUZZ_TRIES=100000 pytest tests/run/data/test_fuzz.py tries more, and FUZZ_SEED=1 others.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_diffusion.run.errors import UserError
from tests.run.data.helpers import PIXELS, encoded, folder_of_images, load, zipped
from tests.run.data.test_archives import idx, packed, write_cifar

TRIES, SEED = int(os.environ.get("FUZZ_TRIES", "1500")), int(os.environ.get("FUZZ_SEED", "0"))
NUMBERS = np.random.default_rng(0).normal(size=(20, 3))


def array_file(save: Callable, *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def images() -> dict[str, bytes]:
    """A file of each format that images may have, the 16-bit, paged and rotated ones among them."""
    colour, deep = Image.fromarray(PIXELS[0]), Image.fromarray(PIXELS[0, ..., 0].astype(np.uint16) * 257)
    files = {name: encoded(name, colour) for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")}
    files |= {f"deep {name}": encoded(name, deep) for name in ("PNG", "TIFF", "PPM")}
    pages, rotated, exif = io.BytesIO(), io.BytesIO(), Image.Exif()
    colour.save(pages, "TIFF", save_all=True, append_images=[Image.fromarray(page) for page in PIXELS[1:3]])
    exif[0x0112] = 6
    colour.save(rotated, "JPEG", exif=exif)
    return files | {"paged TIFF": pages.getvalue(), "rotated JPEG": rotated.getvalue()}


def archives(folder: Path) -> dict[str, bytes]:
    """A file of each other format by a name that it may have."""
    pets = folder_of_images(folder / "pets")
    names = [path.relative_to(pets).as_posix() for path in sorted(pets.rglob("*.png"))]
    (pets / "dataset.json").write_text(json.dumps({"labels": [[name, 0] for name in names]}))
    cifar = write_cifar(folder / "cifar-10-batches-py", "python2")
    return {
        "a.zip": zipped(pets, folder / "a.zip").read_bytes(),
        "images.npy": array_file(np.save, PIXELS),
        "numbers.npy": array_file(np.save, NUMBERS),
        "a.npz": array_file(np.savez, x_train=PIXELS, y_train=np.arange(24)),
        "b.npz": array_file(np.savez_compressed, x_train=NUMBERS, x_test=NUMBERS[:3]),
        "train-images-idx3-ubyte": idx(PIXELS[..., 0]),
        "train-images-idx3-ubyte.gz": gzip.compress(idx(PIXELS[..., 0])),
        "cifar.tar": packed(cifar, folder / "cifar.tar").read_bytes(),
        "cifar.tar.gz": packed(cifar, folder / "cifar.tar.gz").read_bytes(),
        "data_batch_1": (cifar / "data_batch_1").read_bytes(),
    }


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, or with a few bytes changed or left out, headers more often than the rest."""
    changed = bytearray(content[: rng.integers(len(content))] if rng.random() < 0.2 else content)
    for _ in range(rng.integers(1, 8)):
        if changed:
            place = rng.integers(len(changed) if rng.random() < 0.5 else min(200, len(changed)))
            kind = rng.integers(4)
            if kind == 0:
                changed[place] ^= 1 << rng.integers(8)
            elif kind == 1:
                changed[place] = (0, 127, 128, 255)[rng.integers(4)]
            elif kind == 2:
                changed[place : place + 4] = b"\xff\xff\xff\x7f"
            else:
                del changed[place : place + rng.integers(1, 20)]
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_are_read_or_refused(tmp_path: Path):
    rng, of_images, others = np.random.default_rng(SEED), images(), archives(tmp_path / "whole")
    outcomes = {"read": 0, "refused": 0}
    for n in range(TRIES):
        folder = tmp_path / f"{n}"
        folder.mkdir()
        name = [*of_images, *others][rng.integers(len(of_images) + len(others))]
        if name in of_images:
            path = folder
            (folder / "good.png").write_bytes(of_images["PNG"])
            (folder / ("bad.tif" if "TIFF" in name else "bad.png")).write_bytes(damaged(of_images[name], rng))
        else:
            path = folder if name == "data_batch_1" else folder / name
            (folder / name).write_bytes(damaged(others[name], rng))
        size = (4, 4) if name in of_images and rng.random() < 0.5 else None
        keys = {"memory_gib": float(4 * rng.integers(2)), "skip_bad_files": bool(rng.integers(2))}
        try:
            data = load(path, image_size=size, **keys)
            assert len(data.train[:]) and len(data.test[:]), name
        except UserError as error:
            assert "\n" not in str(error), name
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
        shutil.rmtree(folder)
    assert min(outcomes.values()) > TRIES / 10  # the damage is neither fatal nor without effect
