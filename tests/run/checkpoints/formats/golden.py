"""Networks of other libraries as their own code computed them, on weights that a formula gives.

Each case of the JSON files lists the names and shapes of a network's tensors in the order of its state_dict,
the arguments that make `UNet` the same network, what it was told of the noise, and its output at pixel (5, 7)
of each channel of two images. It was computed in float64 by the networks of the respective library.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor


def cases(name: str) -> dict[str, dict]:
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())


def weights(tensors: dict[str, list[int]]) -> dict[str, Tensor]:
    """sin(i + (0.37 + 0.01 i) j)·scale at element j of tensor i, plus 1 in the weights of norms."""
    state = {}
    for i, (name, shape) in enumerate(tensors.items()):
        j = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        values = torch.sin(j * (0.37 + 0.01 * i) + i)
        frequencies = name.endswith("0.W") and len(shape) == 1
        norm = len(shape) == 1 and name.endswith("weight")
        state[name] = (values.reshape(shape) * (16 if frequencies else 0.15) + norm).float()
    return state


def images() -> Tensor:
    return torch.sin(torch.arange(2 * 3 * 256, dtype=torch.float64) * 0.1).reshape(2, 3, 16, 16)


def at_the_pixel(output: Tensor) -> Tensor:
    return output[:, :, 5, 7].flatten()
