"""Averages of any width, combined after training from snapshots of two power averages.

The average of exponent γ at time t weights the weights of time τ by its profile

    p_{γ,t}(τ) = (γ + 1) τ^γ / t^(γ + 1),    0 ≤ τ ≤ t,

and profiles have the inner products, with t_0 = min(t_a, t_b),

    ⟨p_a, p_b⟩ = ∫ p_a p_b dτ
               = (γ_a + 1)(γ_b + 1)/(γ_a + γ_b + 1) · t_0^(γ_a + γ_b + 1) / (t_a^(γ_a + 1) t_b^(γ_b + 1)).

The combination Σ x_i p_i of the snapshots' profiles that is nearest in mean square to the profile p wanted
solves A x = b with A_ij = ⟨p_i, p_j⟩ and b_i = ⟨p_i, p⟩, and Σ x_i θ̄_i is the average.

    snapshots/00001000/averages.safetensors    the power averages at a step, "NAME/WEIGHT"
                       summary.json            updates in them
                       sha256.json             digests

Reference:
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024),
        https://arxiv.org/abs/2312.02696: Section 3.2, Appendix C.3 and Algorithm 3.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from score_diffusion.run.checkpoints.checkpoint import Checkpoint, pack
from score_diffusion.run.checkpoints.contents import check_finite, check_tensors
from score_diffusion.run.checkpoints.directory import numbered, read_file, write_directory
from score_diffusion.run.console import warn
from score_diffusion.run.distributed.model import full_tensor
from score_diffusion.run.errors import UserError
from score_diffusion.run.json_files import parse_json
from score_diffusion.run.key_types import Values
from score_diffusion.run.training.averages import Averages, named_weights, power_exponent, power_name

SNAPSHOT_FOLDER = "snapshots"
FILE, SUMMARY = "averages.safetensors", "summary.json"
SUMMARY_FIELDS = {"updates": Values(kind=int, least=1)}
Numbers = np.ndarray | np.float64


def inner_products(gamma_a: Numbers, t_a: Numbers, gamma_b: Numbers, t_b: Numbers) -> np.ndarray:
    """⟨p_a, p_b⟩ of profiles, in float64; the arguments broadcast.

    Computed with powers of a ratio of at most 1, which do not overflow.
    """
    shorter, longer = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    of_longer = np.where(t_a < t_b, gamma_b, gamma_a)
    height = (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * longer)
    return height * (shorter / longer) ** of_longer


def combination_coefficients(
    gammas: Sequence[float], times: Sequence[float], gamma: float, t: float
) -> np.ndarray:
    """The x_i that combine profiles (gammas[i], times[i]) to the profile (gamma, t), shape (n,), float64.

    They are scaled to sum 1, as in the authors' code: weights that never change are their own average.
    """
    gamma_i, t_i = np.asarray(gammas, np.float64), np.asarray(times, np.float64)
    A = inner_products(gamma_i[:, None], t_i[:, None], gamma_i, t_i)  # (n, n)
    b = inner_products(gamma_i, t_i, np.float64(gamma), np.float64(t))  # (n,)
    x = np.linalg.lstsq(A, b, rcond=None)[0]  # profiles that nearly coincide make A nearly singular
    return x / x.sum()


def save_snapshot(workdir: Path, step: int, averages: Averages) -> None:
    """Writes the power averages of a step; called by every rank."""
    summary = {"updates": int(averages.updates)}
    weights = {name: full_tensor(weight) for name, weight in named_weights(averages.power).items()}
    files = {FILE: pack(weights), SUMMARY: json.dumps(summary).encode()}
    write_directory(workdir / SNAPSHOT_FOLDER / f"{step:08d}", files)


def reconstruct(
    workdir: Path, saved: Checkpoint, sigma_rels: Sequence[float], sigma_rel: float
) -> dict[str, Tensor]:
    """The weights of a power average of another width at the step of a checkpoint.

    The checkpoint's own averages are the last snapshot. Damaged snapshots are left out, with a warning.

    Args:
        workdir: The run directory.
        saved: The checkpoint.
        sigma_rels: The widths that were tracked.
        sigma_rel: The width wanted.

    Raises:
        UserError: If none were tracked, or not yet.
    """
    if not sigma_rels:
        raise UserError(
            f"sampling.ema_sigma_rel needs power averages, and {workdir} was trained without any: train with "
            "--config.training.ema_sigma_rels=0.05,0.1"
        )
    if not saved.averages:
        raise UserError(f"the checkpoint of step {saved.step} has no power averages yet: train further")
    earlier = [path for path in numbered(workdir / SNAPSHOT_FOLDER) if int(path.name) < saved.step]
    expected = {
        f"{power_name(width)}/{key}": weight for width in sigma_rels for key, weight in saved.ema.items()
    }
    check_tensors(_subset(saved.averages, expected), expected, f"the checkpoint of step {saved.step}")
    updates = {path: count for path in earlier if (count := _updates_if_intact(path, expected))}
    times = [*updates.values(), saved.ema_updates]
    coefficients = combination_coefficients(
        [power_exponent(width) for _ in times for width in sigma_rels],
        [time for time in times for _ in sigma_rels],
        power_exponent(sigma_rel),
        saved.ema_updates,
    ).reshape(len(times), len(sigma_rels))
    total = {key: torch.zeros_like(weight, dtype=torch.float64) for key, weight in saved.ema.items()}
    for path, row in zip([*updates, None], coefficients, strict=True):
        weights = saved.averages if path is None else read_file(path / FILE, safetensors.torch.load)
        for width, coefficient in zip(sigma_rels, row, strict=True):
            for key in total:
                total[key] += coefficient * weights[f"{power_name(width)}/{key}"]
    return {key: value.to(saved.ema[key].dtype) for key, value in total.items()}


def _subset(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of some names, as far as they are there."""
    return {name: tensors[name] for name in names if name in tensors}


def _updates_if_intact(directory: Path, expected: Mapping[str, Tensor]) -> int | None:
    """The updates in a snapshot; None, and a warning, if it is damaged or of another model."""
    try:
        tensors = _subset(read_file(directory / FILE, safetensors.torch.load), expected)
        check_tensors(tensors, expected, str(directory))
        check_finite(tensors, str(directory))
        return read_file(directory / SUMMARY, functools.partial(parse_json, fields=SUMMARY_FIELDS))["updates"]
    except UserError as error:
        warn(f"{error}; the snapshot is left out")
        return None
