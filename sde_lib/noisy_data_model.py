"""Networks that read noisy data, other than scores: classifiers and encoders as functions of x_t and t.

    F(c_in x_t, log(σ/α)),    c_in = 1/√(α² + σ²)

The network sees what a `ScoreModel` with the default noise input sees: noisy data at unit variance, and the
logarithm of their noise level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from score_diffusion.sde_lib.sde import SDE, each_time, expand


class NoisyDataModel(nn.Module):
    """A network of noisy data, `model(x, t) -> net(c_in x, log(σ/α))`.

    Args:
        net: The network, `net(x, noise)` or `net(x, noise, other)`; it runs in the dtype of its parameters.
        sde: The SDE that perturbs the data.
    """

    any_dtype = True

    def __init__(self, net: nn.Module, sde: SDE) -> None:
        super().__init__()
        self.net, self.sde = net, sde

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def forward(self, x: Tensor, t: Tensor, *other: Tensor) -> Tensor:
        """The network's output in the dtype of x.

        Args:
            x: Noisy data, shape (B, *shape).
            t: Times, shape (B,).
            *other: Further arguments of the network.
        """
        t = each_time(t, x)
        alpha, sigma = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t), x)
        dtype = next((p.dtype for p in self.parameters()), x.dtype)
        noise = self.sde.log_noise_level(t).to(x.device, torch.promote_types(dtype, torch.float32))
        net_input = ((alpha.square() + sigma.square()).rsqrt() * x).to(dtype)
        return self.net(net_input, noise, *other).to(x.dtype)
