"""From the sections of a configuration to objects: one table of names per kind.

A new SDE or network is one class and one line in its table; its constructor arguments are the keys of its
section.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from score_diffusion.models import IMAGE_NETWORKS, POINT_NETWORKS
from score_diffusion.run.data.options import DataOptions, parse_image_size
from score_diffusion.run.errors import UserError
from score_diffusion.run.key_types import AUTO
from score_diffusion.samplers import (
    GRIDS,
    AdaptiveSDESampler,
    AncestralSampler,
    AnnealedLangevinSampler,
    ConsistentAnnealedSampler,
    DDIMSampler,
    LinearSampler,
    ODESampler,
    PCSampler,
    Sampler,
    edm_stages,
    find_sampler,
    log_snr_grid,
)
from score_diffusion.sde_lib import (
    BETA_TABLES,
    DDPM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    RectifiedFlowSDE,
    ScoreModel,
    SubVPSDE,
    noisy_times,
    relative_step_size,
)

T = TypeVar("T")


def ddpm(betas: str = "linear", N: int = 1000) -> DDPM:
    """The SDE of DDPM's discrete chain.

    Args:
        betas: The table of betas: linear, quadratic or cosine.
        N: Number of steps of the chain.
    """
    return DDPM(choose(BETA_TABLES, betas, "table of betas")(N))


SDES: dict[str, Callable[..., SDE]] = {
    "vpsde": VPSDE,
    "subvpsde": SubVPSDE,
    "vesde": VESDE,
    "cosine": CosineVPSDE,
    "edm": EDMSDE,
    "rectified_flow": RectifiedFlowSDE,
    "ddpm": ddpm,
}
MODELS: dict[str, Callable[..., nn.Module]] = {**IMAGE_NETWORKS, **POINT_NETWORKS}
FIXED_ODE_STEPS = 100  # of ode with a fixed-step method, where nobody says how many
FITTED = "fitted"  # the grid that sample.py fits and keeps with the run
# ScoreModel's, in the section model where they are set
SCORE_OPTIONS = ("learned_variance", "scale_input", "noise_input", "sigma_data")


def choose(table: Mapping[str, T], name: str, kind: str) -> T:
    """table[name], or a UserError that lists the valid names."""
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}; choose one of {', '.join(table)}")
    return table[name]


def data_options(section: ConfigDict) -> DataOptions:
    """The options of a `data` section, whose keys are their names."""
    return DataOptions(**section.to_dict() | {"image_size": parse_image_size(section.image_size)})


def build_sde(section: ConfigDict) -> SDE:
    """The SDE of a `sde` section: its name and its numbers."""
    options = section.to_dict()
    return choose(SDES, options.pop("name"), "SDE")(**options)


def build_model(section: ConfigDict, sde: SDE, shape: Sequence[int]) -> ScoreModel:
    """The score model of a `model` section for data of a shape, its weights drawn from torch's global seed.

    Raises:
        UserError: If the name is unknown, an argument is not the network's, or it does not take such data.
    """
    options = section.to_dict()
    name, prediction = options.pop("name"), options.pop("prediction")
    of_score = {key: options.pop(key) for key in SCORE_OPTIONS if key in options}
    if of_score.get("noise_input") == AUTO:
        del of_score["noise_input"]
    network = choose(MODELS, name, "model")
    fitting = POINT_NETWORKS if len(shape) == 1 else IMAGE_NETWORKS  # (D,) or (C, *size)
    if name not in fitting:
        raise UserError(
            f"model {name!r} does not take data of shape {tuple(shape)}; choose {' or '.join(fitting)}"
        )
    options |= _derived_arguments(name, sde, shape, of_score.get("learned_variance", False))
    with _refusing_arguments():
        net = network(shape[0], **options)
        model = ScoreModel(net, sde, prediction, **of_score)
        with torch.no_grad():  # a size that the network refuses is refused here, before anything is written
            model(torch.zeros(1, *shape), torch.full((1,), sde.T))
    return model


@contextlib.contextmanager
def _refusing_arguments() -> Iterator[None]:
    """Networks and samplers raise a ValueError for arguments that do not fit; here these are the user's."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def _derived_arguments(
    name: str, sde: SDE, shape: Sequence[int], learned_variance: bool
) -> dict[str, object]:
    """Arguments of a network that follow from the SDE and the data."""
    accepted = inspect.signature(MODELS[name]).parameters
    derived: dict[str, object] = {}
    if "log_levels" in accepted:
        derived["log_levels"] = sde.noise_level(noisy_times(sde))
    if learned_variance:
        if "out_channels" not in accepted:
            raise UserError(
                f"model {name!r} has no outputs for model.learned_variance=True: choose unet or dit"
            )
        derived["out_channels"] = 2 * shape[0]
    return derived


def build_sampler(section: ConfigDict, sde: SDE, times: Tensor | None = None) -> Sampler:
    """The sampler of a `sampling` section, on a grid of its own or on one that is given."""
    with _refusing_arguments():
        spec = find_sampler(section.sampler)
        times = grid_times(section, sde) if times is None else times
        if section.sampler in WITH_OPTIONS:
            return WITH_OPTIONS[section.sampler](section, sde, times)
        return spec.make(sde, times, section.denoise)


def grid_times(section: ConfigDict, sde: SDE) -> Tensor:
    """The times of a `sampling` section's grid; for "fitted" those that fitting starts from."""
    spec = find_sampler(section.sampler)
    name = "clock" if section.grid == FITTED else spec.grid if section.grid == AUTO else section.grid
    grid = choose(GRIDS, name, "grid")
    if spec.nfe_per_step is None and not section.nfe:
        return grid(sde, section.steps or FIXED_ODE_STEPS)
    if section.nfe or not section.steps:
        spec = replace(spec, **_costs(section))
        return grid(sde, spec.steps(section.nfe or spec.nfe, section.denoise))
    return grid(sde, section.steps)


def _costs(section: ConfigDict) -> dict[str, int]:
    """The evaluations of a step, and beyond the steps, where the section decides them."""
    if section.sampler == "pc":
        corrector = section.n_corrector_steps if section.corrector != "none" else 0
        return {"nfe_per_step": max(1, (section.predictor != "none") + corrector)}
    if section.sampler == "ald":
        return {"nfe_per_step": section.ald_steps_each, "extra": section.ald_steps_each}
    return {}


def _pc(section: ConfigDict, sde: SDE, times: Tensor) -> PCSampler:
    return PCSampler(
        sde,
        predictor=section.predictor,
        corrector=section.corrector,
        snr=section.snr,
        n_corrector_steps=section.n_corrector_steps,
        times=times,
        denoise=section.denoise,
    )


def _ode(section: ConfigDict, sde: SDE, times: Tensor) -> ODESampler:
    return ODESampler(
        sde,
        method=section.ode_method,
        times=times,
        rtol=section.rtol,
        atol=section.atol,
        denoise=section.denoise,
    )


def _adaptive_sde(section: ConfigDict, sde: SDE, times: Tensor) -> AdaptiveSDESampler:
    return AdaptiveSDESampler(sde, times, section.sde_rtol, section.sde_atol, section.denoise)


def _edm_churn(section: ConfigDict, sde: SDE, times: Tensor) -> LinearSampler:
    churn = (section.s_churn, section.s_tmin, section.s_tmax, section.s_noise)
    return LinearSampler(sde, times, edm_stages(sde, times, *churn), section.denoise)


LEVEL_GRIDS: dict[str, Callable[[SDE, int], Tensor]] = {
    "log_snr": log_snr_grid,
    "chain": lambda sde, _: noisy_times(sde).flip(0),
}


def _ald(section: ConfigDict, sde: SDE, times: Tensor) -> AnnealedLangevinSampler:
    if not section.nfe:
        times = choose(LEVEL_GRIDS, section.ald_grid, "grid of ald")(sde, section.ald_levels)
    step_size = section.ald_step_size
    return AnnealedLangevinSampler(
        sde,
        times=times,
        n_steps_each=section.ald_steps_each,
        step_size=_technique_4(sde, times, section.ald_steps_each) if step_size == AUTO else step_size,
        denoise=section.denoise,
    )


def _technique_4(sde: SDE, times: Tensor, n_steps_each: int) -> float:
    """NCSNv2's step size for levels that are geometric or nearly so."""
    log_levels = sde.noise_level(times)
    gamma = ((log_levels[0] - log_levels[-1]) / max(len(times) - 1, 1)).exp()
    return relative_step_size(gamma.item(), n_steps_each)


def _cas(section: ConfigDict, sde: SDE, times: Tensor) -> ConsistentAnnealedSampler:
    return ConsistentAnnealedSampler(
        sde,
        times=times if section.nfe else log_snr_grid(sde, section.cas_levels),
        step_size=section.cas_step_size,
        denoise=section.denoise,
    )


def clip_bounds(clip: float) -> tuple[float, float] | None:
    """The bounds that a `clip` key stands for: ±clip, or none for 0."""
    return (-clip, clip) if clip else None


def _ddpm(section: ConfigDict, sde: SDE, times: Tensor) -> AncestralSampler:
    return AncestralSampler(sde, times, section.variance, clip_bounds(section.clip), section.denoise)


def _ddim(section: ConfigDict, sde: SDE, times: Tensor) -> DDIMSampler:
    return DDIMSampler(sde, times, section.eta, clip_bounds(section.clip), section.denoise)


# Samplers that take more of the section than the grid; all others are made by the registry.
WITH_OPTIONS: dict[str, Callable[[ConfigDict, SDE, Tensor], Sampler]] = {
    "pc": _pc,
    "ode": _ode,
    "adaptive_sde": _adaptive_sde,
    "edm_churn": _edm_churn,
    "ald": _ald,
    "cas": _cas,
    "ddpm": _ddpm,
    "ddim": _ddim,
}
