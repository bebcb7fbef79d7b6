"""The network as a training step runs it: in another precision or memory format, compiled.

Its weights stay what they are, float32 and under the same names, and so do losses, gradients, averages and
the optimizer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from score_diffusion.run.build import choose
from score_diffusion.run.distributed.model import replicate
from score_diffusion.run.key_types import AUTO
from score_diffusion.sde_lib import ScoreModel

SMALLEST_FOR_BF16 = 16 * 16  # pixels: below, the casts cost more than they save (docs/performance.md)
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision(name: str, device: torch.device, shape: Sequence[int]) -> torch.dtype:
    """The dtype of a network's convolutions and matrix products.

    Args:
        name: "float32", "bf16", "fp16", or "auto": bf16 for images of 16x16 pixels and more where the device
            has instructions for it, else float32.
        device: Where it runs.
        shape: Shape of a sample, (C, *size), or (D,) for points.

    Raises:
        UserError: If the name is unknown.
    """
    if name != AUTO:
        return choose(PRECISIONS, name, "training.precision")
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not tell
        has_bf16 = has.get("avx512_bf16", False) or has.get("amx_bf16", False)
    return torch.bfloat16 if has_bf16 and math.prod(shape[1:]) >= SMALLEST_FOR_BF16 else torch.float32


class TrainingNetwork(nn.Module):
    """A network under autocast, its images in channels-last order where asked for, compiled where asked for.

    Args:
        net: The network.
        section: The section `training`.
        device: Where it runs.
        shape: Shape of a sample.

    Raises:
        UserError: If the precision is unknown.
    """

    def __init__(
        self, net: nn.Module, section: ConfigDict, device: torch.device, shape: Sequence[int]
    ) -> None:
        super().__init__()
        self.dtype = precision(section.precision, device, shape)
        self.channels_last, self.device_type = section.channels_last, device.type
        self.net = torch.compile(net) if section.compile else net

    def forward(self, x: Tensor, noise: Tensor, cond: object | None = None) -> Tensor:
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32):
            return self.net(x, noise, cond)


def for_training(
    model: ScoreModel,
    section: ConfigDict,
    device: torch.device,
    shape: Sequence[int],
    group: ProcessGroup | None = None,
) -> ScoreModel:
    """The same score model around a `TrainingNetwork`: it shares the weights, and its output is float32.

    Where a group of processes has one whole model each, the backward pass averages their gradients.
    """
    net = TrainingNetwork(model.net, section, device, shape)
    if group is not None and section.parallel == "ddp":
        net = replicate(net, group)
    fast = copy.copy(model)
    fast._modules = {**model._modules, "net": net}
    return fast
