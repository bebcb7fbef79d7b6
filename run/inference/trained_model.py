"""A run directory, from which `sample`, `likelihood` and `evaluate` take all they need.

It holds

    config.json                                the resolved configuration
    data.json                                  shape and grey levels of the data
    checkpoints/, snapshots/                   see checkpoint.py and post_hoc_averages.py
    skipped/                                   a batch of training that diverged, see interruptions.py
    log.jsonl, tensorboard/, loss_curve.png    the course of training
    samples/                                   pictures and sample files
    likelihood*, evaluation*                   results as JSON, a histogram as PNG
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.run.build import build_model, build_sde, choose
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.data.info import DataInfo, read_data_info
from score_diffusion.run.errors import UserError
from score_diffusion.run.training.averages import exponential_name
from score_diffusion.run.training.objectives import build_times
from score_diffusion.run.training.post_hoc_averages import reconstruct
from score_diffusion.sde_lib import SDE, ConditionalScore, ScoreModel


@dataclass(frozen=True)
class TrainedModel:
    """A trained score model with what belongs to it."""

    score: ScoreModel | ConditionalScore
    """The averaged weights, in evaluation mode, on the device asked for."""
    sde: SDE
    data: DataInfo
    step: int
    """Training steps behind the weights."""
    first_time: float
    """The earliest time at which the model was trained."""
    weights: str = "averaged weights"
    """Which weights they are, in words."""

    def record(self, sampling: ConfigDict) -> dict[str, object]:
        """Which weights a result is of, for its JSON file."""
        return {"weights": self.weights, "checkpoint": sampling.checkpoint, "label": sampling.label}


def load_trained(workdir: Path, config: ConfigDict, device: torch.device) -> TrainedModel:
    """The averaged model that `sampling` chooses: of the newest intact checkpoint, unless it says otherwise.

    Raises:
        UserError: If the choice is unknown or was not tracked in training, or no checkpoint is intact.
    """
    info = read_data_info(workdir)
    sde = build_sde(config.sde)
    model = build_model(config.model, sde, info.shape)
    saved = choose(CHECKPOINTS, config.sampling.checkpoint, "choice of sampling.checkpoint")(workdir)
    weights, words = _average(workdir, saved, config)
    checkpoint.load_weights(model, weights, workdir)
    first_time = build_times(config.training, sde).first
    score = _of_class(model.to(device).eval(), config.sampling.label)
    return TrainedModel(score, sde, info, saved.step, first_time, words)


def _of_class(model: ScoreModel, label: int) -> ScoreModel | ConditionalScore:
    """The model, or its score of one class."""
    if label == -1:
        return model
    classes = getattr(model.net, "condition_sizes", {}).get("label", 0)
    if not 0 <= label < classes:
        raise UserError(
            f"sampling.label must be one of the network's {classes} classes, 0 to {classes - 1}, got {label}"
            if classes
            else f"sampling.label={label} needs a network with classes, which this one has not"
        )
    return ConditionalScore(model, {"label": torch.tensor([label])})


CHECKPOINTS = {"latest": checkpoint.latest, "best": checkpoint.best}


def _average(workdir: Path, saved: Checkpoint, config: ConfigDict) -> tuple[dict[str, Tensor], str]:
    """The weights that `sampling` chooses, and what they are in words."""
    decay, sigma_rel, training = config.sampling.ema, config.sampling.ema_sigma_rel, config.training
    if decay and sigma_rel:
        raise UserError("set one of sampling.ema and sampling.ema_sigma_rel, both choose an average")
    if sigma_rel:
        weights = reconstruct(workdir, saved, training.ema_sigma_rels, sigma_rel)
        return weights, f"averaged weights of σ_rel = {sigma_rel:g}"
    if decay in (0, training.ema_decay):
        return saved.ema, "averaged weights"
    if decay not in training.extra_ema_decays:
        kept = ", ".join(f"{d:g}" for d in (training.ema_decay, *training.extra_ema_decays))
        raise UserError(f"sampling.ema must be an average that was kept in training, {kept}; got {decay:g}")
    weights = saved.average(exponential_name(decay))
    if not weights:
        raise UserError(f"the checkpoint of step {saved.step} has no average of decay {decay:g}: train on")
    return weights, f"averaged weights of decay {decay:g}"
