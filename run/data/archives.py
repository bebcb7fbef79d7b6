"""The archives in which MNIST and CIFAR-10 come, as arrays.

    train-images-idx3-ubyte[.gz], with train-labels-idx1-ubyte[.gz] beside it            MNIST's idx format
    cifar-10-binary.tar.gz, or the data_batch_*.bin files in a folder                    CIFAR-10's binary
    format

References:
    The MNIST database (LeCun, Cortes & Burges, 1998), http://yann.lecun.com/exdb/mnist: the idx format.
    Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009),
        https://www.cs.toronto.edu/~kriz/cifar.html: the binary version.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from score_diffusion.run.errors import UserError

CIFAR_FILES = "data_batch_*.bin"
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then red, green and blue planes
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def read_idx(path: Path) -> dict[str, np.ndarray]:
    """x_train, uint8 (N, H, W), of an idx file, and y_train (N,) if a file of labels lies beside it.

    Raises:
        UserError: If a file is damaged, or the two disagree.
    """
    arrays = {"x_train": _idx_array(path, dimensions=3)}
    labels_path = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels_path != path and labels_path.exists():
        arrays["y_train"] = labels = _idx_array(labels_path, dimensions=1)
        if len(labels) != len(arrays["x_train"]):
            raise UserError(
                f"{labels_path} holds {len(labels)} labels for {len(arrays['x_train'])} images of {path}"
            )
    return arrays


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


def read_cifar(path: Path) -> dict[str, np.ndarray]:
    """x_train, uint8 (N, 32, 32, 3), and y_train (N,) of CIFAR-10's archive, or of a folder of its files.

    Raises:
        UserError: If a file is damaged.
    """
    if path.is_dir():
        batches = [(file.name, file.read_bytes()) for file in sorted(path.glob(CIFAR_FILES))]
    else:
        batches = list(_tar_members(path))
    if not batches:
        raise UserError(f"{path} holds no {CIFAR_FILES}, the files of CIFAR-10's binary version")
    for name, data in batches:
        if not data or len(data) % CIFAR_RECORD:
            raise UserError(
                f"{name} of {path} is cut short: its {len(data)} bytes are not a multiple of "
                f"{CIFAR_RECORD}, the bytes of one image"
            )
    records = np.concatenate([np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD) for _, data in batches])
    labels = records[:, 0]
    if labels.max() >= len(CIFAR_CLASSES):
        raise UserError(
            f"{path} holds the label {labels.max()}, and CIFAR-10's are 0 to 9: it is damaged, or CIFAR-100"
        )
    return {"x_train": records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), "y_train": labels}


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                if member.isfile() and PurePosixPath(member.name).match(CIFAR_FILES):
                    yield member.name, archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"archive {path} is cut short or damaged ({reason}): copy it again") from error
