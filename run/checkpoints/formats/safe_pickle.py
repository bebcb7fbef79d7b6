"""Files of torch.save from other libraries, read without executing anything in them."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.checkpoints.contents import check_not_compressed, has_all_its_numbers
from score_diffusion.run.errors import UserError

# Old files store learning rates as NumPy numbers: the functions that rebuild those do nothing else.
_SCALAR = cast(Callable[..., Any], np.float64(0).__reduce__()[0])
NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32")),
]
WRAPPER = "module."  # how names begin in a model that DataParallel wraps
COMPILED = "_orig_mod."  # what torch.compile puts into names


def load_tensors(path: Path) -> object:
    """The contents of a file: tensors, numbers, strings, lists and dictionaries, on the CPU.

    Raises:
        UserError: If there is no such file, it is damaged, or reading it would execute other code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint file {path} does not exist")
    try:
        with open(path, "rb") as file:
            check_not_compressed(file)
        with torch.serialization.safe_globals(NUMBERS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual protocols, which are read or are not
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "global" in line.lower()), "not a pickle")
        raise UserError(
            f"{path} is refused: it holds more than tensors and numbers, or is damaged ({reason.strip()})"
        ) from error
    except Exception as error:  # torn bytes make the unpickler raise anything, AssertionError among them
        raise UserError(
            f"{path} is damaged or not a file of torch.save ({_first_line(error)}): copy it again"
        ) from error


def state_dict(value: object, what: str) -> dict[str, Tensor]:
    """A model's tensors by name, without what wrappers added to the names.

    Args:
        value: What a file holds in the place of a state_dict.
        what: What to call it in an error.

    Raises:
        UserError: If it is not a dictionary of dense tensors of real numbers.
    """
    if not isinstance(value, dict) or not value:
        raise UserError(f"{what} must be a dictionary of tensors, it is {_kind(value)}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(
                f"{what} must be a dictionary of tensors by name, it holds {_kind(tensor)} under {name!r}"
            )
        _check(tensor, what, name)
    names = {name: name.replace(COMPILED, "") for name in value}
    while all(name.startswith(WRAPPER) for name in names.values()):
        names = {name: short.removeprefix(WRAPPER) for name, short in names.items()}
    return {names[name]: tensor for name, tensor in value.items()}


def tensor_list(value: object, what: str) -> list[Tensor]:
    """A list of tensors.

    Raises:
        UserError: If it is not a list of dense tensors of real numbers.
    """
    if not isinstance(value, list) or not all(isinstance(tensor, Tensor) for tensor in value):
        raise UserError(f"{what} must be a list of tensors, it is {_kind(value)}")
    for i, tensor in enumerate(value):
        _check(tensor, what, str(i))
    return value


def _check(tensor: Tensor, what: str, name: str) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise UserError(f"{what} must hold dense tensors of real numbers, {name} is {tensor.layout}")
    if not has_all_its_numbers(tensor):
        raise UserError(
            f"{what} must hold dense tensors, {name} has shape {tuple(tensor.shape)} without them"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def training_step(value: object, what: str) -> int:
    """A number of training steps.

    Raises:
        UserError: If it is anything else.
    """
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float | np.number):
        raise UserError(f"{what} must be a number of training steps, it is {_kind(value)}")
    if not math.isfinite(number) or number < 0 or number != int(number) or number >= 2**53:
        raise UserError(f"{what} must be a number of training steps of 0 or more, it is {number}")
    return int(number)


def _kind(value: object) -> str:
    if isinstance(value, dict | list | tuple | str):
        return f"{'an empty' if not value else 'a'} {type(value).__name__}"
    return f"of type {type(value).__name__}"
