"""Latent diffusion: an autoencoder, and a model that draws in its latent space (Rombach et al., 2022).

    diffusion draws z   ->   the decoder of autoencoder makes x of z

Reference:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022),
        https://arxiv.org/abs/2112.10752.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from score_diffusion.models import AUTOENCODERS
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.systems.chain import Chain, ScoreStage, StageRun, StageSamples


class LatentDiffusion(Chain):
    """An autoencoder and a model of its latents, whose samples are decoded.

    Args:
        runs: The run directories.
        stage: The model.
    """

    def __init__(self, runs: Mapping[str, StageRun], stage: ScoreStage) -> None:
        super().__init__({stage.name: runs[stage.name], **runs})
        self.stage, self._runs = stage, runs

    @classmethod
    def load(cls, runs: Mapping[str, StageRun], device: torch.device) -> LatentDiffusion:
        """The chain of two run directories.

        Raises:
            UserError: If they are not an autoencoder and a model that was trained on its latents.
        """
        first, *others = runs.values()
        if first.config.model.name not in AUTOENCODERS or len(others) != 1:
            raise UserError(
                "latent diffusion has two stages, an autoencoder and a model of its latents, and the first "
                f"of {len(runs)} is a {first.config.model.name} in {first.path}"
            )
        stage = ScoreStage.load(others[0], device)
        if stage.trained.latent_space is None:
            raise UserError(f"stage {stage.name} in {others[0].path} was not trained on latents")
        return cls(runs, stage)

    def draw(self, indices: range, seed: int) -> dict[str, StageSamples]:
        return {self.stage.name: self.stage.draw(indices, seed)}

    def facts(self) -> list[tuple[str, object]]:
        latents = " x ".join(map(str, self.stage.trained.data.shape))
        name, words = self.stage.fact()
        first = next(iter(self._runs))
        return [(first, f"latents of {latents}"), (name, words)]

    @property
    def last(self) -> TrainedModel:
        return self.stage.trained

    @property
    def conditions(self) -> SampleConditions:
        return self.stage.trained.conditions
