"""The zoo of exact problems: data laws with known score, the SDEs to push them along, and distances between
sample sets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_lib import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    Gaussian,
    GaussianMixture,
    RectifiedFlowSDE,
    SubVPSDE,
)

SDES: dict[str, SDE] = {
    "vp": VPSDE(),
    "sub-vp": SubVPSDE(),
    "ve": VESDE(),
}  # of the score SDE paper
ALL_SDES: dict[str, SDE] = SDES | {
    "cosine": CosineVPSDE(),
    "edm": EDMSDE(),
    "rectified-flow": RectifiedFlowSDE(),
}


def random_covariances(count: int, dimensions: int, scale: float, seed: int) -> Tensor:
    """Full covariance matrices (count, D, D) with eigenvalues of about scale²."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, dimensions, dimensions, generator=generator, dtype=torch.float64)
    return scale**2 * (a @ a.mT / dimensions + 0.1 * torch.eye(dimensions, dtype=torch.float64))


def ring(radius: float = 4.0, std: float = 0.3) -> GaussianMixture:
    """Eight isotropic modes on a circle, in two dimensions."""
    angles = torch.arange(8) * (2 * math.pi / 8)
    return GaussianMixture(radius * torch.stack([angles.cos(), angles.sin()], 1), torch.full((8,), std**2))


def images() -> GaussianMixture:
    """1x8x8 images: ten components with full covariances and unequal weights."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(10, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    return GaussianMixture(means, random_covariances(10, 64, 0.3, seed=1), torch.arange(1.0, 11.0))


def line() -> GaussianMixture:
    """Three unequal modes in one dimension."""
    return GaussianMixture(
        torch.tensor([[-2.0], [0.5], [1.5]]), torch.tensor([0.2, 0.05, 0.5]), torch.tensor([0.2, 0.5, 0.3])
    )


def gaussian(dimensions: int = 2) -> Gaussian:
    """One Gaussian with a full covariance and a mean off the origin."""
    return Gaussian(torch.linspace(-1, 1, dimensions), random_covariances(1, dimensions, 0.7, seed=2)[0])


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 500) -> float:
    """Sliced 2-Wasserstein distance between two sample sets of one size, (n, *shape)."""
    generator = torch.Generator().manual_seed(0)
    a, b = a.double().flatten(1), b.double().flatten(1)
    v = torch.randn(a.shape[1], directions, generator=generator, dtype=torch.float64)
    v = v / v.norm(dim=0)
    return ((a @ v).sort(0).values - (b @ v).sort(0).values).square().mean().sqrt().item()


def sampling_floor(law: GaussianMixture, n: int, repeats: int = 5) -> float:
    """The mean distance between two true sample sets of size n."""
    pairs = [(law.sample(n, 2 * i), law.sample(n, 2 * i + 1)) for i in range(1, repeats + 1)]
    return sum(sliced_wasserstein(a, b) for a, b in pairs) / repeats


def affine_map(step, dimensions: int) -> tuple[Tensor, Tensor]:
    """Matrix A (D, D) and offset b (D,) of a map x -> A x + b on batches (B, D), float64."""
    probes = torch.cat([torch.zeros(1, dimensions), torch.eye(dimensions)]).double()
    out = step(probes)
    return (out[1:] - out[0]).mT, out[0]
