"""From a configuration to what restores: the task, the measurements, the method."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.run.build import build_sde, data_options
from score_diffusion.run.builders.data import load_run_data
from score_diffusion.run.builders.inference import load_unconditioned, with_conditions_if
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.inputs import HELD_OUT, InputReader, Inputs
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.conditioning import ALL
from score_diffusion.run.inference.measurements import Measurements, as_measured, measure
from score_diffusion.run.inference.restoring import (
    Restored,
    RestoreRequest,
    draw_posteriors,
    with_known_elements,
)
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.key_types import AUTO
from score_diffusion.run.tasks import BY_MODEL, RESTORERS, TASKS, Task, method_of
from score_diffusion.samplers import make_sampler
from score_diffusion.samplers.inverse import InverseProblem, Restorer
from score_diffusion.samplers.registry import DEFAULT
from score_diffusion.sde_lib import generator_for

STD_SAMPLES, STD_NFE = 32, 12  # that the standard deviation of the data is measured on


def load_prior(workdir: Path, config: ConfigDict, device: torch.device) -> TrainedModel:
    """The model of a run as the prior of what is restored, of one class where `sampling.label` names it.

    Raises:
        UserError: As for `load_trained`, or if several classes are named.
    """
    return as_prior(load_unconditioned(workdir, config, device), config, workdir)


def as_prior(trained: TrainedModel, config: ConfigDict, workdir: Path) -> TrainedModel:
    """A model as the prior of what is restored, of one class or text where the section `sampling` names it.

    Raises:
        UserError: If several are named, or none although the model knows no p(x) without one, or the
            model enlarges images and another method or task is asked for.
    """
    _check_enlarges(config)
    named = config.sampling.label != ALL or bool(config.sampling.prompt)
    trained = with_conditions_if(named, trained, config, workdir)
    for kind, key in (("label", "label"), ("text", "prompt")):
        if named and len(trained.conditions.rows.get(kind, ())) > 1:
            raise UserError(
                f"--mode restore takes one class or text, got sampling.{key}={config.sampling[key]!r}"
            )
    return trained


def _check_enlarges(config: ConfigDict) -> None:
    """Refuses a model that enlarges images for anything else, and any other model for that.

    Raises:
        UserError: If model, method and task do not fit.
    """
    section, factor = config.restore, config.model.upscale
    by_model = method_of(section.task, section.method) == BY_MODEL
    if not (factor or by_model):
        return
    if not factor:
        raise UserError(
            "restore.method=model needs a model that was trained to enlarge images (model.upscale), and this "
            "one was not: take another method"
        )
    if not by_model or section.task != "superres" or section.superres.factor != factor:
        raise UserError(
            f"this model enlarges images by {factor} and restores nothing else: --task superres --method "
            f"model --config.restore.superres.factor={factor}"
        )
    largest = math.tan(math.pi / 2 * min(config.training.augment_noise, 1 - 1e-9))
    if section.noise > largest:
        raise UserError(
            f"restore.noise={section.noise:g} is more than the model was trained for: its small images had "
            f"noise of up to {largest:g} (training.augment_noise={config.training.augment_noise:g})"
        )


def refuse_latents(data: DataInfo) -> None:
    """Refuses to restore with a model of latents.

    Raises:
        UserError: If the data are latents.
    """
    if data.decoded is not None:
        raise UserError(
            "measurements are of pixels, and this run's model works on latents, whose decoder no method here "
            "differentiates: restore with the run of a model of pixels"
        )


def build_task(section: ConfigDict, shape: Sequence[int]) -> Task:
    """The task of a section `restore` for samples of a shape.

    Raises:
        UserError: If it does not fit them.
    """
    return TASKS[section.task](
        tuple(shape), section.seed, **section.get(section.task, ConfigDict()).to_dict()
    )


def build_restorer(section: ConfigDict, problem: InverseProblem) -> Restorer:
    """The method of a section `restore` for a measurement.

    Raises:
        UserError: If another sampler is asked for than the method has.
    """
    name = method_of(section.task, section.method)
    options = section.get(name, ConfigDict()).to_dict()
    if section.sampler != AUTO:
        if "sampler" not in inspect.signature(RESTORERS[name]).parameters:
            free = [key for key, make in RESTORERS.items() if "sampler" in inspect.signature(make).parameters]
            raise UserError(
                f"method {name} has a sampler of its own: leave --sampler out, or take one of the "
                f"methods {', '.join(free)}"
            )
        options["sampler"] = section.sampler
    return RESTORERS[name](problem, section.nfe, **options)


def check_restorer(config: ConfigDict, measurements: Measurements) -> None:
    """Builds what restores, for its checks.

    Raises:
        UserError, InputError: If the method does not fit the task, the sampler or its options.
    """
    problem = InverseProblem(
        build_sde(config.sde), measurements.task.operator, measurements.y[0], config.restore.noise, 1.0
    )
    build_restorer(config.restore, problem)


def restore_with(trained: TrainedModel, section: ConfigDict, measurements: Measurements) -> Restored | None:
    """Posterior samples of measurements by a section `restore`; None on all ranks except the first."""
    std, operator = data_std(section, trained), measurements.task.operator

    def restorer(y: Tensor) -> Restorer:
        return build_restorer(section, InverseProblem(trained.sde, operator, y, section.noise, std))

    restored = draw_posteriors(trained, restorer, measurements, restore_request(section))
    if restored is None or section.noise > 0 or measurements.task.is_guide:
        return restored
    return with_known_elements(restored, measurements, trained.data.scaling)


def build_measurements(config: ConfigDict, task: Task, data: DataInfo) -> Measurements:
    """What a section `restore` asks to restore: files, or held-out data of the run.

    Raises:
        UserError: If the files cannot be read, or do not fit the run's data or the task.
    """
    section, options = config.restore, data_options(config.data)
    shape, scaling = data.shape, data.scaling
    reader = InputReader(options, scaling, section.num_inputs)
    if section.measured:
        if section.input == HELD_OUT:
            raise UserError("held-out data are no measurements: leave restore.measured false, or name files")
        of_samples, what = task.known is not None, f"measurements of task {section.task}"
        expected = shape if of_samples else task.operator.output_shape
        images = task.picture is None
        return as_measured(task, reader.measurements(section.input, expected, what, images), scaling)
    if section.input == HELD_OUT:
        held_out = load_run_data(config.data, data).test
        samples = scaling.stored_to_user(held_out[: section.num_inputs])
        inputs = Inputs(samples, tuple(f"held-out {k}" for k in range(len(samples))), len(held_out))
    else:
        inputs = reader.truth(section.input, shape)
    return measured_by(section, task, inputs, scaling)


def measured_by(section: ConfigDict, task: Task, inputs: Inputs, scaling: Scaling) -> Measurements:
    """What the task of a section `restore` measures of samples."""
    if task.is_guide:  # which has no noise, and is not what samples should be
        return as_measured(task, inputs, scaling)
    return measure(task, inputs, scaling, section.noise, section.seed)


def data_std(section: ConfigDict, trained: TrainedModel) -> float:
    """The standard deviation of the data that a section `restore` states, or that of samples drawn."""
    if section.data_std != AUTO:
        return section.data_std
    if section.method == BY_MODEL:
        return 1.0  # which it does not use
    seed = generator_for(section.seed, "data_std").initial_seed()
    sampler = make_sampler(DEFAULT, trained.sde, STD_NFE, denoise=True)
    score, cond = trained.sampling_score(), trained.conditions.of(range(1))
    samples = sampler(score, (STD_SAMPLES, *trained.data.shape), seed, cond=cond).samples.double()
    return (samples - samples.mean(0)).square().mean().sqrt().item()


def restore_request(section: ConfigDict) -> RestoreRequest:
    """The posterior samples that a section `restore` asks for."""
    method = method_of(section.task, section.method)
    settings = {
        key: value
        for key, value in section.to_dict().items()
        if key != "batch_size" and (key in (section.task, method) or not isinstance(value, dict))
    }
    return RestoreRequest(
        section.task,
        method,
        section.noise,
        section.num_samples,
        section.seed,
        section.batch_size,
        json.dumps(settings, sort_keys=True),
    )
