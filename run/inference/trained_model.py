"""A trained model: which weights of a run directory it has, and what its results record of them.

The run directory holds

    config.json                                the resolved configuration
    data.json                                  shape, grey levels and classes of the data
    conditions.npz                             held-out conditions of the user's own, to draw samples under
    checkpoints/, snapshots/                   see checkpoint.py and post_hoc_averages.py
    skipped/                                   a batch of training that diverged, see interruptions.py
    log.jsonl, log.csv, tensorboard/           the course of training
    loss_curve.png                             its picture
    progress.json, wandb.json                  how far it is, and where else it is logged
    report.html                                the page of the run
    captions.txt                               held-out captions, to draw samples under
    samples/                                   pictures and sample files, and a picture of held-out data
    solvers/                                   samplers that were fitted to the model
    restored/                                  pictures and files of restored samples
    interpolated/                              pictures and files of paths between samples
    likelihood*, evaluation*                   results as JSON, a histogram as PNG
    reference/                                 features of the data that samples are compared with
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.data.vocabulary import Vocabulary
from score_diffusion.run.encoded_data.latent_space import LatentSpace, to_user
from score_diffusion.run.errors import UserError
from score_diffusion.run.training.averages import exponential_name
from score_diffusion.run.training.post_hoc_averages import reconstruct
from score_diffusion.samplers import FixedBatches
from score_diffusion.sde_lib import SDE, ConditionalScore, ScoreFunction, score_device

NETWORK_BATCH = {"cpu": 32, "cuda": 256}  # samples in one evaluation of the network
CHECKPOINTS = {"latest": checkpoint.latest, "best": checkpoint.best}


@dataclass(frozen=True)
class WeightsChoice:
    """Which weights of a run to take."""

    checkpoint: str | int = "latest"
    """A name in `CHECKPOINTS`, or a step."""
    ema: float = 0.0
    """The decay of an exponential average; 0 for the first that was tracked."""
    ema_sigma_rel: float = 0.0
    """The relative width of a power average; 0 for none."""


@dataclass(frozen=True)
class TrackedAverages:
    """The averages that a training tracked."""

    decays: tuple[float, ...]
    """Of the exponential averages, the default one first."""
    sigma_rels: tuple[float, ...] = ()
    """Of the power averages."""


@dataclass(frozen=True)
class TrainedModel:
    """The score of a trained model with what belongs to it."""

    score: ScoreFunction
    """The score with the chosen weights, score(x, t, cond) where the network takes conditions."""
    sde: SDE
    data: DataInfo
    step: int
    """Training steps behind the weights."""
    first_time: float
    """The earliest time at which the model was trained."""
    choice: WeightsChoice = WeightsChoice()
    weights: str = "averaged weights"
    """Which weights they are, in words."""
    conditions: SampleConditions = SampleConditions()
    """What each sample is conditioned on, by its index."""
    guide: Callable[[ScoreFunction], ScoreFunction] = lambda score: score
    """The guidance of samples: makes the score that they are drawn with of this one."""
    guided_by: str = ""
    """The guidance in words; empty for none."""
    latent_space: LatentSpace | None = None
    """The space of samples that are latents of an autoencoder; None for others."""
    vocabulary: Vocabulary | None = None
    """How the model reads texts; None for a model that was trained without."""

    @property
    def device(self) -> torch.device:
        """Where the score computes."""
        return score_device(self.score)

    @property
    def shown(self) -> DataInfo:
        """The data as the user has them: what latents are decoded to, else what the model sees."""
        return self.data.decoded or self.data

    def to_user(self, x: Tensor) -> Tensor:
        """Samples of the model in the user's units; latents are decoded."""
        return to_user(x, self.data.scaling, self.latent_space)

    def model_inputs(self, stored: Tensor) -> Tensor:
        """Inputs of the model (n, *shape) of samples as the data are stored, without dequantization."""
        return self._latents(self.shown.scaling.stored_to_model(stored))

    def from_user(self, x: Tensor) -> Tensor:
        """The same of samples in the user's units."""
        return self._latents(self.shown.scaling.user_to_model(x))

    def _latents(self, x: Tensor) -> Tensor:
        """Model inputs of the data that the user has as those of the data that the model sees."""
        if self.latent_space is None:
            return x
        return self.data.scaling.user_to_model(self.latent_space.encode(x))

    def score_of(self, indices: range) -> ScoreFunction:
        """The score(x, t) of a batch of the samples with these indices, each under its condition."""
        cond = self.conditions.of(indices, self.device)
        return self.score if cond is None else ConditionalScore(self.score, cond)

    def sampling_score(self) -> ScoreFunction:
        """The score(x, t, cond) that samples are drawn with: its values do not depend on the batch."""
        return self.guide(in_fixed_batches(self.score))

    def record(self) -> dict[str, object]:
        """Which weights a result is of, for its JSON file."""
        return {"weights": self.weights, "checkpoint": self.choice.checkpoint}


def in_fixed_batches(score: ScoreFunction) -> ScoreFunction:
    """A network's score, or another function of x and t, whose values do not depend on the batch."""
    return FixedBatches(score, NETWORK_BATCH[score_device(score).type])


def load_chosen_weights(
    model: nn.Module, workdir: Path, choice: WeightsChoice, tracked: TrackedAverages
) -> tuple[int, str]:
    """Loads the chosen weights of a run into a model.

    Returns:
        The training steps behind them, and which weights they are in words.

    Raises:
        UserError: If they were not tracked in training, or no checkpoint is intact.
    """
    saved = chosen_checkpoint(workdir, choice.checkpoint)
    weights, words = _average(workdir, saved, choice, tracked)
    checkpoint.load_weights(model, weights, workdir)
    return saved.step, words


def chosen_checkpoint(workdir: Path, choice: str | int) -> Checkpoint:
    """The checkpoint of a step, or the one that a name of `CHECKPOINTS` stands for."""
    return checkpoint.at_step(workdir, choice) if isinstance(choice, int) else CHECKPOINTS[choice](workdir)


def _average(
    workdir: Path, saved: Checkpoint, choice: WeightsChoice, tracked: TrackedAverages
) -> tuple[dict[str, Tensor], str]:
    """The chosen weights, and what they are in words."""
    decay, sigma_rel = choice.ema, choice.ema_sigma_rel
    if decay and sigma_rel:
        raise UserError("set one of sampling.ema and sampling.ema_sigma_rel, not both")
    if sigma_rel:
        weights = reconstruct(workdir, saved, tracked.sigma_rels, sigma_rel)
        return weights, f"averaged weights of σ_rel = {sigma_rel:g}"
    first, *further = tracked.decays
    if decay in (0, first):
        return saved.ema, "averaged weights"
    if decay not in further:
        kept = ", ".join(f"{d:g}" for d in tracked.decays)
        raise UserError(
            f"sampling.ema must be an average that was tracked in training, {kept}; got {decay:g}"
        )
    weights = saved.average(exponential_name(decay))
    if not weights:
        raise UserError(
            f"the checkpoint of step {saved.step} has no average of decay {decay:g}: train longer to have it"
        )
    return weights, f"averaged weights of decay {decay:g}"


def tensors_digest(tensors: Iterable[tuple[str, Tensor]], text: str = "") -> str:
    """A digest of tensors with their names, in this order, and of a text."""
    parts = hashlib.sha256(text.encode())
    for name, value in tensors:
        parts.update(name.encode())
        parts.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return parts.hexdigest()
