"""Fourier features of a network's input: fine differences of pixel values, made visible.

A likelihood counts how exactly the grey levels are predicted, and there the noise is far smaller than the
range of the data. The features sin(2ⁿ π x) and cos(2ⁿ π x) of the noisy image (Kingma et al., 2021, Appendix
C) spare the network the large weights that would otherwise tell such values apart.

Noise of standard deviation s damps their mean by exp(-(2ⁿ π s)²/2). Where little of a feature is left, it is
noise that a network would have to learn to ignore: here each feature is multiplied by this factor. Many
frequencies are then harmless, and each is seen at the noise levels that it is good for.

Reference:
    Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630: Section 4.3 and
        Appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FourierInputs(nn.Module):
    """Appends 2 K features of each channel to images.

    Args:
        exponents: The K exponents n of the frequencies 2ⁿ π. The period of n is 2^(1 - n): 8 resolves the
            256 grey levels of [-1, 1].

    Raises:
        ValueError: If an exponent is outside 0..16.
    """

    def __init__(self, exponents: Sequence[int]) -> None:
        super().__init__()
        if not all(0 <= n <= 16 for n in exponents):
            raise ValueError(f"exponents of Fourier features must lie in 0..16, got {tuple(exponents)}")
        self.exponents = tuple(exponents)

    @property
    def factor(self) -> int:
        """Channels of the result for each channel of the images."""
        return 1 + 2 * len(self.exponents)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """The images followed by their features.

        Args:
            x: Noisy images α x_0 + σ ε over √(α² + σ²), shape (B, C, *size).
            noise: log(σ/α), shape (B,).

        Returns:
            Shape (B, C (1 + 2 K), *size), in the dtype of x.
        """
        if not self.exponents:
            return x
        variance = torch.sigmoid(2 * noise.float()).view(-1, *[1] * (x.ndim - 1))  # σ²/(α² + σ²)
        features = [x]
        for n in self.exponents:
            omega = 2**n * math.pi
            damping = (-0.5 * omega**2 * variance).exp()
            phase = omega * x.float()  # half precision has no digits left for the phase
            features += [(damping * phase.sin()).to(x), (damping * phase.cos()).to(x)]
        return torch.cat(features, 1)
