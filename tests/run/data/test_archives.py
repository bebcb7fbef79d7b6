from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.data.archives import CIFAR_CLASSES, read_cifar, read_idx
from score_diffusion.run.data.cifar_pickles import read_cifar_pickle
from score_diffusion.run.errors import UserError
from tests.run.data.helpers import PIXELS, load

GREY = PIXELS[..., 0]
LABELS = np.arange(24, dtype=np.uint8) % 4
RECORDS = np.random.default_rng(1).integers(0, 256, (9, 3073), np.uint8)
RECORDS[:, 0] %= 10
PLANES = RECORDS[:, 1:].reshape(9, 3, 32, 32)
BATCHES = {"data_batch_1": RECORDS[:3], "data_batch_2": RECORDS[3:6], "test_batch": RECORDS[6:]}


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_mnist(folder: Path, separator: str, packed: bool, test: str | None = "t10k") -> Path:
    folder.mkdir(parents=True)
    for part, rows in (("train", slice(16)), (test, slice(16, 24))):
        for kind, array in (("images", GREY), ("labels", LABELS)):
            if part is not None:
                content = idx(array[rows])
                name = f"{part}-{kind}{separator}idx{array.ndim}-ubyte{'.gz' if packed else ''}"
                (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
def test_mnist_comes_with_its_official_test_set(packed: bool, separator: str, below: str, tmp_path: Path):
    """By its folder, also as torchvision keeps it, or by its file of training images."""
    folder = write_mnist(tmp_path / "mnist" / below, separator, packed)
    for path in (tmp_path / "mnist", next(folder.glob("train-images*"))):
        data = load(path)
        assert torch.equal(data.train[:, 0], torch.from_numpy(GREY[:16]))
        assert torch.equal(data.test[:, 0], torch.from_numpy(GREY[16:]))
        assert (
            data.labels.tolist() == LABELS[:16].tolist() and data.test_labels.tolist() == LABELS[16:].tolist()
        )
        assert data.classes == ("0", "1", "2", "3")


def test_idx_files_without_company(tmp_path: Path):
    folder = write_mnist(tmp_path / "mnist", "-", False, test=None)
    data = load(folder)
    assert len(data.train) + len(data.test) == 16 and len(data.classes) == 4
    (folder / "train-labels-idx1-ubyte").unlink()
    assert list(read_idx(folder / "train-images-idx3-ubyte", 4.0)) == ["x_train"]
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:5]))
    with pytest.raises(UserError, match="holds 5 labels for 16 images"):
        load(folder)
    (folder / "emnist-letters-train-images-idx3-ubyte").write_bytes(idx(GREY))
    with pytest.raises(UserError, match="holds emnist-letters-train-.*, train-images-.*: name one of them"):
        load(folder)


def test_damage_to_a_packed_file_is_seen(tmp_path: Path):
    """By the checksum at its end, although the pixels before it can be read."""
    path = write_mnist(tmp_path / "mnist", "-", True) / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz is cut short or damaged"):
        load(path)


def python_batch(records: np.ndarray, protocol: int) -> bytes:
    """As the Python version has them: with the names and the labels that Python 2 wrote."""
    labels = records[:, 0].tolist()
    return pickle.dumps({b"data": records[:, 1:].copy(), b"labels": labels, b"batch_label": b"x"}, protocol)


def write_cifar(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    for name, records in BATCHES.items():
        binary = kind == "bin"
        content = records.tobytes() if binary else python_batch(records, int(kind[-1]))
        (folder / f"{name}{'.bin' if binary else ''}").write_bytes(content)
    (folder / "batches.meta").write_bytes(b"")
    return folder


def packed(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


@pytest.mark.parametrize("kind", ["bin", "python2", "python4", "python5"])
def test_cifar_comes_with_its_official_test_set(kind: str, tmp_path: Path):
    name = "cifar-10-batches-bin" if kind == "bin" else "cifar-10-batches-py"
    folder = write_cifar(tmp_path / "cifar" / name, kind)
    archives = (packed(folder, tmp_path / f"cifar-10{suffix}") for suffix in (".tar.gz", ".tgz", ".tar"))
    for path in (folder, tmp_path / "cifar", *archives):
        data = load(path)
        assert torch.equal(data.train, torch.from_numpy(PLANES[:6]))
        assert torch.equal(data.test, torch.from_numpy(PLANES[6:]))
        assert data.labels.tolist() == RECORDS[:6, 0].tolist()
        assert data.test_labels.tolist() == RECORDS[6:, 0].tolist()
        assert data.classes == CIFAR_CLASSES
    (folder / f"test_batch{'.bin' if kind == 'bin' else ''}").unlink()
    data = load(folder)
    assert len(data.train) + len(data.test) == 6


def test_pickles_of_python_2_are_read():
    """Protocol 0 of Python 2 names its modules as text, and has strings where Python 3 has bytes."""
    old = pickle.dumps({"data": RECORDS[:2, 1:].copy(), "labels": [3, 4]}, 0)
    planes, labels = read_cifar_pickle(old.replace(b"numpy._core", b"numpy.core"))
    assert (planes == RECORDS[:2, 1:]).all() and labels.tolist() == [3, 4]


class Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_runs_nothing(protocol: int, tmp_path: Path):
    marker = tmp_path / "executed"
    good = {b"data": RECORDS[:2, 1:].copy(), b"labels": [1, 2]}
    for call in (
        Calls(open, str(marker), "w"),
        Calls(eval, f"open({str(marker)!r}, 'w')"),
        Calls(np.fromfile, "/dev/zero"),
        Calls(np.zeros, (10**9, 10**9)),
    ):
        for hostile in (call, good | {b"more": call}, good | {b"labels": [call]}):
            with pytest.raises(ValueError, match="names .* which is not read"):
                read_cifar_pickle(pickle.dumps(hostile, protocol))
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b".", b"cut", b"\x80\x05",
        b"\x80\x04r\xff\xff\xff\xff.", b"\x80\x05\x96" + b"\xff" * 7 + b"\x00.",
        pickle.dumps(3), pickle.dumps({}), pickle.dumps({"data": 3, "labels": 3}),
        pickle.dumps({"data": RECORDS[:2, 1:].copy(), "labels": [1]}),
        pickle.dumps({"data": RECORDS[:2, 1:].copy(), "labels": [1, 300]}),
        pickle.dumps({"data": RECORDS[:2, 1:].astype(float), "labels": [1, 2]}),
        pickle.dumps({"data": np.array([None, None]), "labels": [1, 2]}),
        pickle.dumps({"data": RECORDS[:2, 2:].copy(), "labels": [1, 2]}),
        b"(" * 10**5, b"]" * 10**5 + b"a" * 10**5,
    ],
    ids=lambda content: str(content[:20]),
)  # fmt: skip
def test_damaged_pickles_are_one_sentence(content: bytes, tmp_path: Path):
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(UserError, match="data_batch_1 of .* is damaged, or no batch of CIFAR-10") as error:
        read_cifar(tmp_path)
    assert "\n" not in str(error.value)


def test_a_flipped_bit_of_an_archive_is_seen(tmp_path: Path):
    """In 40 places of the compressed data, of which a few are filled up by tar and hold no pixel."""
    folder = write_cifar(tmp_path / "cifar-10-batches-bin", "bin")
    whole = packed(folder, tmp_path / "cifar-10-binary.tar.gz").read_bytes()
    right = read_cifar(tmp_path / "cifar-10-binary.tar.gz")["x_train"]
    for place in np.random.default_rng(0).integers(20, 8 * len(whole), 40):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        (tmp_path / "flipped.tar.gz").write_bytes(content)
        try:
            read = read_cifar(tmp_path / "flipped.tar.gz")["x_train"]
        except UserError as error:
            assert "damaged" in str(error) or "cut short" in str(error)
        else:
            assert np.array_equal(read, right)  # a bit of gzip's header: its time, its operating system


def test_an_archive_that_unpacks_to_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("score_diffusion.run.data.archives.MOST_BYTES", 2**20)
    for name, follows in (("inside", b""), ("behind", bytes(2**21))):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            member = tarfile.TarInfo("zeros" if name == "inside" else "data_batch_1.bin")
            member.size = 2**21 if name == "inside" else 3073
            archive.addfile(member, io.BytesIO(bytes(member.size)))
        (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(buffer.getvalue() + follows))
        with pytest.raises(UserError, match="takes more than .* GiB unpacked"):
            read_cifar(tmp_path / "bomb.tar.gz")
