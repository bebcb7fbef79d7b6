"""Small images and data sets that the tests of run/data share."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 6, 9, 3), np.uint8)


def load(path: Path | str, **keys: object) -> Dataset:
    """What a path gives with other options."""
    return load_dataset(DataOptions(path=str(path), **({"workers": 2} | keys)))


def write_images(folder: Path, numbers: range, suffix: str = ".png") -> Path:
    """Some of PIXELS as files 00.png, 01.png, ... of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        Image.fromarray(PIXELS[i]).save(folder / f"{i:02d}{suffix}")
    return folder


def folder_of_images(root: Path, pixels: np.ndarray = PIXELS[:12]) -> Path:
    """Images in two folders, the classes."""
    for i, image in enumerate(pixels):
        folder = root / ("cats" if i % 3 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return root


def zipped(folder: Path, path: Path, separator: str = "/") -> Path:
    """A folder as a zip file."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            if file.is_dir():
                continue
            name = file.relative_to(folder).as_posix()
            info = zipfile.ZipInfo(name)
            info.filename = name.replace("/", separator)  # which ZipInfo() would set right
            archive.writestr(info, file.read_bytes())
    return path


def numbers(samples: torch.Tensor) -> set[int]:
    """Which of PIXELS the samples are."""
    known = {image.transpose(2, 0, 1).tobytes(): i for i, image in enumerate(PIXELS)}
    return {known[sample.numpy().tobytes()] for sample in samples[:]}


def encoded(format: str, image: Image.Image) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()
