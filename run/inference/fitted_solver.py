"""Solvers fitted to a trained model, one for each number of evaluations, kept in the run directory.

solvers/eabm-19.json    times and coefficients, and which score they were fitted to
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from score_diffusion.run.console import advance_to, progress_bar
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_json
from score_diffusion.run.inference.trained_model import TrainedModel, tensors_digest
from score_diffusion.run.json_files import read_json
from score_diffusion.run.key_types import Values
from score_diffusion.samplers import LinearSampler, Stage, fit_solver
from score_diffusion.samplers.fit_solver import BATCH, EVALUATIONS

FOLDER = "solvers"
NUMBERS = tuple[float, ...]
FIELDS = {
    "times": Values(kind=NUMBERS, least=0),
    "values": Values(kind=tuple[NUMBERS, ...]),
    "keep": Values(kind=NUMBERS),
    "weights": Values(kind=tuple[NUMBERS, ...]),
    "error": Values(kind=float, least=0),
    "default_error": Values(kind=float, least=0),
    "fitted_to": Values(kind=str),
}


def fitted_solver(nfe: int, denoise: bool, trained: TrainedModel, workdir: Path) -> LinearSampler:
    """The sampler fitted to a model as it samples, which is fitted now if the run has none.

    Args:
        nfe: Evaluations of the sampler, without the final denoising.
        denoise: Whether the sampler ends with Tweedie's formula.
        trained: The model, with conditions and guidance.
        workdir: The run directory.

    Raises:
        UserError: If the file of the solver is damaged.
    """
    stages, times = processes.from_rank_0(lambda: _stages_and_times(nfe, trained, workdir))
    return LinearSampler(trained.sde, torch.tensor(times).double(), lambda sde, t: stages, denoise=denoise)


def _stages_and_times(nfe: int, trained: TrainedModel, workdir: Path) -> tuple[list[Stage], list[float]]:
    path, cond = workdir / FOLDER / f"eabm-{nfe}.json", trained.conditions.of(range(BATCH), trained.device)
    digest = _digest(trained)
    saved = _read(path, nfe, digest) if path.exists() else None
    if saved is not None:
        return saved
    with progress_bar(None, "fitting the solver", "evaluation") as bar:
        fit = fit_solver(
            trained.guide(trained.score),
            trained.sde,
            nfe,
            trained.data.shape,
            cond=cond,
            evaluations=EVALUATIONS,
            on_step=lambda i, n: advance_to(bar, i, n),
        )
    stages, times = list(fit.sampler.stages), fit.sampler.times.tolist()
    write_json(
        path,
        {
            "times": times,
            "values": [stage.value for stage in stages],
            "keep": [stage.keep for stage in stages],
            "weights": [stage.weights for stage in stages],
            "error": fit.error,
            "default_error": fit.default_error,
            "fitted_to": digest,
        },
    )
    what = "no better than eabm, which is taken" if fit.is_default else f"{fit.default_error:.2g} with eabm"
    print(f"fitted solver of {nfe} steps saved in {path}: error {fit.error:.2g}, {what}")
    return stages, times


def _digest(trained: TrainedModel) -> str:
    """A digest of the score that samples are drawn with: weights, conditions and guidance."""
    weights = trained.score.state_dict() if isinstance(trained.score, torch.nn.Module) else {}
    tensors = {**weights, **(trained.conditions.of(range(BATCH)) or {})}
    return tensors_digest(sorted(tensors.items()), trained.guided_by)


def _read(path: Path, nfe: int, digest: str) -> tuple[list[Stage], list[float]] | None:
    """Stages and times in a file, if they were fitted to this score."""
    advice = "remove it, and the solver is fitted again"
    saved = read_json(path, FIELDS, advice)
    if saved["fitted_to"] != digest:
        return None
    times, values, keep, weights = (saved[key] for key in ("times", "values", "keep", "weights"))
    numbers = [*times, *keep, *(number for row in (*values, *weights) for number in row)]
    if (
        (len(times), len(values), len(keep), len(weights)) != (nfe + 1, nfe, nfe, nfe)
        or any(len(pair) != 2 for pair in values)
        or any(len(row) > i + 1 for i, row in enumerate(weights))
        or any(not later < earlier for earlier, later in zip(times[:-1], times[1:], strict=True))
        or not all(map(math.isfinite, numbers))
    ):
        raise UserError(f"{path} is damaged (it must hold a table of {nfe} steps, and does not): {advice}")
    rows = zip(times[:-1], values, keep, weights, strict=True)
    return [Stage(t, tuple(value), k, tuple(row)) for t, value, k, row in rows], list(times)
