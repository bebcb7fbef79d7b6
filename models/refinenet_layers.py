"""The parts of NCSN's and NCSNv2's networks: instance norm++, residual and refine blocks.

Instance norm++ (Song & Ermon, 2019, Appendix A). Instance norm subtracts from every feature map its mean μ_k
and so forgets how the means differ, which colours need; the last term puts that back:

    z_k = γ_ik (h_k - μ_k)/s_k + β_ik + α_ik (μ_k - m)/v

with μ_k, s_k the mean and the standard deviation of feature map k over its pixels, and m, v those of
μ_1 .. μ_C. It is conditional where γ, β and α have a row for every noise level i, and unconditional where
they have one.

RefineNet (Lin et al., 2017) puts three parts into a refine block:

    RCU   residual convolution units     h <- h + conv(elu(conv(elu(h))))
    MSF   multi-resolution fusion        Σ_j upsample(conv(h_j))
    CRP   chained residual pooling       p_0 = h_0 = elu(h),  p_j = conv(pool(p_{j-1})),  out = h_0 + Σ_j p_j

References:
    Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019),
        https://arxiv.org/abs/1907.05600: Appendix A.
    Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020),
        https://arxiv.org/abs/2006.09011: Appendix B.
    RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation (Lin et al., 2017),
        https://arxiv.org/abs/1611.06612.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InstanceNormPlus(nn.Module):
    """Instance norm++, conditional on the noise level where there is more than one (the formula above).

    The first of the two standard deviations is the population's and v the sample's (with C - 1), as in the
    authors' networks.

    Args:
        channels: Number of feature maps C, at least 2.
        levels: Number L of noise levels, 1 for the unconditional norm.

    Raises:
        ValueError: If there are fewer than two channels or no level.
    """

    eps = 1e-5  # below it a feature map counts as constant

    def __init__(self, channels: int, levels: int = 1) -> None:
        super().__init__()
        if channels < 2 or levels < 1:
            raise ValueError(
                "instance norm++ needs at least 2 channels and 1 level, "
                f"got channels={channels} and levels={levels}"
            )
        self.gamma = nn.Parameter(1 + 0.02 * torch.randn(levels, channels))
        self.alpha = nn.Parameter(1 + 0.02 * torch.randn(levels, channels))
        self.beta = nn.Parameter(torch.zeros(levels, channels))

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        """Features (B, C, H, W) and their rows of the tables, (B,) int64, to the same shape."""
        var, mean = torch.var_mean(h, (2, 3), correction=0)  # (B, C)
        var_of_means, mean_of_means = torch.var_mean(mean, 1, keepdim=True)  # (B, 1)
        contrast = (mean - mean_of_means) * (var_of_means + self.eps).rsqrt()
        scale = self.gamma[level] * (var + self.eps).rsqrt()
        shift = self.beta[level] + self.alpha[level] * contrast - scale * mean
        return torch.addcmul(shift[..., None, None], scale[..., None, None], h)


class NoNorm(nn.Module):
    """What stands in a norm's place in NCSNv2's refine blocks: nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        """The features as they are."""
        return h


MakeNorm = Callable[[int], nn.Module]  # channels -> a module that is called with features and their levels


def mean_pool(h: Tensor) -> Tensor:
    """The means of 2x2 blocks of pixels; at the end of an odd side, of the pixels that there are."""
    return F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False)


class RefineNetResidualBlock(nn.Module):
    """A pre-activation residual block, shortcut(h) + conv2(elu(norm2(conv1(elu(norm1(h)))))).

    Dilated convolutions see as far as they would at a lower resolution, without the loss of it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        norm: Makes a norm.
        down: Whether to halve the resolution, by the mean of 2x2 pixels behind the convolutions.
        dilation: Dilation of the 3x3 convolutions.
        new_cascade: Whether the shortcut is a convolution: 1x1 in front of mean pooling, 3x3 where dilated.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: MakeNorm,
        down: bool = False,
        dilation: int = 1,
        new_cascade: bool = False,
    ) -> None:
        super().__init__()

        def conv(width_in: int, width_out: int) -> nn.Conv2d:
            return nn.Conv2d(width_in, width_out, 3, padding=dilation, dilation=dilation)

        # The authors' first block of a cascade widens with its second convolution.
        middle = in_channels if new_cascade else out_channels
        self.down = down
        self.norm1 = norm(in_channels)
        self.conv1 = conv(in_channels, middle)
        self.norm2 = norm(middle)
        self.conv2 = conv(middle, out_channels)
        if not new_cascade and in_channels == out_channels:
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = (
                conv(in_channels, out_channels) if dilation > 1 else nn.Conv2d(in_channels, out_channels, 1)
            )

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        """Features (B, in_channels, H, W) to (B, out_channels, H, W), or half of H and W, rounded up."""
        out = self.conv1(F.elu(self.norm1(h, level)))
        out = self.conv2(F.elu(self.norm2(out, level)))
        out = out + self.shortcut(h)
        return mean_pool(out) if self.down else out


class ResidualConvUnits(nn.Module):
    """`units` times h + conv(elu(norm(conv(elu(norm(h)))))): RCU."""

    def __init__(self, channels: int, units: int, norm: MakeNorm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for _ in range(2 * units))
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2 * units)
        )

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        """Features (B, C, H, W) to the same shape."""
        for i in range(0, len(self.convs), 2):
            out = self.convs[i](F.elu(self.norms[i](h, level)))
            h = h + self.convs[i + 1](F.elu(self.norms[i + 1](out, level)))
        return h


class ChainedResidualPooling(nn.Module):
    """The sum of features and of twice-pooled background context: CRP.

    Args:
        channels: Channels of the features.
        norm: Makes a norm, which stands in front of each pooling.
        max_pool: Whether to pool 5x5 pixels by their maximum (RefineNet, NCSNv2) or their mean (NCSN).
    """

    stages = 2

    def __init__(self, channels: int, norm: MakeNorm, max_pool: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for _ in range(self.stages))
        self.pool = nn.MaxPool2d(5, 1, 2) if max_pool else nn.AvgPool2d(5, 1, 2)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(self.stages)
        )

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        """Features (B, C, H, W) to the same shape."""
        path = out = F.elu(h)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            path = conv(self.pool(norm(path, level)))
            out = out + path
        return out


class MultiResolutionFusion(nn.Module):
    """The sum of features of several resolutions, convolved to one width and upsampled to one size: MSF."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, norm: MakeNorm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(width) for width in in_channels)
        self.convs = nn.ModuleList(nn.Conv2d(width, out_channels, 3, padding=1) for width in in_channels)

    def forward(self, features: Sequence[Tensor], level: Tensor) -> Tensor:
        """Features (B, C_j, H_j, W_j), the first of the largest size, to (B, out_channels, H_0, W_0)."""
        size = features[0].shape[2:]
        paths = []
        for h, norm, conv in zip(features, self.norms, self.convs, strict=True):
            h = conv(norm(h, level))
            same = h.shape[2:] == size
            paths.append(h if same else F.interpolate(h, size=size, mode="bilinear", align_corners=True))
        return torch.stack(paths).sum(0)


class RefineBlock(nn.Module):
    """RCU for each input, MSF of the results, CRP, and RCU again (Lin et al., 2017, Figure 3).

    Args:
        in_channels: Channels of each input, that of the highest resolution first.
        out_channels: Channels of the output.
        norm: Makes a norm.
        max_pool: Kind of pooling in CRP.
        last: Whether this is the network's last refine block, which ends in three RCUs instead of one.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        norm: MakeNorm,
        max_pool: bool,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(ResidualConvUnits(width, 2, norm) for width in in_channels)
        # The lowest refine block, with one input, has nothing to fuse: MSF is there to change its width only.
        needed = tuple(in_channels) != (out_channels,)
        self.fuse = MultiResolutionFusion(in_channels, out_channels, norm) if needed else None
        self.pool = ChainedResidualPooling(out_channels, norm, max_pool)
        self.out = ResidualConvUnits(out_channels, 3 if last else 1, norm)

    def forward(self, features: Sequence[Tensor], level: Tensor) -> Tensor:
        """Features (B, C_j, H_j, W_j) to (B, out_channels, H_0, W_0)."""
        adapted = [adapt(h, level) for adapt, h in zip(self.adapt, features, strict=True)]
        h = adapted[0] if self.fuse is None else self.fuse(adapted, level)
        return self.out(self.pool(h, level), level)
