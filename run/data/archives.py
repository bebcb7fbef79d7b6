"""The files in which MNIST and CIFAR-10 come, as arrays, with their official test sets.

    train-images-idx3-ubyte[.gz]      MNIST's idx format, or a folder of its files; next to it
                                      train-labels-idx1-ubyte[.gz], t10k-images..., t10k-labels...
    cifar-10-binary.tar.gz            CIFAR-10's binary version, or a folder with its data_batch_*.bin and
                                      test_batch.bin
    cifar-10-python.tar.gz            its Python version, or a folder with its data_batch_* and test_batch

References:
    The MNIST database (LeCun, Cortes & Burges, 1998), http://yann.lecun.com/exdb/mnist: the idx format.
    Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009),
        https://www.cs.toronto.edu/~kriz/cifar.html: the binary and the Python version.
"""

from __future__ import annotations

import gzip
import math
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from score_diffusion.run.data.cifar_pickles import read_cifar_pickle
from score_diffusion.run.data.sources import GIB
from score_diffusion.run.errors import UserError

IDX_IMAGES = re.compile(r".*[-.]idx3-ubyte(\.gz)?")
MNIST_FOLDERS = ("", "raw", "MNIST/raw")  # where torchvision keeps the files

CIFAR_BATCH = re.compile(r"(data_batch_\d+|test_batch)(?P<binary>\.bin)?")
CIFAR_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
CIFAR_ARCHIVES = (".tar.gz", ".tgz", ".tar")
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then red, green and blue planes
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
MOST_BYTES = 2**30  # of CIFAR-10's archive when it is unpacked, which takes 180 MB
DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error)


def find_idx(path: Path) -> Path | None:
    """The file of training images that a path names: itself, or the one in a folder of MNIST's files.

    Raises:
        UserError: If a folder holds several.
    """
    if not path.is_dir():
        return path if IDX_IMAGES.fullmatch(path.name) else None
    for folder in MNIST_FOLDERS:
        files = [
            file for file in sorted((path / folder).glob("*idx3-ubyte*")) if IDX_IMAGES.fullmatch(file.name)
        ]
        training = {file.name.removesuffix(".gz"): file for file in reversed(files) if "train" in file.name}
        if len(training) > 1:
            raise UserError(f"{path} holds {', '.join(sorted(training))}: name one of them in data.path")
        if training:
            return next(iter(training.values()))
    return None


def read_idx(path: Path, memory_gib: float) -> dict[str, np.ndarray]:
    """x_train, uint8 (N, H, W), of an idx file; y_train (N,), x_test and y_test of the files next to it.

    Raises:
        UserError: If a file is damaged, larger than memory, or has not as many labels as there are images.
    """
    arrays = _idx_images_and_labels(path, "train", memory_gib)
    for other in ("t10k", "test"):
        test = _existing(path.with_name(path.name.replace("train", other)))
        if test is not None and test != path:
            return arrays | _idx_images_and_labels(test, "test", memory_gib)
    return arrays


def _idx_images_and_labels(path: Path, part: str, memory_gib: float) -> dict[str, np.ndarray]:
    images = _idx_array(path, dimensions=3, memory_gib=memory_gib)
    labels_path = _existing(path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1")))
    if labels_path is None or labels_path == path:
        return {f"x_{part}": images}
    labels = _idx_array(labels_path, dimensions=1, memory_gib=memory_gib)
    if len(labels) != len(images):
        raise UserError(f"{labels_path} holds {len(labels)} labels for {len(images)} images of {path}")
    return {f"x_{part}": images, f"y_{part}": labels}


def _existing(path: Path) -> Path | None:
    """A file, or the same one packed or unpacked."""
    name = path.name.removesuffix(".gz")
    return next((p for p in (path, path.with_name(name), path.with_name(name + ".gz")) if p.is_file()), None)


def _idx_array(path: Path, dimensions: int, memory_gib: float) -> np.ndarray:
    """An idx file: two zero bytes, 8 for uint8, the number of dimensions, big-endian sizes, the numbers."""
    header_size = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(header_size)
            if len(header) < header_size or header[:4] != bytes([0, 0, 8, dimensions]):
                raise UserError(f"{path} is not an idx file of uint8 numbers in {dimensions} dimensions")
            shape = tuple(int(n) for n in np.frombuffer(header[4:], ">u4"))
            size = math.prod(shape)
            if size > memory_gib * GIB:
                raise UserError(
                    f"{path} takes {size / GIB:.3g} GiB by its header and data.memory_gib is {memory_gib:g}: "
                    "raise data.memory_gib"
                )
            data = file.read(size + 1)  # to the end of the file, where gzip's checksum is
    except DAMAGED as error:
        raise UserError(f"idx file {path} is cut short or damaged ({error}): copy it again") from error
    if len(data) != size:
        follow = f"{len(data)} follow" if len(data) < size else "more follow"
        raise UserError(
            f"idx file {path} is cut short or damaged: its header says {shape}, {size} bytes, and {follow}; "
            "copy it again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def find_cifar(path: Path) -> Path | None:
    """The archive or folder of CIFAR-10's files that a path names."""
    if not path.is_dir():
        return path if path.name.endswith(CIFAR_ARCHIVES) else None
    folders = (path / folder for folder in CIFAR_FOLDERS)
    return next((folder for folder in folders if any(map(_is_cifar, folder.glob("data_batch_*")))), None)


def _is_cifar(path: Path) -> bool:
    return CIFAR_BATCH.fullmatch(path.name) is not None


def read_cifar(path: Path) -> dict[str, np.ndarray]:
    """x_train, uint8 (N, 32, 32, 3), and y_train (N,) of CIFAR-10; x_test and y_test of its test batch.

    Raises:
        UserError: If a file is damaged, or there is none.
    """
    batches = dict(_folder_batches(path) if path.is_dir() else _archive_batches(path))
    arrays = {}
    for part, start in (("train", "data_batch_"), ("test", "test_batch")):
        records = [_records(name, batches[name], path) for name in sorted(batches) if name.startswith(start)]
        if records:
            arrays[f"x_{part}"] = np.concatenate([images for images, _ in records])
            arrays[f"y_{part}"] = np.concatenate([labels for _, labels in records])
    if "x_train" not in arrays:
        raise UserError(
            f"{path} holds none of CIFAR-10's files data_batch_1, ... or data_batch_1.bin, ...; unpack an "
            "archive of images, or pack it as .zip"
        )
    highest = max(arrays[name].max() for name in arrays if name.startswith("y_"))
    if highest >= len(CIFAR_CLASSES):
        raise UserError(
            f"{path} holds the label {highest}, and CIFAR-10's are 0 to 9: it is damaged, or CIFAR-100"
        )
    return arrays


def _records(name: str, data: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels (N,) of a batch file."""
    match = CIFAR_BATCH.fullmatch(name)
    if match is not None and match["binary"]:
        if not data or len(data) % CIFAR_RECORD:
            raise UserError(
                f"{name} of {path} is cut short: its {len(data)} bytes are not a multiple of "
                f"{CIFAR_RECORD}, the bytes of one image"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
        planes, labels = records[:, 1:], records[:, 0]
    else:
        try:
            planes, labels = read_cifar_pickle(data)
        except ValueError as error:
            raise UserError(f"{name} of {path} is damaged, or no batch of CIFAR-10 ({error})") from error
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _folder_batches(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.iterdir()):
        if _is_cifar(file) and file.is_file():
            if file.stat().st_size > MOST_BYTES:
                raise UserError(f"{file} is too large for a batch of CIFAR-10")
            yield file.name, file.read_bytes()


def _archive_batches(path: Path) -> dict[str, bytes]:
    """The batches in a .tar or .tar.gz file, which is read to its end, where gzip's checksum is."""
    batches, total = {}, 0
    try:
        with open(path, "rb") if path.suffix == ".tar" else gzip.open(path) as file:
            with tarfile.open(fileobj=file, mode="r|") as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    total = _add_size(total, member.size, path)
                    if member.isfile() and CIFAR_BATCH.fullmatch(name):
                        content = archive.extractfile(member)
                        batches[name] = b"" if content is None else content.read()
            while chunk := file.read(2**20):
                total = _add_size(total, len(chunk), path)
    except DAMAGED as error:
        first_line = str(error).split("\n")[0]
        raise UserError(f"archive {path} is cut short or damaged ({first_line}): copy it again") from error
    return batches


def _add_size(total: int, size: int, path: Path) -> int:
    if total + size > MOST_BYTES:
        raise UserError(
            f"archive {path} takes more than {MOST_BYTES / GIB:g} GiB unpacked: it is not CIFAR-10"
        )
    return total + size
