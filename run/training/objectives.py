"""What a training step minimizes, and how the section `training` chooses it and the times of a step.

Objectives are modules called with the model, `objective(model, x_0, drawn, noise)`: they do not hold it, and
their state_dict holds only their own parameters.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict
from torch import Tensor, nn

from score_diffusion.run.build import choose
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import (
    SDE,
    WEIGHTINGS,
    ChainTimes,
    DrawnTimes,
    EDMWeighting,
    ImportanceTimes,
    LearnedUncertainty,
    LogNormalTimes,
    MinSNRWeighting,
    ScoreModel,
    TrainingTimes,
    UniformTimes,
    Weighting,
    chain_times,
    denoising_score_matching,
    hybrid_loss,
)

# How the times of a step are drawn, from the section `training` and the SDE.
TIMES: dict[str, Callable[[ConfigDict, SDE], TrainingTimes]] = {
    "continuous": lambda section, sde: UniformTimes(sde),
    "lognormal": lambda section, sde: LogNormalTimes(sde, section.p_mean, section.p_std),
    "discrete": lambda section, sde: ChainTimes(sde),
    "importance": lambda section, sde: ImportanceTimes(sde),
}


def build_times(section: ConfigDict, sde: SDE) -> TrainingTimes:
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
        self, section: ConfigDict, model: ScoreModel, times: TrainingTimes, levels: int | None
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
        self, section: ConfigDict, model: ScoreModel, times: TrainingTimes, levels: int | None
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
        self, section: ConfigDict, model: ScoreModel, times: TrainingTimes, levels: int | None
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
    section: ConfigDict, model: ScoreModel, times: TrainingTimes, levels: int | None
) -> DenoisingScoreMatching | Hybrid:
    """The objective of a `training` section."""
    return choose(OBJECTIVES, section.objective, "objective")(section, model, times, levels)
