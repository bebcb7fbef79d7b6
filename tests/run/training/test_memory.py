from __future__ import annotations

import torch
from torch import Tensor, nn

from score_diffusion.run.training.memory import training_memory
from score_diffusion.sde_lib import VPSDE, ScoreModel

WIDTH = 100_000


class OneLayer(nn.Module):
    """Its backward pass needs the layer's input and output, besides what the loss needs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(2, WIDTH, bias=False), nn.Linear(WIDTH, 2, bias=False)

    def forward(self, x: Tensor, noise: Tensor, cond: object = None) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def test_the_memory_of_a_network_whose_size_is_known():
    model = ScoreModel(OneLayer(), VPSDE(), "noise")
    memory = training_memory(model, (2,), batch_size=12, micro_batches=3, n_averages=2)
    assert memory.weights == 4 * 4 * WIDTH and memory.averages == 2 * memory.weights
    assert 0 <= memory.activations / 4 - 4 * WIDTH < 10_000  # float32 tanh(...) of 4 samples at a time
    assert memory.batch == 3 * 4 * 12 * 2
    assert memory.total == 6 * memory.weights + memory.activations + memory.batch
