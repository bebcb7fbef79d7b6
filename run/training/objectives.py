"""What a training step minimizes.

An objective is a module, `objective(model, batch) -> losses (B,)`, that does not hold the model: its
state_dict has only its own parameters. It uses as much of the `Batch` as it needs: score matching x_0, times
and noise; a classifier, a contrastive pair or an autoencoder x_0 and conditions. Objectives that use no times
set `uses_times = False`, and none are drawn.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

from torch import Tensor, nn

from score_diffusion.run.training.batches import Batch
from score_diffusion.sde_lib import (
    SDE,
    ConditionalScore,
    LearnedUncertainty,
    ScoreFunction,
    ScoreModel,
    Weighting,
    chain_times,
    denoising_score_matching,
    hybrid_loss,
)

Model = TypeVar("Model", bound=nn.Module)


class Objective(nn.Module, Generic[Model]):
    """Base class of the objectives for a kind of model."""

    uses_times = True
    """Whether batches have times and noise."""

    @abstractmethod
    def forward(self, model: Model, batch: Batch) -> Tensor:
        """The loss of each sample, shape (B,)."""


def conditioned(model: ScoreModel, batch: Batch, conditional: bool) -> ScoreFunction:
    """The model, conditioned on what the batch comes with if it is to be trained so."""
    return ConditionalScore(model, batch.conditions) if conditional and batch.conditions else model


class DenoisingScoreMatching(Objective[ScoreModel]):
    """Denoising score matching.

    Args:
        weighting: Weighting of the loss over times.
        conditional: Whether the model is conditioned on the conditions of the batch.
    """

    def __init__(self, weighting: Weighting, conditional: bool = False) -> None:
        super().__init__()
        self.weighting, self.conditional = weighting, conditional

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        assert batch.times is not None and batch.noise is not None  # uses_times
        score = conditioned(model, batch, self.conditional)
        return denoising_score_matching(
            model.sde, score, batch.x_0, batch.times.t, batch.noise, self.weighting
        )


class UncertaintyWeighted(DenoisingScoreMatching):
    """Denoising score matching, divided by a learned uncertainty of each noise level.

    Args:
        sde: The SDE.
        weighting: Weighting of the loss over times.
        conditional: Whether the model is conditioned on the conditions of the batch.
    """

    def __init__(self, sde: SDE, weighting: Weighting, conditional: bool = False) -> None:
        super().__init__(weighting, conditional)
        self.uncertainty = LearnedUncertainty(sde)

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        losses = super().forward(model, batch)
        assert batch.times is not None
        return self.uncertainty(losses, batch.times.t)


class Hybrid(Objective[ScoreModel]):
    """Improved DDPM's L_simple + λ L_vlb, which trains a learned variance; for times of the SDE's chain.

    Args:
        sde: The SDE.
        levels: Number of grey levels of pixel values that are not dequantized; None for other data.
        vlb_weight: λ.
        conditional: Whether the model is conditioned on the conditions of the batch.
    """

    times: Tensor

    def __init__(self, sde: SDE, levels: int | None, vlb_weight: float, conditional: bool = False) -> None:
        super().__init__()
        self.register_buffer("times", chain_times(sde), persistent=False)
        self.levels, self.vlb_weight, self.conditional = levels, vlb_weight, conditional

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        assert batch.times is not None and batch.times.k is not None and batch.noise is not None
        score = conditioned(model, batch, self.conditional)
        return hybrid_loss(
            model.sde,
            score,
            batch.x_0,
            self.times,
            batch.times.k,
            batch.noise,
            self.levels,
            self.vlb_weight,
        )
