"""Samples as a user has them in Python: pixel values in images' own layout, numbers in the user's units.

    the data     the user's array                                          as in sample files
    grey levels  whole numbers 0 to levels - 1, (n, H, W) or (n, H, W, C)  float32 in [-1, 1], (n, C, H, W)
    numbers      floating point, (n, D) or channels first                  the same

Both forms are read; grey levels are given back as whole numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.data.checks import warn_of_unsigned_brightness
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import quantize


def own_shape(shape: tuple[int, ...], scaling: Scaling) -> tuple[int, ...]:
    """The shape of one sample in the user's layout, for samples of shape (C, *size) or (D,)."""
    if scaling.levels is None:
        return shape
    channels, *size = shape
    return (*size,) if channels == 1 else (*size, channels)


def to_own_units(samples: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Samples in the user's own form.

    Args:
        samples: Brightness in [-1, 1] or numbers in the user's units, shape (n, *shape).
        scaling: The scaling of the run's data.
    """
    if scaling.levels is None:
        return samples
    levels = quantize(torch.from_numpy(samples), scaling.levels).to(torch.uint8).numpy()
    return levels[:, 0] if levels.shape[1] == 1 else np.ascontiguousarray(np.moveaxis(levels, 1, -1))


def to_stored(array: object, shape: tuple[int, ...], scaling: Scaling) -> Tensor:
    """Stored samples, shape (n, *shape): grey levels, or standardized numbers.

    Args:
        array: One or several samples, a NumPy array or a tensor, in either form.
        shape: Of a stored sample.
        scaling: The scaling of the run's data.

    Raises:
        UserError: If the array has another shape or dtype, or values out of range.
    """
    given = _array(array)
    whole, own = np.issubdtype(given.dtype, np.integer), own_shape(shape, scaling)
    samples = _with_rows(given, own if whole else shape)
    if samples is None or not (whole or np.issubdtype(given.dtype, np.floating)):
        raise UserError(_expected(own, shape, scaling, given))
    if scaling.levels is None:
        if not np.isfinite(samples).all():
            raise UserError("the samples must be finite, they hold NaN or infinite values")
        return torch.from_numpy(scaling.user_to_stored(samples))
    if not whole:
        if not np.abs(samples).max() <= 1:  # also refuses NaN
            raise UserError(
                "brightness must be between -1 and 1: give the grey levels as whole numbers instead"
            )
        warn_of_unsigned_brightness(samples.min(), scaling, "the samples")
        return quantize(torch.tensor(samples), scaling.levels).to(torch.uint8)
    if samples.min() < 0 or samples.max() >= scaling.levels:
        raise UserError(
            f"grey levels must be between 0 and {scaling.levels - 1}, as those of the run's data, got "
            f"{samples.min()} to {samples.max()}"
        )
    samples = samples[:, None] if samples.ndim == 3 else np.moveaxis(samples, -1, 1)
    return torch.from_numpy(np.array(samples, np.uint8, order="C"))


def measured_values(array: object, shape: tuple[int, ...], scaling: Scaling) -> Tensor:
    """Measurements in the user's units, floating point (n, *shape); what is missing in them may be anything.

    Args:
        array: One or several measurements: floating point (n, *shape), or grey levels in images' own layout.
        shape: Of a measurement, (C, *size).
        scaling: The scaling of the run's data.

    Raises:
        UserError: If the array has another shape or dtype, or grey levels out of range.
    """
    given = _array(array)
    if np.issubdtype(given.dtype, np.integer) and scaling.levels is not None:
        return scaling.stored_to_model(to_stored(given, shape, scaling))
    samples = _with_rows(given, shape)
    if samples is None or not np.issubdtype(given.dtype, np.floating):
        raise UserError(
            f"measurements must be floating-point numbers of shape (n, {', '.join(map(str, shape))}), or "
            f"grey levels, got {given.dtype} of shape {given.shape}"
        )
    return torch.tensor(samples)


def _array(array: object) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def _with_rows(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Samples (n, *shape), of one sample n = 1; None for other shapes."""
    if array.shape == shape:
        return array[None]
    return array if array.shape[1:] == shape and len(array) else None


def _expected(own: tuple[int, ...], shape: tuple[int, ...], scaling: Scaling, given: np.ndarray) -> str:
    rows = f"(n, {', '.join(map(str, own))})"
    kinds = f"numbers of shape {rows}"
    if scaling.levels is not None:
        kinds = (
            f"whole numbers 0 to {scaling.levels - 1} of shape {rows}, or brightness from -1 to 1 of shape "
            f"(n, {', '.join(map(str, shape))})"
        )
    return f"the samples must be {kinds}, as the run's data; got {given.dtype} of shape {given.shape}"
