"""The objective of variational dequantization: the bound on bits/dim of grey levels under a fixed model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from score_diffusion.run.training.batches import Batch
from score_diffusion.run.training.objectives import Objective, clean_data, conditioned
from score_diffusion.sde_lib import (
    NoisyDataModel,
    ScoreModel,
    dequantize,
    logistic_noise,
    quantize,
    reverse_sde_estimate,
)
from score_diffusion.sde_lib.times import FIRST_TIME


def dequantized(model: NoisyDataModel, levels: Tensor, v: Tensor, n_levels: int) -> tuple[Tensor, Tensor]:
    """Samples in the bins of grey levels by a dequantizer, and the logarithm of the density of their noise.

    Args:
        model: The dequantizer.
        levels: Grey levels, shape (B, C, *size).
        v: Uniform noise in [0, 1), same shape, in the dtype of the result.
        n_levels: Number of grey levels.

    Returns:
        Samples in the units of the model, same shape, and log q in nats, shape (B,), float64.
    """
    centre = dequantize(levels, n_levels, torch.full_like(v, 0.5)).float()
    shift, log_scale = model(*clean_data(model, centre)).to(v).chunk(2, dim=1)
    u, log_q = logistic_noise(v, shift, log_scale)
    return dequantize(levels, n_levels, u), log_q


class DequantizationBound(Objective[NoisyDataModel]):
    """An estimate of the bound on bits/dim, by the reverse SDE's bound on -log p(x), at one time per sample.

    It is differentiable in x. The uniform noise of the batch is what the dequantizer transforms, and the
    batch's times, uniform in (0, T), say where the bound is estimated.

    Args:
        scored: The model of the data, which does not learn.
        n_levels: Number of grey levels.
        first: The time of the data.
        conditional: Whether the model is conditioned on the conditions of the batch.
    """

    def __init__(self, scored: ScoreModel, n_levels: int, first: float, conditional: bool) -> None:
        super().__init__()
        # in a tuple, so that its weights are not those of the objective
        self._scored = (scored.eval().requires_grad_(False),)
        self.n_levels, self.first, self.conditional = n_levels, first, conditional

    def forward(self, model: NoisyDataModel, batch: Batch) -> Tensor:
        assert batch.times is not None and batch.noise is not None  # uses_times
        scored = self._scored[0].to(batch.x_0.device)
        levels = quantize(batch.x_0, self.n_levels)
        v = (batch.x_0 - dequantize(levels, self.n_levels, torch.zeros_like(batch.x_0))) * (
            (self.n_levels - 1) / 2
        )
        x, log_q = dequantized(model, levels, v.clamp(0, 1), self.n_levels)
        place = (batch.times.t.double() - FIRST_TIME) / (scored.sde.T - FIRST_TIME)
        score = conditioned(scored, batch, self.conditional)
        nats = reverse_sde_estimate(scored.sde, score, x, place.clamp(0, 1), batch.noise, self.first) + log_q
        return nats / (x[0].numel() * math.log(2)) + math.log2((self.n_levels - 1) / 2)
