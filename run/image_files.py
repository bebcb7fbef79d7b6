"""Images from folders, zip files and the archives of MNIST and CIFAR-10.

    a folder or a .zip of .png, .jpg, .jpeg, .webp or .bmp files; subfolders are classes
    train-images-idx3-ubyte[.gz], with train-labels-idx1-ubyte[.gz] beside it            MNIST's idx format
    cifar-10-binary.tar.gz, or the data_batch_*.bin files in a folder                    CIFAR-10's binary
    format

All give uint8 arrays (N, H, W, C) with C = 1 or 3, class indices (N,) or None, and the names of the classes.

References:
    The MNIST database (LeCun, Cortes & Burges, 1998), http://yann.lecun.com/exdb/mnist: the idx format.
    Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009),
        https://www.cs.toronto.edu/~kriz/cifar.html: the binary version.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from run.errors import UserError
from run.report import progress_bar

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CROPS = ("center", "none")
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then red, green and blue planes
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class Images:
    """What a source held."""

    pixels: np.ndarray
    """uint8 (N, H, W, C)."""
    labels: np.ndarray | None
    """Class indices, int64 (N,)."""
    classes: tuple[str, ...]
    """Names of the classes; empty without labels."""


def read_images(path: Path, size: int, crop: str) -> Images:
    """The images of a folder, a zip file, an idx file or a CIFAR-10 archive.

    Args:
        path: The source.
        size: Height and width to bring each image to; 0 to keep them, which must then be equal.
        crop: "center", the largest square in the middle before resizing, or "none", each side scaled on its
            own.

    Raises:
        UserError: If the source is missing, damaged, empty or of mixed sizes.
    """
    if crop not in CROPS:
        raise UserError(f"data.crop must be one of {', '.join(CROPS)}, got {crop!r}")
    if not path.exists():
        raise UserError(f"data.path {path} does not exist")
    if path.is_dir() and list(path.glob("data_batch_*.bin")):
        return _cifar(
            [(file.name, file.read_bytes()) for file in sorted(path.glob("data_batch_*.bin"))], path
        )
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        names = [file.relative_to(path).as_posix() for file in files]
        return _decoded(path, names, lambda name: (path / name).read_bytes(), size, crop)
    if path.suffix == ".zip":
        return _zip(path, size, crop)
    if path.name.endswith(("idx3-ubyte", "idx3-ubyte.gz")):
        return _idx(path)
    if path.name.endswith(".tar.gz"):
        return _cifar(list(_tar_members(path)), path)
    raise UserError(
        "data.path must name a .npy or .npz file, a folder or .zip of images, an idx file (…idx3-ubyte[.gz]) "
        f"or CIFAR-10's .tar.gz, got {path}"
    )


def _zip(path: Path, size: int, crop: str) -> Images:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(
                name
                for name in archive.namelist()
                if PurePosixPath(name).suffix.lower() in SUFFIXES and not name.startswith("__MACOSX")
            )
            return _decoded(path, names, archive.read, size, crop)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"zip file {path} is cut short or damaged ({error}): copy it again") from error


def _decoded(source: Path, names: list[str], read: Callable[[str], bytes], size: int, crop: str) -> Images:
    if not names:
        raise UserError(f"{source} holds no image: expected files that end in {', '.join(SUFFIXES)}")
    pixels, first_shape = None, None
    with progress_bar(len(names), "reading images", "image") as bar:
        for i, name in enumerate(names):
            image = _prepared(_open(source, name, read), size, crop)
            if pixels is None:
                first_shape = image.shape
                pixels = np.empty((len(names), *image.shape), np.uint8)
            if image.shape[:2] != first_shape[:2]:
                raise UserError(
                    f"images of {source} differ in size: {names[0]} is {_size(first_shape)} and {name} is "
                    f"{_size(image.shape)} (height x width); set --config.data.image_size=N"
                )
            if image.shape[2] > pixels.shape[3]:  # a colour image among grey ones
                pixels = np.repeat(pixels, 3, axis=3)
            pixels[i] = image
            bar.update()
    folders = [PurePosixPath(name).parent.as_posix() for name in names]
    classes = tuple(sorted(set(folders)))
    labels = None
    if len(classes) > 1:
        labels = np.array([classes.index(folder) for folder in folders], np.int64)
    return Images(pixels, labels, classes if labels is not None else ())


def _open(source: Path, name: str, read: Callable[[str], bytes]) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(read(name)))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"image {name} of {source} cannot be read ({str(error).split(chr(10))[0]}): remove or replace it"
        ) from error
    return image.convert("L" if image.mode in ("1", "L", "LA", "I;16") else "RGB")


def _prepared(image: Image.Image, size: int, crop: str) -> np.ndarray:
    """uint8 (H, W, C)."""
    if size:
        if crop == "center":
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _idx(path: Path) -> Images:
    images = _idx_array(path, dimensions=3)
    labels_path = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = None
    if labels_path != path and labels_path.exists():
        labels = _idx_array(labels_path, dimensions=1).astype(np.int64)
        if len(labels) != len(images):
            raise UserError(f"{labels_path} holds {len(labels)} labels for {len(images)} images of {path}")
    classes = () if labels is None else tuple(map(str, range(int(labels.max()) + 1)))
    return Images(images[..., None], labels, classes)


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """An idx file: two zero bytes, 8 for uint8, the number of dimensions, the big-endian sizes, the
    numbers.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"idx file {path} is cut short or damaged ({error}): copy it again") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(
            f"{path} is not an idx file of uint8 numbers in {dimensions} dimensions, by its first bytes"
        )
    shape = tuple(int(n) for n in np.frombuffer(data[4:header], ">u4"))
    if len(data) - header != int(np.prod(shape)):
        raise UserError(
            f"idx file {path} is cut short: its header says {shape}, {int(np.prod(shape))} bytes, and "
            f"{len(data) - header} follow; copy it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                if member.isfile() and PurePosixPath(member.name).match("data_batch_*.bin"):
                    yield member.name, archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"archive {path} is cut short or damaged ({reason}): copy it again") from error


def _cifar(batches: list[tuple[str, bytes]], source: Path) -> Images:
    if not batches:
        raise UserError(f"{source} holds no data_batch_*.bin, the files of CIFAR-10's binary version")
    for name, data in batches:
        if not data or len(data) % CIFAR_RECORD:
            raise UserError(
                f"{name} of {source} is cut short: its {len(data)} bytes are not a multiple of "
                f"{CIFAR_RECORD}, the bytes of one image"
            )
    records = np.concatenate([np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD) for _, data in batches])
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Images(pixels, records[:, 0].astype(np.int64), CIFAR_CLASSES)
