"""From the sections of a configuration to objects: one table of names per kind.

A new SDE or network is one class and one line in its table; its constructor arguments are the keys of its
section.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from ml_collections import ConfigDict
from torch import nn

from models import MLP, UNet
from run.errors import UserError
from samplers import GRIDS, AnnealedLangevinSampler, ODESampler, PCSampler, Sampler, log_snr_grid
from sde_lib import SDE, VESDE, VPSDE, ScoreModel, SubVPSDE

SDES = {"vpsde": VPSDE, "subvpsde": SubVPSDE, "vesde": VESDE}
MODELS = {"unet": UNet, "mlp": MLP}
MODEL_RANKS = {"unet": 3, "mlp": 1}  # data dimensions that the network takes: (C, H, W) images or (D,) points


def choose(table: dict, name: str, kind: str) -> object:
    """table[name], or a UserError that lists the valid names."""
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}; choose one of {', '.join(table)}")
    return table[name]


def _construct(cls: Callable, section: str, *leading: object, **options: object) -> object:
    """cls(*leading, **options), with a sentence about the section where the options do not fit."""
    try:
        inspect.signature(cls).bind(*leading, **options)
    except TypeError as error:
        accepted = list(inspect.signature(cls).parameters)[len(leading) :]
        raise UserError(
            f"section {section!r} does not fit {cls.__name__}: {error}; it takes {', '.join(accepted)}"
        ) from error
    return cls(*leading, **options)


def build_sde(section: ConfigDict) -> SDE:
    """The SDE of a `sde` section: its name and its numbers."""
    options = section.to_dict()
    return _construct(choose(SDES, options.pop("name"), "SDE"), "sde", **options)


def build_model(section: ConfigDict, sde: SDE, shape: Sequence[int]) -> ScoreModel:
    """The score model of a `model` section for data of a shape, its weights drawn from torch's global seed.

    Raises:
        UserError: If the name is unknown, an argument is not the network's, or it does not take such data.
    """
    options = section.to_dict()
    name, prediction = options.pop("name"), options.pop("prediction")
    network = choose(MODELS, name, "model")
    if len(shape) != MODEL_RANKS[name]:
        fitting = [other for other, rank in MODEL_RANKS.items() if rank == len(shape)]
        raise UserError(
            f"model {name!r} does not take data of shape {tuple(shape)}; choose {' or '.join(fitting)}"
        )
    net: nn.Module = _construct(network, "model", shape[0], **options)
    model = ScoreModel(net, sde, prediction)
    with torch.no_grad():  # a size that the network refuses is refused here, before anything is written
        model(torch.zeros(1, *shape), torch.full((1,), sde.T))
    return model


def build_sampler(section: ConfigDict, sde: SDE) -> Sampler:
    """The sampler of a `sampling` section."""
    return choose(SAMPLERS, section.sampler, "sampler")(section, sde)


def _pc(section: ConfigDict, sde: SDE) -> PCSampler:
    return PCSampler(
        sde,
        predictor=section.predictor,
        corrector=section.corrector,
        snr=section.snr,
        n_corrector_steps=section.n_corrector_steps,
        times=choose(GRIDS, section.grid, "grid")(sde, section.steps),
        denoise=section.denoise,
    )


def _ode(section: ConfigDict, sde: SDE) -> ODESampler:
    return ODESampler(
        sde,
        method=section.ode_method,
        times=choose(GRIDS, section.grid, "grid")(sde, section.steps),
        rtol=section.rtol,
        atol=section.atol,
        denoise=section.denoise,
    )


def _ald(section: ConfigDict, sde: SDE) -> AnnealedLangevinSampler:
    return AnnealedLangevinSampler(
        sde,
        times=log_snr_grid(sde, section.ald_levels),
        n_steps_each=section.ald_steps_each,
        step_size=section.ald_step_size,
        denoise=section.denoise,
    )


SAMPLERS: dict[str, Callable[[ConfigDict, SDE], Sampler]] = {"pc": _pc, "ode": _ode, "ald": _ald}
