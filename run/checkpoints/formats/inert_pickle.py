"""Pickles read without importing or executing anything: every class and function in them becomes a record.

`pickle` builds an object by calling what the file names. Here a call returns an `Inert`, which only remembers
the name and the arguments, so that a file of any content can be looked at. Tensors are then made of the
records that describe them, with sizes checked against the bytes that are there.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from score_diffusion.run.errors import UserError

MOST_TENSORS = 100_000  # of a module; a pickle can refer to one tensor any number of times
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"


class Inert:
    """Whatever a pickle would have built; subclasses stand for the classes and functions that it names."""

    path = ""
    """The name of the class or function, with its module."""

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        self = object.__new__(cls)
        self.args, self.state, self.items = args, None, {}
        return self

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.args: tuple[object, ...]
        """What it would have been called with."""
        self.state: object
        """What would have become its attributes."""
        self.items: dict[Any, object]
        """What would have been stored in it as in a dictionary."""

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.items[key] = value

    def append(self, item: object) -> None:
        """Takes an item of a list, which nothing here reads."""

    def extend(self, items: object) -> None:
        """Takes items of a list."""

    def add(self, item: object) -> None:
        """Takes an item of a set."""


class _Reader(pickle._Unpickler):  # in Python: a table of its own in C would trust sizes that the file names
    """An unpickler for which every name stands for a class of its own that does nothing."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._classes: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> type[Inert]:
        path = f"{module}.{name}"
        if path not in self._classes:
            self._classes[path] = type("Named", (Inert,), {"path": path})
        return self._classes[path]

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("it refers to objects outside of the file")

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("it names classes by registered numbers")


def load(path: Path) -> object:
    """What a pickle holds, with an `Inert` in the place of everything that is not plain data.

    Raises:
        UserError: If there is no such file, or it is not a pickle.
    """
    if not path.is_file():
        raise UserError(f"checkpoint file {path} does not exist")
    try:
        with open(path, "rb") as file:
            return _Reader(file).load()
    except Exception as error:  # torn bytes make it raise anything
        raise UserError(
            f"{path} is damaged or not a pickle ({type(error).__name__}): copy it again"
        ) from error


def attributes(value: object) -> dict[str, object]:
    """The attributes of an object, and of one that EDM's persistence wraps those of the original."""
    if not isinstance(value, Inert):
        return {}
    if value.path == PERSISTENT:
        return as_dict(as_dict(value.args[0] if value.args else None).get("state"))
    return as_dict(value.state)


def class_name(value: object) -> str:
    """The name of an object's class."""
    if not isinstance(value, Inert):
        return type(value).__name__
    if value.path == PERSISTENT:
        return str(as_dict(value.args[0] if value.args else None).get("class_name"))
    return value.path.rpartition(".")[2]


def as_dict(value: object) -> dict[str, object]:
    """The items of a dictionary or of an object that stands for one; none of anything else."""
    items: Mapping[Any, object] = value.items if isinstance(value, Inert) else {}
    if isinstance(value, dict):
        items = value
    return {key: item for key, item in items.items() if isinstance(key, str)}


def module_tensors(module: object) -> dict[str, Tensor]:
    """The parameters and buffers of a torch.nn.Module by name, as in its state_dict.

    Raises:
        ValueError: If a tensor is not described in one of PyTorch's ways, or there are far too many.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in _walk(module, ""):
        if len(tensors) == MOST_TENSORS:
            raise ValueError(f"it has more than {MOST_TENSORS} tensors")
        tensors[name] = _tensor(value)
    return tensors


def _walk(module: object, prefix: str) -> Iterator[tuple[str, object]]:
    state = attributes(module)
    for group in ("_parameters", "_buffers"):
        for name, value in as_dict(state.get(group)).items():
            if value is not None:
                yield prefix + name, value
    for name, child in as_dict(state.get("_modules")).items():
        if child is not None:
            yield from _walk(child, f"{prefix}{name}.")


def _tensor(value: object) -> Tensor:
    """The tensor that a record describes."""
    if not isinstance(value, Inert):
        raise ValueError(f"it holds a {type(value).__name__} where a tensor belongs")
    if value.path == "torch._utils._rebuild_parameter":
        return _tensor(value.args[0])
    if value.path != "torch._utils._rebuild_tensor_v2":
        raise ValueError(f"it holds a {value.path} where a tensor belongs")
    storage, offset, size, stride = value.args[:4]
    flat = _storage(storage)
    shape, strides = _sizes(size), _sizes(stride)
    start = _sizes((offset,))[0]
    count = torch.Size(shape).numel()
    last = start + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if count > flat.numel() or count and last >= flat.numel():
        raise ValueError(f"it holds a tensor of shape {shape} with {flat.numel()} numbers")
    return flat.as_strided(shape, strides, start)


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(n) is int and 0 <= n < 2**40 for n in value):
        raise ValueError("it holds a tensor with impossible sizes")
    return value


def _storage(value: object) -> Tensor:
    """The numbers of a storage, one after the other."""
    if not isinstance(value, Inert) or value.path != "torch.storage._load_from_bytes":
        raise ValueError("it holds a tensor without its numbers")
    data = _bytes(value.args[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual protocols, which are read or are not
            storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torn bytes make the unpickler raise anything
        raise ValueError(f"the numbers of a tensor cannot be read ({type(error).__name__})") from error
    if not isinstance(storage, torch.TypedStorage):
        raise ValueError(f"it holds a {type(storage).__name__} where the numbers of a tensor belong")
    return torch.tensor([], dtype=storage.dtype).set_(storage._untyped_storage)


def _bytes(value: object) -> bytes:
    """Bytes, which old protocols write as text."""
    if isinstance(value, Inert) and value.path == "_codecs.encode" and value.args[1:] == ("latin1",):
        return str(value.args[0]).encode("latin1")
    if not isinstance(value, bytes):
        raise ValueError("it holds a tensor without its numbers")
    return value
