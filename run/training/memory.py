"""The memory that a training takes, estimated before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.models import Autoencoder
from score_diffusion.models.conditions import condition_sizes, null_condition
from score_diffusion.sde_lib import ConditionalScore, NoisyDataModel, ScoreModel, denoising_score_matching


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes, without libraries and data."""

    weights: int
    """Of the network; its gradients take as much, and Adam's moments twice as much."""
    averages: int
    """Of all moving averages."""
    activations: int
    """What the backward pass of a micro-batch needs, in float32."""
    batch: int
    """The samples of a whole batch, their noise, and the noise of their dequantization."""

    @property
    def total(self) -> int:
        return 4 * self.weights + self.averages + self.activations + self.batch


def training_memory(
    model: ScoreModel | NoisyDataModel | Autoencoder,
    shape: Sequence[int],
    batch_size: int,
    micro_batches: int,
    n_averages: int,
) -> TrainingMemory:
    """The memory of a training; the network is run once.

    Args:
        model: The model, on the CPU.
        shape: Shape of one sample.
        batch_size: Samples in a step of this process.
        micro_batches: Parts in which a step works on them.
        n_averages: Number of moving averages of the weights.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return TrainingMemory(
        weights,
        n_averages * weights,
        batch_size // micro_batches * activation_bytes(model, shape),
        3 * 4 * batch_size * math.prod(shape),
    )


def activation_bytes(model: ScoreModel | NoisyDataModel | Autoencoder, shape: Sequence[int]) -> int:
    """Bytes that autograd keeps for the backward pass of one sample."""
    seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    x = torch.zeros(1, *shape)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if isinstance(model, ScoreModel):
            t = torch.full((1,), model.sde.T)
            cond = null_condition(condition_sizes(model), shape)
            score = ConditionalScore(model, cond) if cond else model
            denoising_score_matching(model.sde, score, x, t, torch.zeros_like(x))
        elif isinstance(model, NoisyDataModel):
            model(x, torch.full((1,), model.sde.T))
        else:
            model(x)
    return total
