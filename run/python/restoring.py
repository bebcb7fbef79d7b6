"""Restoring arrays, by the functions of `--mode restore`."""

from __future__ import annotations

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.run.builders.restoration import build_task, measured_by, refuse_latents, restore_with
from score_diffusion.run.data.inputs import Inputs
from score_diffusion.run.data.user_arrays import measured_values, to_stored
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.judging import judge
from score_diffusion.run.inference.measurements import Measurements, as_measured
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.python.results import Restorations
from score_diffusion.run.tasks import Task, inpaint_known


def restore_arrays(
    trained: TrainedModel, section: ConfigDict, x: object, known: object, measured: bool
) -> Restorations:
    """Posterior samples of arrays, as `Run.restore` explains its arguments.

    Args:
        trained: The model of the prior.
        section: The section `restore`.
        x: The samples, or what was measured.
        known: Which pixels are known; None for what the section says.
        measured: Whether `x` was measured.
    """
    data = trained.data
    refuse_latents(data)
    task = build_task(section, data.shape) if known is None else _with_known(section.task, known, data.shape)
    measurements = _measurements(trained, section, task, x, measured)
    restored = restore_with(trained, section, measurements)
    assert restored is not None  # there is one process
    quality = judge(restored, measurements, data.scaling, section.seed)
    return Restorations(restored.samples, restored.mean, restored.deviation, restored.nfe, data, quality)


def _with_known(task: str, known: object, shape: tuple[int, ...]) -> Task:
    if task != "inpaint":
        raise UserError(f"known says which pixels are known for task inpaint, not for {task}")
    mask = torch.as_tensor(np.asarray(known, bool))
    if mask.shape not in (shape, shape[1:]):
        raise UserError(f"known must be booleans of shape {shape[1:]} or {shape}, got {tuple(mask.shape)}")
    return inpaint_known(mask, shape, "known")


def _measurements(
    trained: TrainedModel, section: ConfigDict, task: Task, x: object, measured: bool
) -> Measurements:
    shape, scaling = trained.data.shape, trained.data.scaling
    if measured:
        of_samples = task.known is not None
        values = measured_values(x, shape if of_samples else task.operator.output_shape, scaling)
        return as_measured(task, _named(values), scaling)
    truth = _named(scaling.stored_to_user(to_stored(x, shape, scaling)))
    return measured_by(section, task, truth, scaling)


def _named(samples: Tensor) -> Inputs:
    return Inputs(samples, tuple(map(str, range(len(samples)))), len(samples))
