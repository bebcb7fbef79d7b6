"""CIFAR-10's Python version, pickles of a dictionary, read without running anything that they name.

A pickle is a program that may call any function of any module. Here it may make the dictionaries, lists,
strings, numbers and arrays of bytes that a batch of CIFAR-10 consists of, through the classes below, which
stand for NumPy's; any other name is an error.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Sequence

import numpy as np

PIXELS = 3 * 32 * 32
BYTE_TYPES = ("u1", "|u1")


class _Dtype:
    """In the place of numpy.dtype."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """Byte order and fields, which bytes have not."""


class _Array:
    """In the place of numpy.ndarray."""

    value: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, fortran_order, data = state
        self.fill(data, dtype, shape, "F" if fortran_order else "C")

    def fill(self, data: bytes, dtype: _Dtype, shape: Sequence[int], order: str) -> None:
        if dtype.name not in BYTE_TYPES or math.prod(shape) != len(data):
            raise ValueError(f"an array of {dtype.name} with shape {shape} and {len(data)} bytes")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(cls: type, shape: object, typecode: object) -> _Array:
    return _Array()


def _frombuffer(data: bytes, dtype: _Dtype, shape: Sequence[int], order: str) -> _Array:
    array = _Array()
    array.fill(bytes(data), dtype, shape, order)
    return array


def _encode(text: str, encoding: str) -> bytes:
    """How bytes are written by Python 3 in the format of Python 2."""
    if encoding != "latin1":
        raise ValueError(f"text in {encoding}")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], Callable] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class _Unpickler(pickle._Unpickler):  # the one in C lets a pickle of 10 bytes ask for 32 GiB
    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in _NAMES:
            raise ValueError(f"it names {module}.{name}, which is not read")
        return _NAMES[module, name]


def read_cifar_pickle(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Planes, uint8 (N, 3072), and labels, uint8 (N,), of a batch.

    Raises:
        ValueError: If the pickle is damaged or holds something else.
    """
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        named = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        planes, labels = named["data"].value, np.array(named["labels"], np.uint8)
    except KeyError as error:
        raise ValueError(f"it has no entry {error}") from error
    except Exception as error:  # of pickle and of the classes above: of many kinds
        raise ValueError(str(error).split("\n")[0] or type(error).__name__) from error
    if planes.shape != (len(labels), PIXELS) or labels.ndim != 1:
        raise ValueError(f"its data have shape {planes.shape}, its labels {labels.shape}")
    return planes, labels
