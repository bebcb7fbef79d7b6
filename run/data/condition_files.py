"""Files of conditions to draw samples under: the arrays cond_vector, cond_tokens, cond_mask and cond_image of
an .npz, with one row for each sample, and optionally `label`, class indices.

A run on data with such conditions keeps those of its first held-out samples as conditions.npz. A model that
enlarges images has the small images there, cond_low_resolution, with the labels and the texts that belong to
them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.data.low_resolution import LOW_RESOLUTION
from score_diffusion.run.data.user_conditions import KINDS, PREFIX, check_conditions
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic

CONDITIONS_FILE = "conditions.npz"
MOST_ROWS, MOST_BYTES = 1000, 2**26  # of the conditions that a run keeps
LARGEST_FILE = 2**32  # bytes of the arrays of a file that are read


def write_conditions(workdir: Path, conditions: Mapping[str, Tensor]) -> None:
    """Keeps the first conditions of a set in a run directory."""
    row_bytes = sum(values[0].numel() * values.element_size() for values in conditions.values())
    count = max(1, min(MOST_ROWS, MOST_BYTES // row_bytes))
    arrays = {name_of(kind): values[:count].numpy() for kind, values in conditions.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(workdir / CONDITIONS_FILE, buffer.getvalue())


def name_of(kind: str) -> str:
    """The name of an array in a file of conditions or of samples: cond_vector, and label as it is."""
    return kind if kind == "label" else PREFIX + kind


def read_conditions(path: Path, shape: Sequence[int]) -> dict[str, Tensor]:
    """The conditions of a file, by kind.

    Args:
        path: The file.
        shape: Shape of a sample that the conditions are for.

    Raises:
        UserError: If the file is missing or damaged, holds no conditions, or an array has another shape.
    """
    arrays = _arrays(path)
    named = {
        kind: (f"{PREFIX}{kind} of {path}", arrays[PREFIX + kind])
        for kind in KINDS
        if PREFIX + kind in arrays
    }
    if not named:
        names = ", ".join(PREFIX + kind for kind in KINDS)
        raise UserError(f"{path} must hold one of {names}, it holds {', '.join(arrays) or 'nothing'}")
    first = next(iter(named.values()))[1]
    conditions = check_conditions(named, len(first) if first.ndim else 0, shape)
    if "label" in arrays:
        labels = arrays["label"]
        if labels.dtype.kind not in "iu" or labels.shape != (len(first),) or (labels < -1).any():
            raise UserError(
                f"label of {path} must be {len(first)} class indices, got {labels.dtype} of {labels.shape}"
            )
        conditions["label"] = torch.from_numpy(labels.astype(np.int64))
    return conditions


def read_small_images(path: Path, shape: Sequence[int]) -> dict[str, Tensor]:
    """The small images of a file in the units of the model, float32, and the labels and the ids of texts that
    belong to them.

    Args:
        path: The file.
        shape: Of a small image.

    Raises:
        UserError: If the file is missing or damaged, or holds no images of this shape.
    """
    arrays, name = _arrays(path), name_of(LOW_RESOLUTION)
    images = arrays.get(name)
    if images is None or images.dtype.kind != "f" or images.shape[1:] != tuple(shape) or not len(images):
        found = "nothing of that name" if images is None else f"{images.dtype} of shape {images.shape}"
        expected = f"(N, {', '.join(map(str, shape))})"
        raise UserError(f"{path} must hold {name}, small images of shape {expected}, it holds {found}")
    if not np.isfinite(images).all():
        raise UserError(f"{name} of {path} holds NaN or infinite values: replace them")
    found_rows = {LOW_RESOLUTION: torch.from_numpy(images.astype(np.float32))}
    for kind, ndim in (("label", 1), ("text", 2)):
        rows = arrays.get(name_of(kind))
        if rows is None:
            continue
        if rows.dtype.kind not in "iu" or rows.ndim != ndim or len(rows) != len(images):
            raise UserError(
                f"{name_of(kind)} of {path} must be {len(images)} rows of integers, got {rows.dtype} of "
                f"shape {rows.shape}"
            )
        found_rows[kind] = torch.from_numpy(rows.astype(np.int64))
    return found_rows


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"the file of conditions {path} does not exist: name one in sampling.conditions")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > LARGEST_FILE:
            raise ValueError(f"its arrays take {size:,} bytes, and at most {LARGEST_FILE:,} are read")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # of zip, of the headers of arrays, of memory that they ask for
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the file of conditions {path} cannot be read ({reason}): write one with numpy.savez"
        ) from error
