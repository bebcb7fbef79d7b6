"""Files of torch.save from elsewhere, read without executing anything they say."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch

from score_diffusion.run.errors import UserError

# Older files keep learning rates as NumPy numbers: the functions that rebuild those do nothing else.
_SCALAR = np.float64(0).__reduce__()[0]
NUMBERS = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32")),
]


def load_tensors(path: Path) -> object:
    """What a file holds: tensors, numbers, strings, lists and dictionaries, on the CPU.

    Raises:
        UserError: If there is no such file, it is damaged, or reading it would execute other code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint file {path} does not exist")
    try:
        with torch.serialization.safe_globals(NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "global" in line.lower()), "not a pickle")
        raise UserError(
            f"{path} is refused: it holds more than tensors and numbers, or is damaged ({reason.strip()})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or no file of torch.save: copy it again") from error
