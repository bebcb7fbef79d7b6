"""The RefineNets of NCSN and NCSNv2 for images: `net(x, noise) -> like x`, with x of shape (B, C, H, W).

    conv_in -> cascade 1 -> cascade 2 -> .. -> cascade n          two residual blocks each
                   |            |                  |
               refine 1 <-- refine 2 <-- .. <-- refine n          a refine block each
                   |
               norm -> elu -> conv_out

Cascade 1 has the resolution of the image. Each further cascade halves it, except the last ones, which dilate
their convolutions instead. The input of both networks is x_t = x_0 + σ ε, unscaled
(`ScoreModel(..., scale_input=False)`).

    NCSN      Every norm, also in the refine blocks, is a conditional instance norm++ with one row for each of
              L noise levels; the row of the nearest log σ is used. Refine blocks use mean pooling.
    NCSNv2    Residual blocks have unconditional instance norm++; refine blocks have no norm and use max
              pooling. The network ignores the noise, which it infers from x_t, and the score is -F(x_t)/σ
              (Technique 3): ScoreModel's prediction "noise" of F.

NCSN's s_θ(x, σ) is the score itself, prediction "score". Its magnitude is about 1/σ, so the output of the
network has to span the range σ_1/σ_L, and the network learns the small levels last. The prediction "noise",
s_θ(x, σ) = -F(x, σ)/σ, has the same objective, E‖σ s_θ + ε‖² = E‖F - ε‖², without that difficulty. Short
trainings need it: on digits, after 750 steps at 16 channels, the objective per pixel at σ = 0.02 was 0.64
with it and 0.85 without it.

References:
    Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019),
        https://arxiv.org/abs/1907.05600: Appendix A.
    Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020),
        https://arxiv.org/abs/2006.09011: Section 3.3, Appendix B.
    RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation (Lin et al., 2017),
        https://arxiv.org/abs/1611.06612.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.conditions import read_condition
from score_diffusion.models.layers import check_inputs, zero_init
from score_diffusion.models.refinenet_layers import (
    InstanceNormPlus,
    MakeNorm,
    NoNorm,
    RefineBlock,
    RefineNetResidualBlock,
)

SMALLEST_SIDE = 4  # pixels of the shorter side at the lowest resolution


class RefineNet(nn.Module):
    """The base of NCSN and NCSNv2: the diagram above with any norms. At initialization its output is 0.

    Args:
        in_channels: Channels of the images and of the output.
        channels: Width of the first cascade.
        multipliers: Width of each cascade in units of channels, finest first.
        dilations: Dilations of the last cascades; the cascades between the first and these halve the
            resolution.
        norm: Makes the norms of the residual blocks and of the output.
        refine_norm: Makes the norms of the refine blocks.
        max_pool: Whether refine blocks use max pooling or mean pooling.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        multipliers: Sequence[int],
        dilations: Sequence[int],
        norm: MakeNorm,
        refine_norm: MakeNorm,
        max_pool: bool,
    ) -> None:
        super().__init__()
        _check_arguments(in_channels, channels, multipliers, dilations)
        self.in_channels = in_channels
        self.halvings = len(multipliers) - 1 - len(dilations)
        widths = [channels * m for m in multipliers]

        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.cascades = nn.ModuleList([_Cascade(widths[0], widths[0], norm, first=True)])
        for k in range(1, len(widths)):
            dilation = 1 if k <= self.halvings else dilations[k - self.halvings - 1]
            self.cascades.append(_Cascade(widths[k - 1], widths[k], norm, dilation))

        self.refine = nn.ModuleList()  # finest first, as the cascades
        for k, width in enumerate(widths):
            # A refine block also reads the refine block below it, whose output has the width of this cascade.
            inputs = [width] if k == len(widths) - 1 else [width, width]
            self.refine.append(RefineBlock(inputs, widths[max(k - 1, 0)], refine_norm, max_pool, last=k == 0))

        self.norm_out = norm(widths[0])
        self.conv_out = zero_init(nn.Conv2d(widths[0], in_channels, 3, padding=1))

    def level(self, noise: Tensor) -> Tensor:
        """The row of the norms' tables for log σ, (B,) to int64 (B,)."""
        return torch.zeros_like(noise, dtype=torch.int64)

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's output for noisy images.

        Args:
            x: Noisy images, shape (B, C, H, W), in the dtype of the weights; H and W are at least 4 · 2^n if
                the network halves the resolution n times: 8 by default.
            noise: Noise levels log(σ/α), shape (B,).
            cond: Must be None. Every network of the project has this argument.

        Returns:
            A tensor like x.

        Raises:
            ValueError: If a shape or dtype is wrong, or cond is not None.
        """
        check_inputs(x, noise, "B, C, H, W", self.in_channels)
        read_condition(cond, {}, x)
        smallest = SMALLEST_SIDE * 2**self.halvings
        if min(x.shape[2:]) < smallest:
            raise ValueError(
                f"height and width of x must be at least {smallest} for a network that halves them "
                f"{self.halvings} times, got {x.shape[2]} x {x.shape[3]}; pad them or use fewer cascades"
            )
        level = self.level(noise)
        h, features = self.conv_in(x), []
        for cascade in self.cascades:
            h = cascade(h, level)
            features.append(h)
        h = self.refine[-1](features[-1:], level)
        for k in reversed(range(len(features) - 1)):
            h = self.refine[k]([features[k], h], level)
        return self.conv_out(F.elu(self.norm_out(h, level)))


class NCSN(RefineNet):
    """NCSN, conditioned on the noise level (Song & Ermon, 2019). At initialization its output is 0.

    Raises:
        ValueError: If an argument is out of its range, or the levels are not distinct.
    """

    log_levels: Tensor

    def __init__(
        self,
        in_channels: int,  # channels of the images and of the output
        log_levels: Sequence[float] | Tensor,  # log σ_i of the L noise levels, in any order
        channels: int = 128,  # width of the first cascade
        multipliers: Sequence[int] = (1, 2, 2, 2),  # width of each cascade in units of channels, finest first
        dilations: Sequence[int] = (2, 4),  # dilations of the last cascades; others halve the resolution
    ) -> None:
        # On the CPU, where it can be checked even if the network is made on the device "meta".
        table = torch.as_tensor(log_levels, dtype=torch.get_default_dtype(), device="cpu").detach().clone()
        if table.ndim != 1 or not table.isfinite().all() or len(table.unique()) < max(1, len(table)):
            raise ValueError(
                "log_levels must be one or more distinct finite numbers log σ_i, "
                f"got {table.tolist()} of shape {tuple(table.shape)}"
            )

        def norm(width: int) -> nn.Module:
            return InstanceNormPlus(width, len(table))

        super().__init__(in_channels, channels, multipliers, dilations, norm, norm, max_pool=False)
        self.register_buffer("log_levels", table.to(torch.get_default_device()))

    def level(self, noise: Tensor) -> Tensor:
        """The index of the nearest level in log σ, (B,) to int64 (B,)."""
        return (noise[:, None] - self.log_levels).abs().argmin(1)


class NCSNv2(RefineNet):
    """NCSNv2, a RefineNet that ignores the noise (Song & Ermon, 2020). At initialization its output is 0.

    The paper's networks have the default dilations and the multipliers (1, 2, 2, 4, 4) for images of 96 and
    128 pixels, (1, 2, 2, 2, 4, 4) for 256 pixels.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,  # channels of the images and of the output
        channels: int = 128,  # width of the first cascade
        multipliers: Sequence[int] = (1, 2, 2, 2),  # width of each cascade in units of channels, finest first
        dilations: Sequence[int] = (2, 4),  # dilations of the last cascades; others halve the resolution
    ) -> None:
        super().__init__(
            in_channels, channels, multipliers, dilations, InstanceNormPlus, NoNorm, max_pool=True
        )


class _Cascade(nn.ModuleList):
    """Two residual blocks; the first changes the width and, unless it is dilated, halves the resolution.

    The first cascade of a network does neither.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm: MakeNorm, dilation: int = 1, first: bool = False
    ) -> None:
        down = dilation == 1 and not first
        super().__init__(
            [
                RefineNetResidualBlock(
                    in_channels, out_channels, norm, down, dilation, new_cascade=not first
                ),
                RefineNetResidualBlock(out_channels, out_channels, norm, dilation=dilation),
            ]
        )

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        for block in self:
            h = block(h, level)
        return h


def _check_arguments(
    in_channels: int, channels: int, multipliers: Sequence[int], dilations: Sequence[int]
) -> None:
    if in_channels < 1 or channels < 2:
        raise ValueError(
            "in_channels must be at least 1 and channels at least 2, "
            f"got in_channels={in_channels} and channels={channels}"
        )
    if len(multipliers) == 0 or min(multipliers) < 1:
        raise ValueError(f"multipliers must be one or more integers of at least 1, got {tuple(multipliers)}")
    if len(dilations) >= len(multipliers) or any(d < 2 for d in dilations):
        raise ValueError(
            f"dilations must be integers of at least 2, fewer than the {len(multipliers)} multipliers, "
            f"got {tuple(dilations)}"
        )
