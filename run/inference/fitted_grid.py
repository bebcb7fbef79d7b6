"""Time grids fitted to a trained model, one for each sampler and number of steps, kept in the run directory.

grids/eabm-19.json      times, and the training step of the checkpoint they were fitted to
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.run.build import FITTED, build_sampler, grid_times
from score_diffusion.run.console import progress_bar
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_json
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.samplers import Sampler, find_sampler, fit_grid

FOLDER = "grids"


def build_trained_sampler(section: ConfigDict, trained: TrainedModel, workdir: Path) -> Sampler:
    """The sampler of a `sampling` section for a trained model; a fitted grid is fitted now if it is not
    there.
    """
    if section.grid != FITTED:
        return build_sampler(section, trained.sde)
    times = processes.from_first(lambda: _fitted_times(section, trained, workdir))
    return build_sampler(section, trained.sde, times)


def _fitted_times(section: ConfigDict, trained: TrainedModel, workdir: Path) -> Tensor:
    spec = find_sampler(section.sampler)
    if spec.stochastic or spec.nfe_per_step is None:
        raise UserError(
            "a grid can be fitted for deterministic samplers of a given number of steps, which "
            f"{section.sampler!r} is not: choose one that --sampler list shows as ODE, or another grid"
        )
    start = grid_times(section, trained.sde)
    path = workdir / FOLDER / f"{section.sampler}-{len(start) - 1}.json"
    saved = _read(path, trained)
    if saved is not None:
        return saved
    with progress_bar(None, "fitting the grid", "knot") as bar:

        def on_step(i: int, n: int) -> None:
            bar.total = n
            bar.update()

        bare = ConfigDict({**section.to_dict(), "denoise": False})
        times = fit_grid(
            lambda times: build_sampler(bare, trained.sde, times),
            trained.score,
            trained.sde,
            start,
            trained.data.shape,
            on_step=on_step,
        )
    write_json(path, {"times": times.tolist(), "training_steps": trained.step, "weights": trained.weights})
    print(f"fitted grid of {len(times) - 1} steps kept in {path}")
    return times


def _read(path: Path, trained: TrainedModel) -> Tensor | None:
    """The times in a file, if it is there and of these weights."""
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text())
        times = torch.tensor(saved["times"], dtype=torch.float64)
        weights = saved.get("weights", "averaged weights")  # older files say only the step
        return times if (saved["training_steps"], weights) == (trained.step, trained.weights) else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: remove it, and the grid is fitted again") from error
