"""What is restored: measurements that are read, or made from samples that are read.

A measurement y belongs to samples of the model, x = x_user/scale + z with z the model's value of the user's
0. For a linear operator A that treats channels alike

    y_user = A(x_user) = scale (y - A(z)),

where tasks that measure single elements have the identity for A, and NaN for what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.data.inputs import Inputs
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError
from score_diffusion.run.tasks import Task
from score_diffusion.samplers.inverse import LinearOperator


@dataclass(frozen=True)
class Measurements:
    """What is restored."""

    task: Task
    y: Tensor
    """In the units of the model, (n, *output_shape), float32."""
    names: tuple[str, ...]
    found: int
    """How many inputs there are, of which these are the first."""
    truth: np.ndarray | None
    """What was measured, in the user's units, (n, *shape); None where it is not known."""

    @property
    def where(self) -> Tensor:
        """The elements that are judged, booleans of a sample's shape: the missing ones, or all if none is."""
        known = self.task.known
        if known is None or known.all():
            return torch.ones(self.task.operator.input_shape, dtype=torch.bool)
        return ~known


def measure(task: Task, truth: Inputs, scaling: Scaling, noise: float, seed: int) -> Measurements:
    """Measures samples; the noise of sample k depends on (seed, k) only."""
    _check_scales(task, scaling)
    y = task.operator.measure(scaling.user_to_model(truth.samples), noise, seed)
    return Measurements(task, y, truth.names, truth.found, truth.samples.numpy())


def as_measured(task: Task, given: Inputs, scaling: Scaling) -> Measurements:
    """Takes inputs as measurements.

    Raises:
        UserError: If a measured value is NaN or infinite.
    """
    _check_scales(task, scaling)
    scale, offset = _units(task, scaling)
    y = (given.samples.double() / scale + offset).float()
    if task.known is not None:
        y = task.operator(y)
    if not y.isfinite().all():
        raise UserError("the measurements hold NaN or infinite values where they are said to be known")
    return Measurements(task, y, given.names, given.found, None)


def to_user(measurements: Measurements, scaling: Scaling) -> np.ndarray:
    """The measurements in the user's units; where elements are measured, samples with NaN for the others."""
    task = measurements.task
    scale, offset = _units(task, scaling)
    if task.known is None:
        return (scale * (measurements.y.double() - offset)).float().numpy()
    assert isinstance(task.operator, LinearOperator)  # a mask
    values = scale * (task.operator.adjoint(measurements.y).double() - offset)
    return torch.where(task.known, values, torch.nan).float().numpy()


def shown(measurements: Measurements, scaling: Scaling) -> np.ndarray:
    """The measurements as what a picture shows of them, in the user's units."""
    picture = measurements.task.picture
    if picture is None:
        return to_user(measurements, scaling)
    return scaling.model_to_user(picture(measurements.y)).numpy()


def _units(task: Task, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """The scale, along the channels of a measurement, and A(z), both float64 with a batch axis of one."""
    operator = task.operator
    zero = scaling.user_to_model(torch.zeros(1, *operator.input_shape)).double()
    offset = zero if task.known is not None else operator(zero)
    values = (1.0,) if scaling.levels else scaling.scale
    scale = torch.tensor(values, dtype=torch.float64).reshape(1, -1, *(1,) * (offset.ndim - 2))
    return scale, (torch.zeros_like(offset) if scaling.levels else offset)


def _check_scales(task: Task, scaling: Scaling) -> None:
    """Refuses operators that mix channels of different scales, or are not linear, of data with scales."""
    if scaling.standardizes and not isinstance(task.operator, LinearOperator):
        raise UserError(
            f"{type(task.operator).__name__} is not linear, and the run's data are standardized: restore "
            "with a model that was trained with data.standardize=none"
        )
    channels = 1 if scaling.levels else len(scaling.scale)
    if task.known is None and channels > 1 and task.operator.output_shape[0] != channels:
        raise UserError(
            f"{type(task.operator).__name__} mixes channels, and the run's data have {channels} channels of "
            "different scales: restore with a model that was trained with data.standardize=auto or none"
        )
