"""The RefineNets of NCSN and NCSNv2 for images: `net(x, noise) -> like x`, with x of shape (B, C, H, W).

    conv_in -> cascade 1 -> cascade 2 -> .. -> cascade n          two residual blocks each
                   |            |                  |
               refine 1 <-- refine 2 <-- .. <-- refine n          a refine block each
                   |
               norm -> elu -> conv_out

Cascade 1 has the resolution of the image; each of the next halves it, but for the last ones, which dilate
their convolutions instead. Both networks see x_t = x_0 + σ ε itself (`ScoreModel(..., scale_input=False)`).

    NCSN      every norm, in refine blocks too, is a conditional instance norm++ with a row for each of L
              noise levels, of which log σ picks the nearest; refine blocks pool by the mean.
    NCSNv2    residual blocks have unconditional instance norm++, refine blocks no norm and pooling by the
              maximum. The noise is ignored: the network knows it by x_t, and the score is -F(x_t)/σ
              (Technique 3), which is what ScoreModel's prediction "noise" makes of F.

NCSN's s_θ(x, σ) is the score itself, prediction "score". Its size is about 1/σ: the network has to stretch
its output over all of σ_1/σ_L, and learns the small levels last. The prediction "noise", s_θ(x, σ) = -F(x,
σ)/σ, has the same objective, E‖σ s_θ + ε‖² = E‖F - ε‖², and takes that task off the network, which short
trainings need: on digits, after 750 steps at 16 channels, the objective per pixel at σ = 0.02 was 0.64 with
it and 0.85 without.

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

SMALLEST = 4  # pixels of the shorter side at the lowest resolution


class RefineNet(nn.Module):
    """What NCSN and NCSNv2 share: the network of the diagram, for any norms. Its output is zero at first.

    Args:
        in_channels: Channels of the images, in and out.
        channels: Width of the first cascade.
        multipliers: Width of each cascade in units of channels, finest first.
        dilations: Dilations of the last cascades; all others after the first halve the resolution.
        norm: Makes the norms of the residual blocks and of the output.
        refine_norm: Makes the norms of the refine blocks.
        max_pool: Whether refine blocks pool by the maximum, or by the mean.

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
        self.cascades = nn.ModuleList([_cascade(widths[0], widths[0], norm, first=True)])
        for k in range(1, len(widths)):
            dilation = 1 if k <= self.halvings else dilations[k - self.halvings - 1]
            self.cascades.append(_cascade(widths[k - 1], widths[k], norm, dilation))

        self.refine = nn.ModuleList()  # finest first, as the cascades
        for k, width in enumerate(widths):
            # Besides its cascade, a refine block reads the one below, which has come to this cascade's width.
            inputs = [width] if k == len(widths) - 1 else [width, width]
            self.refine.append(RefineBlock(inputs, widths[max(k - 1, 0)], refine_norm, max_pool, last=k == 0))

        self.norm_out = norm(widths[0])
        self.conv_out = zero_init(nn.Conv2d(widths[0], in_channels, 3, padding=1))

    def level(self, noise: Tensor) -> Tensor:
        """The row of the norms' tables for noise levels log σ, shape (B,), int64."""
        return torch.zeros_like(noise, dtype=torch.int64)

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's output for noisy images.

        Args:
            x: Noisy images, shape (B, C, H, W), in the dtype of the weights; H and W are at least 4 · 2^n
                where the resolution is halved n times: 8 by default.
            noise: Noise levels log(σ/α), shape (B,).
            cond: None; here because every network of the project takes it.

        Returns:
            A tensor like x.

        Raises:
            ValueError: If a shape or dtype is wrong, or cond is not None.
        """
        check_inputs(x, noise, "B, C, H, W", self.in_channels)
        read_condition(cond, {}, x)
        smallest = SMALLEST * 2**self.halvings
        if min(x.shape[2:]) < smallest:
            raise ValueError(
                f"height and width of x must be at least {smallest} for a network that halves them "
                f"{self.halvings} times, got {x.shape[2]} x {x.shape[3]}; pad them or use fewer cascades"
            )
        level = self.level(noise)
        h, features = self.conv_in(x), []
        for cascade in self.cascades:
            for block in cascade:
                h = block(h, level)
            features.append(h)
        h = self.refine[-1](features[-1:], level)
        for k in reversed(range(len(features) - 1)):
            h = self.refine[k]([features[k], h], level)
        return self.conv_out(F.elu(self.norm_out(h, level)))


class NCSN(RefineNet):
    """NCSN's noise-conditional RefineNet (Song & Ermon, 2019, Appendix A). Its output is zero at first.

    Raises:
        ValueError: If an argument is out of its range, or the levels are not distinct.
    """

    log_levels: Tensor

    def __init__(
        self,
        in_channels: int,  # channels of the images, in and out
        log_levels: Sequence[float] | Tensor,  # log σ_i of the L noise levels, in any order
        channels: int = 128,  # width of the first cascade
        multipliers: Sequence[int] = (1, 2, 2, 2),  # width of each cascade in units of channels, finest first
        dilations: Sequence[int] = (2, 4),  # of the last cascades; those between halve the resolution
    ) -> None:
        table = torch.as_tensor(log_levels, dtype=torch.get_default_dtype()).detach().clone()
        if table.ndim != 1 or not table.isfinite().all() or len(table.unique()) < max(1, len(table)):
            raise ValueError(
                "log_levels must be one or more distinct finite numbers log σ_i, "
                f"got {table.tolist()} of shape {tuple(table.shape)}"
            )

        def norm(width: int) -> nn.Module:
            return InstanceNormPlus(width, len(table))

        super().__init__(in_channels, channels, multipliers, dilations, norm, norm, max_pool=False)
        self.register_buffer("log_levels", table)

    def level(self, noise: Tensor) -> Tensor:
        """The index of the level that is nearest in log σ, shape (B,), int64."""
        return (noise[:, None] - self.log_levels).abs().argmin(1)


class NCSNv2(RefineNet):
    """NCSNv2's RefineNet, which ignores the noise level (Song & Ermon, 2020). Its output is zero at first.

    The paper's network for images of 96 and 128 pixels has multipliers (1, 2, 2, 4, 4), that for 256 pixels
    (1, 2, 2, 2, 4, 4), with these dilations.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,  # channels of the images, in and out
        channels: int = 128,  # width of the first cascade
        multipliers: Sequence[int] = (1, 2, 2, 2),  # width of each cascade in units of channels, finest first
        dilations: Sequence[int] = (2, 4),  # of the last cascades; those between halve the resolution
    ) -> None:
        norms = (InstanceNormPlus, NoNorm)
        super().__init__(in_channels, channels, multipliers, dilations, *norms, max_pool=True)


def _cascade(
    in_channels: int, out_channels: int, norm: MakeNorm, dilation: int = 1, first: bool = False
) -> nn.ModuleList:
    """Two residual blocks; the first changes the width and, unless dilated, halves the resolution."""
    down = dilation == 1 and not first
    return nn.ModuleList(
        [
            RefineNetResidualBlock(in_channels, out_channels, norm, down, dilation, new_cascade=not first),
            RefineNetResidualBlock(out_channels, out_channels, norm, dilation=dilation),
        ]
    )


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
