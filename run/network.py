"""The network as a training step runs it: in another precision or memory format, compiled.

Its weights stay what they are, float32 and under the same names, and so do losses, gradients, averages and
the optimizer.
"""

from __future__ import annotations

import copy

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from run.build import choose
from run.parallel import replicate
from sde_lib import ScoreModel

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingNetwork(nn.Module):
    """A network under autocast, its images in channels-last order where asked for, compiled where asked for.

    Args:
        net: The network.
        section: The section `training`.
        device: Where it runs.

    Raises:
        UserError: If the precision is unknown.
    """

    def __init__(self, net: nn.Module, section: ConfigDict, device: torch.device) -> None:
        super().__init__()
        self.dtype = choose(PRECISIONS, section.precision, "training.precision")
        self.channels_last, self.device_type = section.channels_last, device.type
        self.net = torch.compile(net) if section.compile else net

    def forward(self, x: Tensor, noise: Tensor, cond: object | None = None) -> Tensor:
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32):
            return self.net(x, noise, cond)


def for_training(
    model: ScoreModel, section: ConfigDict, device: torch.device, group: ProcessGroup | None = None
) -> ScoreModel:
    """The same score model around a `TrainingNetwork`: it shares the weights, and its output is float32.

    Where a group of processes has one whole model each, the backward pass averages their gradients.
    """
    net = TrainingNetwork(model.net, section, device)
    if group is not None and section.parallel == "ddp":
        net = replicate(net, group)
    fast = copy.copy(model)
    fast._modules = {**model._modules, "net": net}
    return fast
