"""Embeddings of the noise level: one number per sample becomes a vector.

By default a network of this package receives `noise` = log(σ/α). The usual SDEs cover about [-7, 6], 13
units, and the optimal denoiser changes over about one unit. All embeddings consist of sin(ω_k noise) and
cos(ω_k noise); they differ in their dim/2 angular frequencies ω_k:

    sinusoidal        ω_k = scale · 10000^(-k/(dim/2 - 1)), k = 0, 1, ..    from scale to scale/10000
    sinusoidal_adm    ω_k = scale · 10000^(-k/(dim/2))                      as in the Transformer and ADM
    fourier           ω_k = 2π f_k,  f_k ~ N(0, scale²)                     drawn once, saved with the weights

A network that receives a time step 0..999 instead (`ScoreModel(..., noise_input="position")`) has scale = 1,
the frequencies of its paper.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239: Appendix B,
        the sinusoidal embedding of the time step.
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762: Section 3.5,
        its origin; Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021),
        https://arxiv.org/abs/2105.05233, has its frequencies.
    Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains (Tancik et al.,
        2020), https://arxiv.org/abs/2006.10739: Gaussian random features.
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: random features of log σ in NCSN++.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """The sinusoidal embedding of DDPM (Ho et al., 2020, Appendix B), applied to scale · noise.

    Args:
        dim: Size of the embedding; even, at least 4.
        scale: Largest angular frequency, in radians per unit of noise. With 100 the 13 units of noise would
            span 1,300 positions, close to the 1,000 time steps for which DDPM chose its frequencies 1 to
            1/10000. But the network keeps some of the oscillation of its fastest feature, and an ODE solver
            has to resolve it: for small U-Nets trained in the same way on digits (held-out loss 0.090 for
            each), the likelihood ODE took 287 evaluations with 100, 125 with 10, and 104 with Fourier
            features.
        endpoint: Whether the smallest frequency is scale/10000 (DDPM) or one step above it (ADM).

    Raises:
        ValueError: If dim is odd or below 4, or scale is not positive.
    """

    def __init__(self, dim: int, scale: float = 10.0, endpoint: bool = True) -> None:
        super().__init__()
        _check_embedding("sinusoidal", dim, 4, scale)
        self.dim = dim
        self.scale = scale
        self.endpoint = endpoint

    def forward(self, noise: Tensor) -> Tensor:
        """Noise levels (B,) to [sin(ω noise), cos(ω noise)], (B, dim); float32, or float64 if noise is."""
        noise = _at_least_float32(noise)
        # Not a buffer, which would be rounded along with the weights by net.half() or net.bfloat16().
        k = torch.arange(self.dim // 2, dtype=noise.dtype, device=noise.device)
        omega = self.scale * torch.exp(k * (-math.log(10_000) / (self.dim // 2 - self.endpoint)))  # (dim/2,)
        return _sin_cos(noise, omega)


class FourierEmbedding(nn.Module):
    """Gaussian random Fourier features (Tancik et al., 2020), drawn at construction, saved with the weights.

    Args:
        dim: Size of the embedding; even, at least 2.
        scale: Standard deviation of the frequencies, in cycles per unit of noise. The features of two noise
            levels at distance d have the correlation exp(-(2π scale d)²/2). The default 0.25 gives a
            correlation length of 0.6 units, which resolves the changes of the denoiser and lets neighbouring
            levels share what they learn. NCSN++'s 16 gives 0.01 units: neighbours would share nothing.

    Raises:
        ValueError: If dim is odd or below 2, or scale is not positive.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 0.25) -> None:
        super().__init__()
        _check_embedding("Fourier", dim, 2, scale)
        self.register_buffer("frequencies", scale * torch.randn(dim // 2))

    def forward(self, noise: Tensor) -> Tensor:
        """Noise levels (B,) to [sin(ω noise), cos(ω noise)], (B, dim); float32, or float64 if noise is."""
        noise = _at_least_float32(noise)
        return _sin_cos(noise, 2 * math.pi * self.frequencies.to(noise.dtype))


EMBEDDINGS: dict[str, Callable[..., nn.Module]] = {
    "sinusoidal": SinusoidalEmbedding,
    "sinusoidal_adm": partial(SinusoidalEmbedding, endpoint=False),
    "fourier": FourierEmbedding,
}


class NoiseEmbedding(nn.Module):
    """An embedding of the noise followed by two linear layers: it conditions the blocks of a network.

    Args:
        embedding: A name in `EMBEDDINGS`.
        dim: Size of the embedding in front of the layers.
        width: Size of both layers and of the result.
        scale: Scale of the frequencies; None for the default of the embedding.

    Raises:
        ValueError: If the embedding is unknown, or dim or scale is out of its range.
    """

    def __init__(self, embedding: str, dim: int, width: int, scale: float | None = None) -> None:
        super().__init__()
        if embedding not in EMBEDDINGS:
            raise ValueError(f"embedding must be one of {', '.join(EMBEDDINGS)}, got {embedding!r}")
        make = EMBEDDINGS[embedding]
        self.embed = make(dim) if scale is None else make(dim, scale=scale)
        self.layers = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, noise: Tensor, condition: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Noise levels (B,) to conditioning vectors (B, width), before their last SiLU.

        The result has the dtype of the weights, even under autocast, which would round the noise level.

        Args:
            noise: The noise levels, shape (B,).
            condition: Adds something to the embedding (B, dim) in front of the layers; None for nothing.
        """
        weight = next(self.layers.parameters())
        with torch.autocast(noise.device.type, enabled=False):
            emb = self.embed(noise).to(weight.dtype)
            return self.layers(emb if condition is None else condition(emb))


def _check_embedding(name: str, dim: int, smallest: int, scale: float) -> None:
    if dim < smallest or dim % 2:
        raise ValueError(
            f"the size of a {name} embedding (channels of a UNet, width of an MLP) must be even and at least "
            f"{smallest}, got {dim}"
        )
    if not scale > 0:
        raise ValueError(f"the scale of a {name} embedding must be positive, got {scale}")


def _at_least_float32(noise: Tensor) -> Tensor:
    # Angles reach hundreds of radians: in half precision their sines would have hardly any correct digit.
    return noise.to(torch.promote_types(noise.dtype, torch.float32))


def _sin_cos(noise: Tensor, omega: Tensor) -> Tensor:
    angles = noise[:, None] * omega  # (B, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
