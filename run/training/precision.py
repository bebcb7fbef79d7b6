"""The network as a training step runs it: in another precision or memory format, or compiled.

Its weights stay float32 under the same names, and so do losses, gradients, averages and the optimizer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

SMALLEST_FOR_BF16 = 16 * 16  # pixels: below, the casts cost more than they save (docs/performance.md)
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fastest_precision(device: torch.device, shape: Sequence[int]) -> str:
    """The name of the fastest safe precision: bf16 for images of 16x16 pixels and more where the device has
    instructions for it, else float32.

    Args:
        device: Where the network runs.
        shape: Shape of a sample, (C, *size), or (D,) for points.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()  # old PyTorch lacks it
        has_bf16 = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return "bf16" if has_bf16 and math.prod(shape[1:]) >= SMALLEST_FOR_BF16 else "float32"


class TrainingNetwork(nn.Module):
    """A network under autocast.

    Args:
        net: The network.
        dtype: Type of its convolutions and matrix products.
        channels_last: Whether images are converted to channels-last order.
        compiled: Whether the network is compiled by `torch.compile`.
    """

    def __init__(
        self,
        net: nn.Module,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.dtype, self.channels_last = dtype, channels_last
        self.device_type = next(net.parameters()).device.type
        self.net: Callable[..., Tensor] = torch.compile(net) if compiled else net

    def forward(self, x: Tensor, *arguments: object) -> Tensor:
        """The output of `net(x, *arguments)`."""
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32):
            return self.net(x, *arguments)


def with_network(model: Model, change: Callable[[nn.Module], nn.Module]) -> Model:
    """A view of a model that shares its weights, with its network replaced by `change(network)`.

    The network of a score model is its attribute `net`; a model without one, such as a classifier, is a
    network itself.
    """
    if not isinstance(getattr(model, "net", None), nn.Module):
        return change(model)  # type: ignore[return-value]  # called like the model
    view = copy.copy(model)
    view._modules = {**model._modules, "net": change(model.net)}  # type: ignore[arg-type]
    return view
