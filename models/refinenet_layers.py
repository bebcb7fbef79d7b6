"""The parts of NCSN and NCSNv2: instance norm++, residual and refine blocks.

Instance norm++ (Song & Ermon, 2019, Appendix A): instance norm subtracts the mean μ_k of every feature map,
which loses how the means differ, and colours depend on that. The last term restores it:

    z_k = γ_ik (h_k - μ_k)/s_k + β_ik + α_ik (μ_k - m)/v

Here μ_k and s_k are the mean and the standard deviation of feature map k over its pixels, m and v those of
μ_1 .. μ_C. The conditional norm has one row of γ, β and α per noise level i, the unconditional norm a single
row.

A refine block (Lin et al., 2017) has three kinds of parts:

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
    """Instance norm++, the formula above; conditional if there is more than one noise level.

    As in the authors' networks, s_k divides by the number of pixels and v by C - 1.

    Args:
        channels: Number of feature maps C, at least 2.
        levels: Number L of noise levels; 1 for the unconditional norm.

    Raises:
        ValueError: If there are fewer than two channels or no level.
    """

    eps = 1e-5  # added to both variances

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
        """Features (B, C, H, W), with the row of each sample in the tables, int64 (B,), to the same shape."""
        var, mean = torch.var_mean(h, (2, 3), correction=0)  # (B, C)
        var_of_means, mean_of_means = torch.var_mean(mean, 1, keepdim=True)  # (B, 1)
        contrast = (mean - mean_of_means) * (var_of_means + self.eps).rsqrt()
        scale = self.gamma[level] * (var + self.eps).rsqrt()
        shift = self.beta[level] + self.alpha[level] * contrast - scale * mean
        return torch.addcmul(shift[..., None, None], scale[..., None, None], h)


class NoNorm(nn.Module):
    """The identity, for the refine blocks of NCSNv2, which have no norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        """Features (B, C, H, W), unchanged."""
        return h


MakeNorm = Callable[[int], nn.Module]  # channels -> a module called with the features and their levels


def mean_pool(h: Tensor) -> Tensor:
    """The means of 2x2 blocks of pixels; the last blocks of an odd side have fewer pixels."""
    return F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False)


class RefineNetResidualBlock(nn.Module):
    """A pre-activation residual block, shortcut(h) + conv2(elu(norm2(conv1(elu(norm1(h)))))).

    Dilated convolutions have the receptive field of a lower resolution at the full resolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        norm: Makes a norm.
        down: Whether to halve the resolution by mean pooling after the convolutions.
        dilation: Dilation of the 3x3 convolutions.
        new_cascade: Whether the shortcut is a convolution: 1x1, or 3x3 if the block is dilated.
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

        # In the authors' networks the second convolution of a cascade's first block changes the width.
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
        """Features (B, in_channels, H, W) to (B, out_channels, H, W), or with H and W halved, rounded up."""
        out = self.conv1(F.elu(self.norm1(h, level)))
        out = self.conv2(F.elu(self.norm2(out, level)))
        out = out + self.shortcut(h)
        return mean_pool(out) if self.down else out


class ResidualConvUnits(nn.Module):
    """RCU: h <- h + conv(elu(norm(conv(elu(norm(h)))))), repeated `units` times."""

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
    """CRP: the features plus two stages of pooled context.

    Args:
        channels: Channels of the features.
        norm: Makes the norm before each pooling.
        max_pool: Whether to take the maximum (RefineNet, NCSNv2) or the mean (NCSN) of 5x5 pixels.
    """

    stages = 2

    def __init__(self, channels: int, norm: MakeNorm, max_pool: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for _ in range(self.stages))
        self.pool: nn.Module = nn.MaxPool2d(5, 1, 2) if max_pool else nn.AvgPool2d(5, 1, 2)
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
    """MSF: the sum of features of several resolutions, convolved to one width and upsampled to one size."""

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
        in_channels: Channels of each input, highest resolution first.
        out_channels: Channels of the output.
        norm: Makes a norm.
        max_pool: Whether CRP uses max pooling.
        last: Whether this is the last refine block of the network, which ends in three RCUs instead of one.
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
        # A single input needs no fusion, only a change of its width.
        fuses = tuple(in_channels) != (out_channels,)
        self.fuse = MultiResolutionFusion(in_channels, out_channels, norm) if fuses else None
        self.pool = ChainedResidualPooling(out_channels, norm, max_pool)
        self.out = ResidualConvUnits(out_channels, 3 if last else 1, norm)

    def forward(self, features: Sequence[Tensor], level: Tensor) -> Tensor:
        """Features (B, C_j, H_j, W_j) to (B, out_channels, H_0, W_0)."""
        adapted = [adapt(h, level) for adapt, h in zip(self.adapt, features, strict=True)]
        h = adapted[0] if self.fuse is None else self.fuse(adapted, level)
        return self.out(self.pool(h, level), level)
