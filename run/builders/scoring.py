"""From a section `likelihood` to what scores data: solver, accuracy, dequantization, and other data."""

from __future__ import annotations

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.run.build import data_options
from score_diffusion.run.builders.encoders import load_encoder
from score_diffusion.run.config import read_config
from score_diffusion.run.data.info import read_data_info
from score_diffusion.run.data.inputs import InputReader
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.inference.accuracy import least_accurate
from score_diffusion.run.inference.costs import check_bound, check_ode
from score_diffusion.run.inference.reverse_bounds import reverse_bound_held_out
from score_diffusion.run.inference.scoring import (
    Dequantization,
    GaussianDequantization,
    Scores,
    UniformDequantization,
    VariationalDequantization,
    bound_held_out,
    score_held_out,
)
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.key_types import AUTO
from score_diffusion.samplers import AdaptiveAdams, ExponentialAdams, clip_bounds
from score_diffusion.sde_lib import AdaptiveSolver, DensitySolver, chain_times, quantize

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
STEPS = (32, 64, 128, 256, 512)
ACCURATE = {"rtol": 1e-5, "atol": 1e-5, "steps": 128}
"""What "auto" is where there is no standard error to be accurate for."""
PILOT = 16  # samples that the accuracy is chosen on


def score_data(
    figure: str, section: ConfigDict, trained: TrainedModel, data: Tensor, tighter: bool = False
) -> Scores | None:
    """The likelihood of stored samples as a section `likelihood` says; None on all ranks except the first.

    Args:
        figure: "ode" for the probability flow, "reverse_sde" for the reverse SDE's bound, "bound" for the
            variational bound.
        section: The section.
        trained: The model.
        data: Grey levels or standardized numbers, shape (n, *shape).
        tighter: Whether the solver of the ODE gets a tenth of its tolerance, or twice its steps.
    """
    if figure == "ode":
        products = section.n_probes * (3 if section.divergence == "hutch++" else 1)
        check_ode(trained, len(data) * section.n_draws, section.batch_size, products)
        return score_held_out(
            trained,
            data,
            build_dequantization(section, trained),
            batch_size=section.batch_size,
            seed=section.seed,
            n_draws=section.n_draws,
            divergence=section.divergence,
            probe=section.probe,
            n_probes=section.n_probes,
            solver=build_density_solver(section, tighter),
        )
    if figure == "reverse_sde":
        check_bound(trained, len(data), section.batch_size, 2 * section.reverse_times, section.n_draws)
        return reverse_bound_held_out(
            trained,
            data,
            build_dequantization(section, trained),
            batch_size=section.batch_size,
            seed=section.seed,
            n_times=section.reverse_times,
            n_draws=section.n_draws,
        )
    n_terms = section.bound_terms or len(chain_times(trained.sde)) - 1
    check_bound(trained, len(data), section.batch_size, n_terms, section.bound_draws)
    return bound_held_out(
        trained,
        data,
        batch_size=section.batch_size,
        seed=section.seed,
        variance=section.variance,
        clip=clip_bounds(section.clip),
        n_terms=section.bound_terms or None,
        n_draws=section.bound_draws,
    )


def with_accuracy(section: ConfigDict, trained: TrainedModel, data: Tensor) -> ConfigDict:
    """The section with numbers in place of "auto" for the accuracy of the ODE's solver. Every rank calls it.

    They are the least accurate ones at which the solver's error in each of the first samples is at most a
    tenth of the standard error that the mean over all data will have.
    """
    adams = section.solver == "exponential_adams"
    keys, candidates = (("steps",), STEPS) if adams else (("rtol", "atol"), TOLERANCES)
    unknown = [key for key in keys if section[key] == AUTO]
    if not unknown or len(data) < 2:
        return section

    def score(value: float) -> Scores | None:
        return score_data("ode", _with(section, dict.fromkeys(unknown, value)), trained, data[:PILOT])

    found = least_accurate(score, candidates, len(data))
    value = processes.from_rank_0(lambda: found)
    return _with(section, dict.fromkeys(unknown, value))


def _with(section: ConfigDict, values: dict[str, float]) -> ConfigDict:
    changed = section.copy_and_resolve_references()
    with changed.ignore_type():
        changed.update(values)
    return changed


def build_density_solver(section: ConfigDict, tighter: bool = False) -> DensitySolver:
    """The solver of the probability flow of a section `likelihood`, or one of a smaller error."""
    rtol, atol, steps = (
        default if section[key] == AUTO else section[key] for key, default in ACCURATE.items()
    )
    if section.solver == "exponential_adams":
        return ExponentialAdams(int(steps) * (2 if tighter else 1))
    rtol, atol = (tolerance * (0.1 if tighter else 1.0) for tolerance in (rtol, atol))
    if section.solver == "adaptive_adams":
        return AdaptiveAdams(rtol, atol)
    return AdaptiveSolver(section.solver, rtol, atol)


def build_dequantization(section: ConfigDict, trained: TrainedModel) -> Dequantization:
    """The dequantization of a section `likelihood`.

    Raises:
        UserError: If it is unknown, or a run that is no dequantizer of such images.
    """
    if section.dequantization == "uniform":
        return UniformDequantization(trained, section.seed)
    if section.dequantization == "gaussian":
        return GaussianDequantization(trained, section.seed, section.variance, clip_bounds(section.clip))
    run = expanded(section.dequantization)
    if not run.is_dir():
        raise UserError(
            "likelihood.dequantization must be uniform, gaussian, or the run directory of --config "
            f"dequantizer, got {section.dequantization!r}"
        )
    config, info = read_config(run), read_data_info(run)
    if config.model.name != "dequantizer" or not info.fits(trained.data):
        raise UserError(
            f"likelihood.dequantization={run} holds a {config.model.name} of {info}, and the model is of "
            f"{trained.data}: name the run of a dequantizer of such images"
        )
    dequantizer, _ = load_encoder(run, config, trained.device)
    return VariationalDequantization(trained, section.seed, dequantizer)


def other_data(config: ConfigDict, trained: TrainedModel) -> Tensor | None:
    """The data `likelihood.path`, stored as those of the run; None where it names none.

    Raises:
        UserError: If they cannot be read, or do not have the shape and the range of the run's data.
    """
    section, info = config.likelihood, trained.shown
    if not section.path:
        return None
    reader = InputReader(data_options(config.data), info.scaling, section.num_images)
    found = reader.truth(section.path, info.shape)
    if trained.latent_space is not None:
        return trained.from_user(found.samples)
    if info.levels:
        return quantize(found.samples, info.levels).to(torch.int32)
    return torch.from_numpy(info.scaling.user_to_stored(found.samples.numpy()))
