"""A small residual network of an image for variational dequantization: `net(x, noise) -> (B, 2 C, *size)`.

For each element it returns the shift and the logarithm of the scale of the noise in its bin, both 0 at
initialization: uniform noise (see `sde_lib/dequantization.py`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models.conditions import Condition, read_condition
from score_diffusion.models.layers import CONVOLUTIONS, LAYOUTS, check_inputs, zero_init


class Dequantizer(nn.Module):
    """Residual 3x3 convolutions at the resolution of the images.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,  # channels of the images
        channels: int = 32,  # width
        depth: int = 3,  # residual convolutions
        dims: int = 2,  # dimensions of an image
    ) -> None:
        super().__init__()
        if min(in_channels, channels, depth) < 1:
            raise ValueError(
                "in_channels, channels and depth must be at least 1, got "
                f"{in_channels}, {channels} and {depth}"
            )
        self.in_channels, self.dims = in_channels, dims
        self.condition_sizes: dict[str, int] = {}
        conv = CONVOLUTIONS[dims]
        self.conv_in = conv(in_channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(conv(channels, channels, 3, padding=1) for _ in range(depth))
        self.conv_out = zero_init(conv(channels, 2 * in_channels, 3, padding=1))

    def forward(self, x: Tensor, noise: Tensor, cond: Condition | None = None) -> Tensor:
        """Shifts, and then logarithms of scales, shape (B, 2 C, *size).

        Args:
            x: Images at their grey levels, shape (B, C, *size).
            noise: Not used, shape (B,); what every network of images is called with.
            cond: None, it takes no condition.

        Raises:
            ValueError: If a shape or dtype is wrong, or there is a condition.
        """
        check_inputs(x, noise, LAYOUTS[self.dims], self.in_channels)
        read_condition(cond, self.condition_sizes, x)
        h = self.conv_in(x)
        for block in self.blocks:
            h = h + block(F.silu(h))
        return self.conv_out(F.silu(h))
