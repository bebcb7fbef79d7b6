"""From a configuration to the objects of a training: times, objective, trainer, preview, loop settings."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.models import Autoencoder, UNet
from score_diffusion.models.conditions import condition_sizes
from score_diffusion.run.build import (
    CONDITION_KEYS,
    build_encoder,
    build_model,
    build_sde,
    choose,
)
from score_diffusion.run.builders.autoencoders import build_autoencoder, build_autoencoding
from score_diffusion.run.builders.encoders import (
    AUTOENCODING,
    ENCODER_OF,
    build_encoder_objective,
    check_network,
)
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import differing_keys, read_config
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import read_data_info
from score_diffusion.run.data.low_resolution import LEVEL, LOW_RESOLUTION
from score_diffusion.run.data.mirroring import check_mirroring
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.key_types import AUTO
from score_diffusion.run.machine import LOWER, refuse_beyond_memory
from score_diffusion.run.training.averages import Averages
from score_diffusion.run.training.batches import BatchSource
from score_diffusion.run.training.learning_rate import LearningRate, total_steps
from score_diffusion.run.training.loaders import make_loader
from score_diffusion.run.training.loop import LoopSettings
from score_diffusion.run.training.low_resolution import LowResolution
from score_diffusion.run.training.memory import TrainingMemory, training_memory
from score_diffusion.run.training.objectives import (
    DenoisingScoreMatching,
    Hybrid,
    Objective,
    UncertaintyWeighted,
)
from score_diffusion.run.training.precision import PRECISIONS, fastest_precision
from score_diffusion.run.training.statistics import TrainingStatistics
from score_diffusion.run.training.trainer import Ranks, StepSettings, Trainer
from score_diffusion.sde_lib import (
    SDE,
    WEIGHTINGS,
    ChainTimes,
    EDMWeighting,
    ImportanceTimes,
    LikelihoodTimes,
    LogNormalTimes,
    MinSNRWeighting,
    NoisyDataModel,
    ScoreModel,
    TrainingTimes,
    UniformTimes,
    Weighting,
    generator_for,
)

TIMES: dict[str, Callable[[ConfigDict, SDE], TrainingTimes]] = {
    "continuous": lambda section, sde: UniformTimes(sde, section.first_time),
    "lognormal": lambda section, sde: LogNormalTimes(sde, section.p_mean, section.p_std, section.first_time),
    "discrete": lambda section, sde: ChainTimes(sde),
    "importance": lambda section, sde: ImportanceTimes(sde),
    "likelihood": lambda section, sde: LikelihoodTimes(sde, section.first_time),
}
Model: TypeAlias = ScoreModel | NoisyDataModel | Autoencoder
"""What is trained."""
FREE_IN_FINE_TUNING = ("model.dropout",)


def build_times(section: ConfigDict, sde: SDE) -> TrainingTimes:
    """The times of a `training` section."""
    return choose(TIMES, section.times, "choice of training.times")(section, sde)


def build_weighting(section: ConfigDict, sigma_data: float) -> Weighting:
    """The weighting of a `training` section; edm takes the model's σ_data."""
    weightings: dict[str, Weighting] = {
        **WEIGHTINGS,
        "min_snr": MinSNRWeighting(section.min_snr_gamma),
        "edm": EDMWeighting(sigma_data),
    }
    return choose(weightings, section.weighting, "weighting")


def build_objective(
    section: ConfigDict, model: ScoreModel, times: TrainingTimes, pixel_levels: int | None
) -> Objective:
    """The objective of a `training` section.

    Args:
        section: The section.
        model: The model to train.
        times: Where the times of a step come from.
        pixel_levels: Number of grey levels where the model sees pixel values that are not dequantized.

    Raises:
        UserError: If the objective is unknown, or does not fit the model, the times or the weighting.
    """
    return choose(OBJECTIVES, section.objective, "objective")(section, model, times, pixel_levels)


def _dsm(section: ConfigDict, model: ScoreModel, times: TrainingTimes, pixel_levels: int | None) -> Objective:
    _refuse_learned_variance(section, model)
    return DenoisingScoreMatching(build_weighting(section, model.sigma_data), section.conditional)


def _uncertainty(
    section: ConfigDict, model: ScoreModel, times: TrainingTimes, pixel_levels: int | None
) -> Objective:
    _refuse_learned_variance(section, model)
    if section.times == "importance":  # losses of equal size leave nothing to draw by
        raise UserError(
            "training.objective=uncertainty cannot be combined with training.times=importance: set "
            "training.times=discrete"
        )
    weighting = build_weighting(section, model.sigma_data)
    return UncertaintyWeighted(model.sde, weighting, section.conditional)


def _refuse_learned_variance(section: ConfigDict, model: ScoreModel) -> None:
    if model.learned_variance:
        raise UserError(
            f"training.objective={section.objective} does not train the variance of "
            "model.learned_variance=True: set training.objective=hybrid or model.learned_variance=False"
        )


def _hybrid(
    section: ConfigDict, model: ScoreModel, times: TrainingTimes, pixel_levels: int | None
) -> Objective:
    if not model.learned_variance:
        raise UserError("training.objective=hybrid trains a variance: set model.learned_variance=True")
    if not times.in_chain:
        raise UserError("training.objective=hybrid needs training.times=discrete or importance")
    if section.weighting != "plain":
        raise UserError(
            f"training.objective=hybrid needs training.weighting=plain, got {section.weighting!r}"
        )
    objective = Hybrid(model.sde, pixel_levels, section.vlb_weight, section.conditional)
    if model.sde.sigma(objective.times[-1]) > 0:
        raise UserError(
            f"training.objective=hybrid needs an SDE without noise at t = 0, unlike {model.sde}: set "
            "sde.name=ddpm or vpsde"
        )
    return objective


OBJECTIVES: dict[str, Callable[[ConfigDict, ScoreModel, TrainingTimes, int | None], Objective]] = {
    "dsm": _dsm,
    "uncertainty": _uncertainty,
    "hybrid": _hybrid,
}


def total_training_steps(section: ConfigDict) -> int:
    """The steps of a whole training: `steps`, or as many as `images` need if they are fewer."""
    return total_steps(section.steps, section.images, section.batch_size)


def check_batch_size(section: ConfigDict) -> None:
    """Refuses a `training` section whose batches cannot be split evenly among processes and micro-batches."""
    ranks = processes.world_size()
    if section.batch_size % (ranks * section.accumulate) and ranks > 1:
        raise UserError(
            f"training.batch_size={section.batch_size} cannot be split evenly: set it to a multiple of "
            f"{ranks * section.accumulate}, the number of processes times training.accumulate"
        )
    if section.batch_size % section.accumulate:
        raise UserError(
            f"training.accumulate={section.accumulate} must divide training.batch_size={section.batch_size}"
        )


def _check_conditions(model: Model, dataset: Dataset) -> None:
    """Refuses `training.conditional` where the network and the data do not have the same conditions."""
    of_samples = (LOW_RESOLUTION, LEVEL)  # which are no conditions of the data
    taken = {kind: size for kind, size in condition_sizes(model).items() if kind not in of_samples}
    given = dataset.condition_sizes
    if not given and taken == condition_sizes(model):
        raise UserError(
            "training.conditional=True conditions the network on class labels, captions, cond_vector, "
            f"cond_tokens or cond_image of the data, and the data {dataset.name!r} have none of them"
        )
    if dataset.held_out_conditions.keys() != dataset.conditions.keys():
        raise UserError(
            f"the held-out samples of the data {dataset.name!r} must have the labels and conditions that the "
            "training samples have: add y_test or cond_..._test, or leave x_test out, and a part of the "
            "training set is held out"
        )
    for kind in {**given, **taken}:
        key, ours, size = CONDITION_KEYS[kind], taken.get(kind, 0), given.get(kind, 0)
        if size == 0:
            raise UserError(
                f"model.{key}={ours}, and the data {dataset.name!r} have no {kind}: set model.{key}=0"
            )
        if kind == "label" and ours < size:
            raise UserError(
                f"the data have {size} classes, and the network {ours}: set model.{key}={size} or more, or 0 "
                "to take the number from the data"
            )
        if kind != "label" and ours != size:
            raise UserError(
                f"the {kind} of the data is of size {size}, and model.{key}={ours}: set it to 0 or {size}"
            )


def build_trainer(
    config: ConfigDict, dataset: Dataset, device: torch.device, initial: dict[str, Tensor] | None = None
) -> Trainer:
    """The trainer of a configuration with numbers for its noise levels, at step 0. Every rank calls it.

    Args:
        config: The configuration.
        dataset: The data.
        device: Where to train.
        initial: Weights to start from; None for random ones.

    Raises:
        UserError: If a setting is unknown or does not fit the others.
    """
    check_batch_size(config.training)
    check_network(config)
    torch.manual_seed(generator_for(config.seed, "weights").initial_seed())
    model = build_network(config, dataset.shape)
    _refuse_beyond_memory(config.training, model, dataset.shape, device)
    if initial is not None:
        checkpoint.load_weights(model, initial, expanded(config.training.init_from))
    return assemble_trainer(config, dataset, model, device)


def build_network(config: ConfigDict, shape: tuple[int, ...]) -> Model:
    """What the objective of a configuration trains, for samples of a shape, with initial weights.

    Raises:
        UserError: If the network refuses its arguments or such samples.
    """
    if config.training.objective == AUTOENCODING:
        model: Model = build_autoencoder(config.model, shape)
    else:
        make = build_encoder if config.training.objective in ENCODER_OF else build_model
        model = make(config.model, build_sde(config.sde), shape)
    if config.training.recompute:
        unets = [module for module in model.modules() if isinstance(module, UNet)]
        if not unets:
            raise UserError(
                f"training.recompute is for U-Nets, and the model is {config.model.name!r}: leave it false"
            )
        for unet in unets:
            unet.recompute_blocks()
    return model


def assemble_trainer(config: ConfigDict, dataset: Dataset, model: Model, device: torch.device) -> Trainer:
    """The trainer of a model with its initial weights, by the sections `data` and `training` and the seed.

    Raises:
        UserError: If a setting does not fit the model, the data or the others.
    """
    section, seed = config.training, config.seed
    check_batch_size(section)
    model.to(device)
    if section.conditional:
        _check_conditions(model, dataset)
    elif LOW_RESOLUTION in condition_sizes(model):
        raise UserError(
            "model.upscale conditions the network on small images: set training.conditional=True, which "
            "conditions it on labels or captions too if the data have them"
        )
    if config.data.flip:
        check_mirroring(dataset, section.conditional or section.objective in ENCODER_OF)
    group = processes.step_group(device, section.patience)
    ranks = None if group is None else Ranks(group, sharded=section.parallel == "fsdp")
    if section.channels_last and not (ranks and ranks.sharded):  # sharded weights keep the usual order
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averages = Averages(model, section.ema_decay, section.extra_ema_decays, section.ema_sigma_rels)
    objective, times = _objective_and_times(config, dataset, model)
    objective.to(device)
    times = None if times is None else times.to(device)
    if ranks and ranks.sharded and any(True for _ in objective.parameters()):
        raise UserError(
            f"training.objective={section.objective} has weights of its own, which are not sharded: set "
            "training.parallel=ddp"
        )
    batches = _build_batches(config, dataset, times, device)
    held_out = dataset.held_out[: section.held_out]
    statistics = TrainingStatistics(section.batch_size)
    if times is not None and not isinstance(model, Autoencoder):
        interval = (times.first, 0.999 * model.sde.T)  # at T itself rectified flow has no data left
        statistics = TrainingStatistics(section.batch_size, model.sde.log_noise_level, interval)
    return Trainer(
        model,
        objective,
        batches,
        averages,
        statistics.to(device),
        _step_settings(section, device, dataset.shape),
        seed,
        batches.held_out(held_out, dataset.held_out_conditions) if len(held_out) else None,
        ranks,
    )


def _objective_and_times(
    config: ConfigDict, dataset: Dataset, model: Model
) -> tuple[Objective[Any], TrainingTimes | None]:
    """The objective of a model, and where its times come from; None for objectives without times."""
    if isinstance(model, Autoencoder):
        return build_autoencoding(config, dataset, model), None
    section, times = config.training, build_times(config.training, model.sde)
    if isinstance(model, NoisyDataModel):
        objective: Objective[Any] = build_encoder_objective(config, dataset)
    else:
        pixels = bool(dataset.levels) and not config.data.dequantize
        objective = build_objective(section, model, times, dataset.levels if pixels else None)
    return objective, times if objective.uses_times else None


def needed_memory(section: ConfigDict, model: Model, shape: tuple[int, ...]) -> TrainingMemory:
    """The memory that a `training` section takes in this process."""
    batch_size = section.batch_size // processes.world_size()
    n_averages = 1 + len(section.extra_ema_decays) + len(section.ema_sigma_rels)
    return training_memory(model, shape, batch_size, section.accumulate, n_averages)


def _refuse_beyond_memory(
    section: ConfigDict, model: Model, shape: tuple[int, ...], device: torch.device
) -> None:
    """Refuses a training that takes more memory than there is by an estimate that is rather too low."""
    memory = needed_memory(section, model, shape)
    whole = replace(memory, activations=memory.activations // 2)  # of half precision
    if section.parallel == "fsdp":
        whole = replace(whole, weights=0, averages=0)
    refuse_beyond_memory(whole.total, "a training step", LOWER["train"], device.type)


def _build_batches(
    config: ConfigDict, dataset: Dataset, times: TrainingTimes | None, device: torch.device
) -> BatchSource:
    to_model = functools.partial(_to_model, scaling=dataset.scaling, dequantize=config.data.dequantize)
    section = config.training
    return BatchSource(
        make_loader(dataset.train, section.batch_size, config.seed, device),
        dataset.conditions,
        to_model,
        times,
        dataset.shape,
        config.seed,
        device,
        mirror=config.data.flip,
        dropout=section.condition_dropout if section.conditional else 0.0,
        low_resolution=_low_resolution(config, dataset.scaling),
        vocabulary=dataset.vocabulary if section.conditional else None,
    )


def _low_resolution(config: ConfigDict, scaling: Scaling) -> LowResolution | None:
    """What makes the small images of a model that enlarges them; None for other models."""
    if not config.model.upscale:
        return None
    section = config.training
    return LowResolution(config.model.upscale, scaling, section.augment_noise, section.augment_blur)


def _to_model(samples: Tensor, u: Tensor, scaling: Scaling, dequantize: bool) -> Tensor:
    """Samples in the units of the model, dequantized with uniform noise u or not."""
    return scaling.stored_to_model(samples, u if dequantize else None)


def _step_settings(section: ConfigDict, device: torch.device, shape: tuple[int, ...]) -> StepSettings:
    rate = LearningRate(
        section.learning_rate, section.warmup_steps, total_training_steps(section), section.schedule
    )
    precision = fastest_precision(device, shape) if section.precision == AUTO else section.precision
    return StepSettings(
        learning_rate=rate,
        micro_batches=section.accumulate,
        grad_clip=section.grad_clip or math.inf,
        dtype=choose(PRECISIONS, precision, "training.precision"),
        channels_last=section.channels_last,
        compiled=section.compile,
    )


def build_loop_settings(section: ConfigDict) -> LoopSettings:
    """When the loop of a `training` section ends, and what it does in between."""
    return LoopSettings(
        total_steps=total_training_steps(section),
        max_seconds=60 * section.max_minutes or math.inf,
        max_skipped=section.max_skipped,
        log_every=section.log_every,
        checkpoint_every=section.checkpoint_every,
        snapshot_every=section.snapshot_every,
        preview_every=section.sample_every,
        keep=section.keep,
    )


def initial_weights(config: ConfigDict, dataset: Dataset) -> dict[str, Tensor] | None:
    """The averaged weights of the run `training.init_from`, None if it names none. Every rank calls it.

    Raises:
        UserError: If there is no such run, or its network, its SDE or the channels of its data are others.
    """
    if not config.training.init_from:
        return None
    run = expanded(config.training.init_from)
    saved, info = read_config(run), read_data_info(run)
    if info.shape[0] != dataset.shape[0] or len(info.shape) != len(dataset.shape):
        raise UserError(
            f"training.init_from={run} was trained on samples of shape {info.shape}, the data have "
            f"{dataset.shape}: the number of channels must be the same"
        )
    fixed = [
        key
        for key in differing_keys(saved, config)
        if key.startswith(("model.", "sde.")) and key not in FREE_IN_FINE_TUNING
    ]
    if fixed:
        raise UserError(
            f"training.init_from={run} was trained with other values of {', '.join(fixed)}: set the same "
            "values here"
        )
    return checkpoint.latest(run).ema
