"""Averages of a model's weights over training, which sample better than the weights themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class EMA(AveragedModel):
    """Exponential moving average of a model's weights, with decay min(decay, (1 + n)/(10 + n)) at update n.

    The short memory at first lets the average forget the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=self._average)
        self.decay = decay
        self.eval()

    @torch.no_grad()
    def _average(self, averages: list[Tensor], weights: list[Tensor], _: Tensor) -> None:
        # This buffer is on the CPU. The last argument is its copy on the device, which would be waited for.
        n = int(self.n_averaged)
        torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + n) / (10 + n)))
