"""From the sections of a configuration to objects, with one table of names for each kind of object.

A new SDE is one class and one line in its table; the arguments of its constructor are then keys of `sde`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from score_diffusion.models import AUTOENCODERS, ENCODERS, IMAGE_NETWORKS, POINT_NETWORKS
from score_diffusion.models.conditions import condition_sizes, null_condition
from score_diffusion.models.super_resolution import LEVEL_FEATURES, SuperResolution
from score_diffusion.models.text_encoder import FROM_TEXT, TextConditioned, TextEncoder
from score_diffusion.run.console import warn
from score_diffusion.run.data.options import DataOptions, parse_image_size
from score_diffusion.run.errors import UserError, some_of
from score_diffusion.run.key_types import AUTO
from score_diffusion.run.machine import refuse_beyond_memory
from score_diffusion.samplers import (
    Grid,
    Sampler,
    find_sampler,
    make_sampler,
    sampler_grid,
)
from score_diffusion.sde_lib import (
    BETA_TABLES,
    DDPM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    NoisyDataModel,
    RectifiedFlowSDE,
    ScoreModel,
    SubVPSDE,
    noisy_times,
)

T = TypeVar("T")
MOST_TENSORS = 20_000  # of weights, in a network; large ones have some thousands


def ddpm(
    betas: str = "linear", N: int = 1000, first_beta: float | None = None, last_beta: float | None = None
) -> DDPM:
    """The SDE of DDPM's discrete chain.

    Args:
        betas: The table of betas: linear, quadratic, cosine or sigmoid.
        N: Number of steps of the chain.
        first_beta: The first beta, of all tables but cosine; None for 0.1/N.
        last_beta: The last beta, of all tables but cosine; None for 20/N.
    """
    table = choose(BETA_TABLES, betas, "table of betas")
    ends = {} if first_beta is None and last_beta is None else dict(first=first_beta, last=last_beta)
    if ends and "first" not in inspect.signature(table).parameters:
        raise UserError(f"sde.first_beta and sde.last_beta have no meaning for sde.betas={betas}")
    return DDPM(table(N, **ends))


SDES: dict[str, Callable[..., SDE]] = {
    "vpsde": VPSDE,
    "subvpsde": SubVPSDE,
    "vesde": VESDE,
    "cosine": CosineVPSDE,
    "edm": EDMSDE,
    "rectified_flow": RectifiedFlowSDE,
    "ddpm": ddpm,
}
MODELS: dict[str, Callable[..., nn.Module]] = {
    **IMAGE_NETWORKS,
    **POINT_NETWORKS,
    **ENCODERS,
    **AUTOENCODERS,
}
USES = {
    "classifier": "--guidance classifier --config.sampling.classifier.run",
    "clip": "--guidance clip --config.sampling.clip.run",
    "dequantizer": "--config.likelihood.dequantization",
}
"""The key of a score model's command line that takes the run of an encoder."""
FOLLOW_FROM_DATA = ("dims",)  # arguments of networks that are no keys
BYTES_PER_LEVEL = 64  # of an SDE's tables
BYTES_PER_STEP = 2048  # of a sampler's coefficients
MANY_STEPS = 20_000
FITTED = "fitted"  # grid and coefficients fitted to the trained model, see inference/fitted_solver.py
CONDITION_KEYS = {  # of what comes with the data
    "label": "num_classes",
    "vector": "vector_dim",
    "tokens": "token_dim",
    "image": "image_channels",
    "text": "encoder_words",
}
"""The argument of a network that is the size of a kind of condition. 0 follows from the data in training."""
TEXT_OPTIONS = (
    "encoder_words",
    "encoder_width",
    "encoder_depth",
    "encoder_heads",
)  # arguments of the text encoder
UPSCALE_OPTIONS = ("upscale", "upsampling")  # arguments of SuperResolution
# Arguments of ScoreModel among the keys of the section `model`.
SCORE_OPTIONS = ("learned_variance", "scale_input", "noise_input", "sigma_data")


def choose(table: Mapping[str, T], name: str, kind: str) -> T:
    """table[name], or a UserError that suggests valid names."""
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}: choose one of {some_of(name, table)}")
    return table[name]


def data_options(section: ConfigDict) -> DataOptions:
    """The options of a `data` section, which has keys of their names."""
    options = {field.name: section[field.name] for field in fields(DataOptions)}
    return DataOptions(**options | {"image_size": parse_image_size(section.image_size)})


def build_sde(section: ConfigDict) -> SDE:
    """The SDE of a `sde` section: its name and its numbers."""
    options = section.to_dict()
    levels = options.get("N", 0)
    if isinstance(levels, int):
        refuse_beyond_memory(BYTES_PER_LEVEL * levels, f"an SDE of {levels:,} levels", "lower sde.N")
    return choose(SDES, options.pop("name"), "SDE")(**options)


def build_model(section: ConfigDict, sde: SDE, shape: Sequence[int]) -> ScoreModel:
    """The score model of a `model` section for data of a shape, its weights drawn from torch's global seed.

    Raises:
        UserError: If the name is unknown, or the network refuses its arguments or data of this shape.
    """
    model = assemble_model(section, sde, shape)
    run_once(model, shape)
    return model


def build_encoder(section: ConfigDict, sde: SDE, shape: Sequence[int]) -> NoisyDataModel:
    """The classifier or the encoders of a `model` section for images of a shape, with initial weights.

    Raises:
        UserError: If the name is that of another network, or it refuses its arguments or such images.
    """
    name, options = section.name, network_options(section)
    encoder = choose(ENCODERS, name, "model")
    if len(shape) == 1:
        raise UserError(f"model {name!r} takes images, the data are points of shape {tuple(shape)}")
    make = functools.partial(encoder, shape[0], **options, dims=len(shape) - 1)
    with refusing_arguments():
        refuse_too_large(make)
        model = NoisyDataModel(make(), sde)
        with torch.no_grad():
            model(torch.zeros(1, *shape), torch.full((1,), sde.T))
    return model


def network_options(section: ConfigDict) -> dict[str, Any]:
    """The arguments in a `model` section of a network that is no score model.

    Raises:
        UserError: If it is to enlarge images.
    """
    if section.get("upscale"):
        raise UserError(
            f"model {section.name!r} is no score model, and enlarges no images: leave model.upscale at 0"
        )
    others = {"name", "prediction", *SCORE_OPTIONS, *TEXT_OPTIONS, *UPSCALE_OPTIONS} - {
        *_parameters(section.name)
    }
    return {key: value for key, value in section.to_dict().items() if key not in others}


def run_once(model: ScoreModel, shape: Sequence[int]) -> None:
    """Runs the network once, so that a size it does not take is refused before anything is written.

    Raises:
        UserError: If the network refuses it.
    """
    cond = null_condition(condition_sizes(model), shape) or None
    with refusing_arguments(), torch.no_grad():
        model(torch.zeros(1, *shape), torch.full((1,), model.sde.T), cond)


def assemble_model(section: ConfigDict, sde: SDE, shape: Sequence[int]) -> ScoreModel:
    """The model of `build_model` before it has run once; works on the device "meta", too.

    Raises:
        UserError: If the name is unknown, or the network refuses its arguments or data of this rank.
    """
    options = section.to_dict()
    name, prediction = options.pop("name"), options.pop("prediction")
    of_score = {key: options.pop(key) for key in SCORE_OPTIONS if key in options}
    of_text = {key.removeprefix("encoder_"): options.pop(key) for key in TEXT_OPTIONS if key in options}
    factor, upsampling = options.pop("upscale", 0), options.pop("upsampling", "bilinear")
    if of_score.get("noise_input") == AUTO:
        del of_score["noise_input"]
    network = choose(MODELS, name, "model")
    if name in ENCODERS:
        raise UserError(
            f"model {name!r} has no score and draws no samples, it serves another run: give --workdir of a "
            f"score model, with {USES[name]}=RUN"
        )
    if name in AUTOENCODERS:
        raise UserError(
            f"model {name!r} has no score and draws no samples: train a model in its latent space, with "
            "--config.data.autoencoder=RUN, and give --workdir of that one"
        )
    fitting = POINT_NETWORKS if len(shape) == 1 else IMAGE_NETWORKS  # (D,) or (C, *size)
    if name not in fitting:
        raise UserError(
            f"model {name!r} does not take data of shape {tuple(shape)}; choose {' or '.join(fitting)}"
        )
    options |= _derived_arguments(name, sde, shape, of_score.get("learned_variance", False))
    if reads_text(name):
        options[CONDITION_KEYS["text"]] = of_text.pop("words", 0)
    elif of_text.get("words"):
        options |= dict.fromkeys(text_arguments(name), of_text["width"])
    if factor:
        options |= _of_super_resolution(name, shape, factor, options)

    def make() -> nn.Module:
        net = network(shape[0], **options)
        net = SuperResolution(net, factor, upsampling) if factor else net
        return TextConditioned(net, TextEncoder(**of_text)) if of_text.get("words") else net

    with refusing_arguments():
        refuse_too_large(make)
        model = ScoreModel(make(), sde, prediction, **of_score)
    if options.get("fourier_inputs") and not (model.noise_input == "log_noise_level" and model.scale_input):
        raise UserError(
            "model.fourier_inputs needs a network that is given scaled images and log(σ/α): set "
            "model.prediction=v and model.noise_input=log_noise_level"
        )
    return model


def _of_super_resolution(
    name: str, shape: Sequence[int], factor: int, options: Mapping[str, Any]
) -> dict[str, object]:
    """The arguments of a network that enlarges images: it takes another image and a vector besides its own.

    Raises:
        UserError: If it cannot, or the sides of its images are no multiples of the factor.
    """
    if factor < 2 or len(shape) < 2 or any(side % factor for side in shape[1:]):
        raise UserError(
            f"model.upscale must be 0, or a factor of at least 2 that divides the sides of the images, got "
            f"{factor} for samples of shape {tuple(shape)}"
        )
    if not {"vector_dim", "image_channels"} <= set(_parameters(name)):
        raise UserError(f"model {name!r} takes no image to enlarge: choose unet")
    if options["image_channels"]:
        raise UserError("model.upscale conditions the network on an image: set model.image_channels=0")
    return {"image_channels": shape[0], "vector_dim": options["vector_dim"] + LEVEL_FEATURES}


def text_arguments(name: str) -> list[str]:
    """The arguments of a network that are the sizes of what a text becomes: tokens and a vector."""
    return [CONDITION_KEYS[kind] for kind in FROM_TEXT if CONDITION_KEYS[kind] in _parameters(name)]


def reads_text(name: str) -> bool:
    """Whether a network reads the words of texts itself, without the text encoder of the section `model`."""
    return CONDITION_KEYS["text"] in _parameters(name)


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(MODELS[name]).parameters


def refuse_too_large(make: Callable[[], nn.Module]) -> None:
    """Refuses a network whose weights the machine cannot hold: it is first made without memory for them.

    Raises:
        UserError: If its weights take more memory than there is, or it has too many layers.
    """
    count, size = 0, 0.0
    advice = "choose smaller numbers in the section model"

    def add(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        nonlocal count, size
        if weight is not None:
            count, size = count + 1, size + weight.numel() * weight.element_size()
        if count > MOST_TENSORS:
            raise UserError(f"the network has more than {MOST_TENSORS:,} tensors of weights: {advice}")

    handle = register_module_parameter_registration_hook(add)
    try:
        with torch.device("meta"):
            make()
    except (RuntimeError, TypeError, OverflowError) as error:
        if "verflow" not in str(error):
            raise
        size = math.inf
    finally:
        handle.remove()
    refuse_beyond_memory(size, "the network", advice)


@contextlib.contextmanager
def refusing_arguments() -> Iterator[None]:
    """Turns the ValueError of a network that refuses its arguments or its input into a UserError."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def _derived_arguments(
    name: str, sde: SDE, shape: Sequence[int], learned_variance: bool
) -> dict[str, object]:
    """Arguments of a network that follow from the SDE and the data."""
    accepted = _parameters(name)
    derived: dict[str, object] = {}
    if "dims" in accepted:
        derived["dims"] = len(shape) - 1
    if "log_levels" in accepted:
        derived["log_levels"] = sde.log_noise_level(noisy_times(sde))
    if learned_variance:
        if "out_channels" not in accepted:
            raise UserError(
                f"model {name!r} has no outputs for model.learned_variance=True: choose unet or dit"
            )
        derived["out_channels"] = 2 * shape[0]
    return derived


def build_sampler(section: ConfigDict, sde: SDE, times: Tensor | None = None) -> Sampler:
    """The sampler of a `sampling` section, on the section's grid or on the given times."""
    times = grid_times(section, sde) if times is None else times
    return make_sampler(section.sampler, sde, None, times, section.denoise, _options(section))


def grid_times(section: ConfigDict, sde: SDE) -> Tensor:
    """The times of a `sampling` section's grid; for "fitted" those that fitting starts from."""
    name: str | None = {AUTO: None, FITTED: "spread"}.get(section.grid, section.grid)
    grid: str | Grid | None = name
    if section.steps and not section.nfe:
        grid = Grid(name or find_sampler(section.sampler).grid, section.steps)
    steps, advice = section.nfe or section.steps, "lower sampling.nfe or sampling.steps"
    refuse_beyond_memory(BYTES_PER_STEP * steps, f"a grid of {steps:,} steps", advice)
    if steps > MANY_STEPS:
        warn(f"the coefficients of {steps:,} steps may take long to compute: {advice}")
    times = sampler_grid(section.sampler, section.nfe or None, grid, section.denoise, _options(section))
    return times.times(sde) if isinstance(times, Grid) else times


def _options(section: ConfigDict) -> dict[str, object]:
    """The options of the section's sampler."""
    return section.get(section.sampler, ConfigDict()).to_dict()
