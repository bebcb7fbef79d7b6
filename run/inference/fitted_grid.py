"""Time grids fitted to a trained model, one for each sampler and number of steps, kept in the run directory.

grids/eabm-19.json      times, and the training step of the checkpoint they were fitted to
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from score_diffusion.run.console import advance_to, progress_bar
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_json
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.json_files import read_json
from score_diffusion.run.key_types import Values
from score_diffusion.samplers import Sampler, fit_grid

FOLDER = "grids"
FITTED_SAMPLES = 256  # on which the error of a grid is measured
FIELDS = {
    "times": Values(kind=tuple[float, ...], least=0),
    "training_steps": Values(kind=int, least=0),
    "weights": Values(kind=str),
}


def fitted_times(
    name: str, make: Callable[[Tensor], Sampler], start: Tensor, trained: TrainedModel, workdir: Path
) -> Tensor:
    """The fitted grid of a sampler for a trained model, which is fitted now if the run has none.

    Args:
        name: The sampler's name, which names the file.
        make: Makes the sampler, without denoising, on a grid.
        start: The grid that fitting starts from, shape (steps + 1,).
        trained: The model.
        workdir: The run directory.

    Raises:
        UserError: If the file of the grid is damaged.
    """
    return processes.from_rank_0(lambda: _fitted_times(name, make, start, trained, workdir))


def _fitted_times(
    name: str, make: Callable[[Tensor], Sampler], start: Tensor, trained: TrainedModel, workdir: Path
) -> Tensor:
    path = workdir / FOLDER / f"{name}-{len(start) - 1}.json"
    saved = _read(path, start, trained)
    if saved is not None:
        return saved
    with progress_bar(None, "fitting the grid", "knot") as bar:
        times = fit_grid(
            make,
            trained.score_of(range(FITTED_SAMPLES)),
            trained.sde,
            start,
            trained.data.shape,
            batch=FITTED_SAMPLES,
            on_step=lambda i, n: advance_to(bar, i, n),
        )
        bar.total = bar.n  # fitting ends as soon as no knot moves
    write_json(path, {"times": times.tolist(), "training_steps": trained.step, "weights": trained.weights})
    print(f"fitted grid of {len(times) - 1} steps saved in {path}")
    return times


def _read(path: Path, start: Tensor, trained: TrainedModel) -> Tensor | None:
    """The times in a file, if it is there and was fitted to these weights."""
    if not path.exists():
        return None
    advice = "remove it, and the grid is fitted again"
    saved = read_json(path, FIELDS, advice)
    if (saved["training_steps"], saved["weights"]) != (trained.step, trained.weights):
        return None
    times, ends = torch.tensor(saved["times"], dtype=torch.float64), start[[0, -1]].double()
    if len(times) != len(start) or not torch.equal(times[[0, -1]], ends) or not (times.diff() < 0).all():
        raise UserError(
            f"{path} is damaged (times must be {len(start)} numbers that fall from {start[0]:g} to "
            f"{start[-1]:g}): {advice}"
        )
    return times
