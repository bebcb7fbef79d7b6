"""What a training step draws and what it minimizes: a class for each choice of times and of objective.

The times of a step's samples come from the whole interval, uniform or with a log-normal noise level (EDM's),
or from the noisy times of the SDE's chain,

    t_1 < ... < t_N,    p(t_k) = 1/N or, "importance", ∝ √E[L_k²] (Nichol & Dhariwal, 2021, Section 3.3),

and a loss at t_k is weighted with 1/(N p(t_k)), so that its mean is that over uniform times.

Objectives are modules called with the model, `objective(model, x_0, drawn, noise)`: they do not hold it, and
their parameters and their state are their own alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from score_diffusion.run.build import choose, noisy_times
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import (
    SDE,
    WEIGHTINGS,
    EDMWeighting,
    ImportanceSampledSteps,
    LearnedUncertainty,
    LogNormalTimes,
    MinSNRWeighting,
    ScoreModel,
    Weighting,
    chain_times,
    denoising_score_matching,
    hybrid_loss,
    sample_times,
    stratified_uniform,
)


@dataclass(frozen=True)
class DrawnTimes:
    """The times of a batch."""

    t: Tensor
    """Times, shape (B,)."""
    weights: Tensor
    """Weights of the losses there, shape (B,), with mean 1."""
    k: Tensor | None = None
    """Indices of the times in the chain's, shape (B,); None where they are of no chain."""


class ContinuousTimes(nn.Module):
    """Stratified times of the whole interval.

    Args:
        section: The section `training`.
        sde: The SDE.
    """

    first = 1e-5  # at t = 0 the score of VP and sub-VP is not defined
    in_chain = False

    def __init__(self, section: ConfigDict, sde: SDE) -> None:
        super().__init__()
        self.sde = sde

    def draw(self, batch_size: int, generator: torch.Generator) -> DrawnTimes:
        """The times of a batch, on the generator's device."""
        t = sample_times(self.sde, batch_size, generator, eps=self.first)
        return DrawnTimes(t, torch.ones_like(t))

    def update(self, drawn: DrawnTimes, losses: Tensor) -> None:
        """Takes note of the losses (B,) at drawn times."""


class LogNormalNoise(ContinuousTimes):
    """Stratified times with a log-normal noise level (Karras et al., 2022)."""

    def __init__(self, section: ConfigDict, sde: SDE) -> None:
        super().__init__(section, sde)
        self.times = LogNormalTimes(sde, section.p_mean, section.p_std, eps=self.first)

    def draw(self, batch_size: int, generator: torch.Generator) -> DrawnTimes:
        t = self.times.draw(batch_size, generator)
        return DrawnTimes(t, torch.ones_like(t))


class DiscreteTimes(ContinuousTimes):
    """Stratified times of the chain, all equally likely."""

    in_chain = True

    def __init__(self, section: ConfigDict, sde: SDE) -> None:
        super().__init__(section, sde)
        self.register_buffer("times", noisy_times(sde), persistent=False)
        self.first = float(self.times[0])

    def draw(self, batch_size: int, generator: torch.Generator) -> DrawnTimes:
        u = stratified_uniform(batch_size, generator, torch.float64)
        k = (u * len(self.times)).long().clamp_max(len(self.times) - 1)
        return DrawnTimes(self.times[k], torch.ones_like(u), k)


class ImportanceTimes(DiscreteTimes):
    """Times of the chain, likely where losses have been large. What they were is part of a checkpoint."""

    def __init__(self, section: ConfigDict, sde: SDE) -> None:
        super().__init__(section, sde)
        self.steps = ImportanceSampledSteps(len(self.times))

    def draw(self, batch_size: int, generator: torch.Generator) -> DrawnTimes:
        k, weights = self.steps.draw(batch_size, generator)
        return DrawnTimes(self.times[k], weights, k)

    def update(self, drawn: DrawnTimes, losses: Tensor) -> None:
        self.steps.update(drawn.k, losses)


TIMES = {
    "continuous": ContinuousTimes,
    "lognormal": LogNormalNoise,
    "discrete": DiscreteTimes,
    "importance": ImportanceTimes,
}


def build_times(section: ConfigDict, sde: SDE) -> ContinuousTimes:
    """The times of a `training` section."""
    return choose(TIMES, section.times, "choice of training.times")(section, sde)


def build_weighting(section: ConfigDict, model: ScoreModel) -> Weighting:
    """The weighting of a `training` section; edm's σ_data is the model's."""
    with_numbers = {
        "min_snr": MinSNRWeighting(section.min_snr_gamma),
        "edm": EDMWeighting(model.sigma_data),
    }
    return choose(WEIGHTINGS | with_numbers, section.weighting, "weighting")


class DenoisingScoreMatching(nn.Module):
    """Denoising score matching with the section's weighting.

    Args:
        section: The section `training`.
        model: The model to train.
        times: Where its times come from.
        levels: Number of grey levels of bare pixel values; None for other data.

    Raises:
        UserError: If the weighting is unknown, or the model has a variance that nothing would train.
    """

    def __init__(
        self, section: ConfigDict, model: ScoreModel, times: ContinuousTimes, levels: int | None
    ) -> None:
        super().__init__()
        if model.learned_variance:
            raise UserError(
                f"objective {section.objective!r} trains no variance: set training.objective=hybrid or "
                "model.learned_variance=False"
            )
        self.weighting = build_weighting(section, model)

    def forward(self, model: ScoreModel, x_0: Tensor, drawn: DrawnTimes, noise: Tensor) -> Tensor:
        """The loss of each sample, shape (B,)."""
        return denoising_score_matching(model.sde, model, x_0, drawn.t, noise, self.weighting)


class Uncertainty(DenoisingScoreMatching):
    """Denoising score matching, and at every noise level a learned uncertainty that its loss is divided by.

    Args:
        section: The section `training`.
        model: The model to train.
        times: Where its times come from.
        levels: Number of grey levels of bare pixel values; None for other data.

    Raises:
        UserError: As for denoising score matching, or if the times are drawn by importance: where every
            level's loss is brought to the same size there is nothing to draw by.
    """

    def __init__(
        self, section: ConfigDict, model: ScoreModel, times: ContinuousTimes, levels: int | None
    ) -> None:
        super().__init__(section, model, times, levels)
        if section.times == "importance":
            raise UserError(
                "objective 'uncertainty' does not go with training.times=importance: choose discrete"
            )
        self.uncertainty = LearnedUncertainty(model.sde)

    def forward(self, model: ScoreModel, x_0: Tensor, drawn: DrawnTimes, noise: Tensor) -> Tensor:
        return self.uncertainty(super().forward(model, x_0, drawn, noise), drawn.t)


class Hybrid(nn.Module):
    """Improved DDPM's L_simple + λ L_vlb, which trains a learned variance.

    Args:
        section: The section `training`.
        model: The model to train.
        times: Where its times come from.
        levels: Number of grey levels of bare pixel values; None for other data.

    Raises:
        UserError: If the model has no learned variance, the times are not the chain's, the chain does not end
            at the data, or the weighting is not plain.
    """

    def __init__(
        self, section: ConfigDict, model: ScoreModel, times: ContinuousTimes, levels: int | None
    ) -> None:
        super().__init__()
        if not model.learned_variance:
            raise UserError("objective 'hybrid' trains a variance: set model.learned_variance=True")
        if not times.in_chain:
            raise UserError("objective 'hybrid' needs training.times=discrete or importance")
        if section.weighting != "plain":
            raise UserError(f"objective 'hybrid' needs training.weighting=plain, got {section.weighting!r}")
        self.register_buffer("times", chain_times(model.sde), persistent=False)
        if model.sde.sigma(self.times[-1]) > 0:
            raise UserError(
                f"objective 'hybrid' needs an SDE without noise at t = 0, which {model.sde} has there: "
                "choose ddpm or vpsde"
            )
        self.levels, self.vlb_weight = levels, section.vlb_weight

    def forward(self, model: ScoreModel, x_0: Tensor, drawn: DrawnTimes, noise: Tensor) -> Tensor:
        """The loss of each sample, shape (B,)."""
        return hybrid_loss(model.sde, model, x_0, self.times, drawn.k, noise, self.levels, self.vlb_weight)


OBJECTIVES = {"dsm": DenoisingScoreMatching, "uncertainty": Uncertainty, "hybrid": Hybrid}


def build_objective(
    section: ConfigDict, model: ScoreModel, times: ContinuousTimes, levels: int | None
) -> DenoisingScoreMatching | Hybrid:
    """The objective of a `training` section."""
    return choose(OBJECTIVES, section.objective, "objective")(section, model, times, levels)
