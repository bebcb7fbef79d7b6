"""Networks that enlarge images: conditioned on a smaller image and on the noise that was added to it.

    x_low = α z + σ ε, α = cos(πs/2), σ = sin(πs/2)        the small image z with noise of the level s
    net(x, noise, {"low_resolution": x_low, "augmentation": s})

x_low is enlarged to the size of x and concatenated to it along the channels. The level enters as a vector
that is added to the embedding of the noise: cos and sin of πks/2, k = 1, ..., 4, of which the first pair is α
and σ.

References:
    Image Super-Resolution via Iterative Refinement (Saharia et al., 2021), https://arxiv.org/abs/2104.07636:
        Section 2.3.
    Cascaded Diffusion Models for High Fidelity Image Generation (Ho et al., 2021),
        https://arxiv.org/abs/2106.15282: Sections 3 and 4.
    Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022),
        https://arxiv.org/abs/2205.11487: Section 2.3, the level as a condition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.conditions import Condition, read_condition

FREQUENCIES = 4
LEVEL_FEATURES = 2 * FREQUENCIES
"""Entries of the vector that a level becomes."""
UPSAMPLINGS = ("nearest", "bilinear", "bicubic")


def augmentation_scales(level: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ of a level s in [0, 1], tensors like it."""
    return (level * math.pi / 2).cos(), (level * math.pi / 2).sin()


def level_features(level: Tensor) -> Tensor:
    """The vectors (B, LEVEL_FEATURES) of levels (B,)."""
    k = torch.arange(1, FREQUENCIES + 1, device=level.device, dtype=level.dtype)
    angle = math.pi / 2 * level[:, None] * k
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class SuperResolution(nn.Module):
    """A network of images conditioned on smaller ones.

    Args:
        net: A network of images that takes a vector of LEVEL_FEATURES entries, or more if it is given others,
            and an image with the channels of x.
        factor: How many times larger each side of x is.
        upsampling: How the small image is enlarged: nearest, bilinear or bicubic.

    Raises:
        ValueError: If an argument is out of its range, or the network does not take these conditions.
    """

    def __init__(self, net: nn.Module, factor: int, upsampling: str = "bilinear") -> None:
        super().__init__()
        sizes = dict(cast(Mapping[str, int], getattr(net, "condition_sizes", {})))
        others = sizes.pop("vector", 0) - LEVEL_FEATURES
        if factor < 2 or upsampling not in UPSAMPLINGS:
            raise ValueError(
                f"factor must be at least 2 and upsampling one of {', '.join(UPSAMPLINGS)}, got {factor} and "
                f"{upsampling!r}"
            )
        if others < 0 or not sizes.pop("image", 0):
            raise ValueError(
                f"the network must take an image, and a vector of at least {LEVEL_FEATURES} entries; it has "
                f"{getattr(net, 'condition_sizes', 'no condition')}"
            )
        self.net, self.factor, self.upsampling = net, factor, upsampling
        vector = {"vector": others} if others else {}
        self.condition_sizes = {**sizes, **vector, "low_resolution": factor, "augmentation": 1}

    def forward(self, x: Tensor, noise: Tensor, cond: Condition | None = None) -> Tensor:
        """The output of the network.

        Args:
            x: Noisy images, shape (B, C, *size).
            noise: Noise levels, shape (B,).
            cond: A dict with "low_resolution", small images (B, C, *size/factor), "augmentation", the levels
                (B,) of their noise, 0 by default, and what else the network takes.

        Raises:
            ValueError: If a shape or dtype is wrong, the small images are missing, or the network does not
                take this condition.
        """
        by_kind = read_condition(cond, self.condition_sizes, x)
        small, level = by_kind.pop("low_resolution"), by_kind.pop("augmentation", x.new_zeros(len(x)))
        by_kind["image"] = enlarged(small, x, self.upsampling)
        parts = [level_features(level)]
        if "vector" in self.condition_sizes:
            parts.insert(0, by_kind.get("vector", x.new_zeros(len(x), self.condition_sizes["vector"])))
        by_kind["vector"] = torch.cat(parts, dim=1)
        return self.net(x, noise, by_kind)


def enlarged(small: Tensor, x: Tensor, upsampling: str) -> Tensor:
    """Small images (B, C, *size) at the size of x, (B, C, *size)."""
    if upsampling == "nearest":
        return F.interpolate(small, x.shape[2:], mode="nearest-exact")
    mode = {1: "linear", 2: upsampling, 3: "trilinear"}[x.ndim - 2]
    return F.interpolate(small, x.shape[2:], mode=mode, align_corners=False)
