from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Moves every parameter off its initial value: a layer that starts at zero hides what comes before."""

    def perturb(net: nn.Module) -> nn.Module:
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
        return net

    return perturb
