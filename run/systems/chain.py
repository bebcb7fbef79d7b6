"""What draws the samples of a system: stage after stage, each given what the stages before it drew."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from score_diffusion.run.builders.guidance import load_guided
from score_diffusion.run.builders.inference import build_trained_sampler, sample_request
from score_diffusion.run.builders.training import total_training_steps
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.console import warn
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.sample_files import draw
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.samplers import Sampler
from score_diffusion.sde_lib import generator_for


@dataclass(frozen=True)
class StageRun:
    """The run directory of a stage, which has a checkpoint."""

    name: str
    path: Path
    config: ConfigDict
    """Its configuration with the overrides of the command."""

    def check_is_trained(self) -> None:
        """Says that a stage is not finished.

        Raises:
            UserError: If it has no checkpoint at all.
        """
        steps, total = checkpoint.steps(self.path), total_training_steps(self.config.training)
        if not steps:
            raise UserError(
                f"stage {self.name} in {self.path} has not been trained: resume the training of the system, "
                f"--mode train --workdir {self.path.parent}"
            )
        if steps[-1] < total:
            warn(f"stage {self.name} has taken {steps[-1]:,} of its {total:,} training steps")


@dataclass(frozen=True)
class StageSamples:
    """Samples as a stage drew them."""

    samples: np.ndarray
    """In the user's units, (n, *shape)."""
    nfe: int
    """Network evaluations of a sample in this stage."""
    limits: tuple[float, float] | None = (-1.0, 1.0)
    """The values that are black and white in a picture; None where there is no fixed range."""


class Chain(ABC):
    """Draws the samples of a system.

    Args:
        stages: The stages in their order.
    """

    def __init__(self, stages: Mapping[str, StageRun]) -> None:
        self.sampling: ConfigDict = next(iter(stages.values())).config.sampling
        """That of the first stage, which says how many samples to draw, from which seed, and where to write.
        """
        self.settings = json.dumps({name: _settings(run) for name, run in stages.items()}, sort_keys=True)
        """All settings and weights that decide the samples, as JSON."""

    @abstractmethod
    def draw(self, indices: range, seed: int) -> dict[str, StageSamples]:
        """The samples with these indices after each stage, by its name, the last one's at the end.

        Sample k depends on (seed, k) only.
        """

    @abstractmethod
    def facts(self) -> list[tuple[str, object]]:
        """What the chain is, in words: a row for each stage."""

    @property
    @abstractmethod
    def last(self) -> TrainedModel:
        """The model that draws last, whose data the samples are like."""

    @property
    def conditions(self) -> SampleConditions:
        """What the samples are conditioned on, by their indices."""
        return SampleConditions()


def _settings(run: StageRun) -> dict[str, object]:
    settings = json.loads(sample_request(run.config.sampling).settings)
    return {**settings, "training_steps": checkpoint.steps(run.path)[-1:]}


@dataclass(frozen=True)
class ScoreStage:
    """A stage that draws by a score model."""

    name: str
    trained: TrainedModel
    sampler: Sampler
    batch_size: int

    @classmethod
    def load(cls, run: StageRun, device: torch.device) -> ScoreStage:
        """The stage with the weights, the conditions, the guidance and the sampler that its run chooses."""
        section = run.config.sampling
        trained = load_guided(run.path, run.config, device)
        sampler = build_trained_sampler(section, trained, run.path)
        return cls(run.name, trained, sampler, section.batch_size)

    def draw(self, indices: range, seed: int, trained: TrainedModel | None = None) -> StageSamples:
        """The samples with these indices.

        Args:
            indices: Of the samples.
            seed: The seed of the stage, see `stage_seed`.
            trained: The model in place of the stage's, under what the stages before it drew.
        """
        trained = self.trained if trained is None else trained
        batches = draw(trained, self.sampler, indices, seed, self.batch_size)
        samples = np.concatenate([samples for samples, _ in batches])
        return StageSamples(samples, max(nfe for _, nfe in batches), trained.shown.scaling.limits)

    def fact(self) -> tuple[str, object]:
        """The stage in words."""
        trained = self.trained
        guided = f", guided by {trained.guided_by}" if trained.guided_by else ""
        return self.name, f"{trained.shown.shape}, after {trained.step:,} training steps{guided}"


def stage_seed(seed: int, name: str) -> int:
    """The seed of a stage: the noise of two stages is independent."""
    return generator_for(seed, "stage", name).initial_seed()
