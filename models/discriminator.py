"""A patch discriminator: it judges each patch of an image, real or decoded, by a number of its own.

    conv 4x4, stride 2 -> leaky ReLU -> [conv 4x4, stride 2 -> norm -> leaky ReLU] -> conv 4x4

Norms are over groups of channels rather than over the batch, so that a judgement does not depend on the other
images, nor training on how a batch is split.

References:
    Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2017),
        https://arxiv.org/abs/1611.07004: Section 3.2.2.
    Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2021),
        https://arxiv.org/abs/2012.09841: Section 3.1.
"""

from __future__ import annotations

from torch import Tensor, nn

from score_diffusion.models.layers import CONVOLUTIONS, group_norm

SLOPE = 0.2  # of the leaky ReLU


class PatchDiscriminator(nn.Module):
    """Judges the patches of images.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,  # channels of the images
        channels: int = 32,  # of the first layer; each further one has twice as many
        layers: int = 2,  # layers that halve the sides
        dims: int = 2,  # dimensions of an image
    ) -> None:
        super().__init__()
        if channels < 1 or layers < 1:
            raise ValueError(f"channels and layers must be at least 1, got {channels} and {layers}")
        conv = CONVOLUTIONS[dims]
        parts: list[nn.Module] = [conv(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        for _ in range(layers - 1):
            parts += [
                conv(channels, 2 * channels, 4, stride=2, padding=1, bias=False),
                group_norm(2 * channels),
                nn.LeakyReLU(SLOPE),
            ]
            channels *= 2
        self.layers = nn.Sequential(*parts, conv(channels, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, *size) to the judgement of each patch (B, 1, *patches), high for real ones."""
        return self.layers(x)
