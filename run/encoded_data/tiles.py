"""Decoding large latents in overlapping tiles, so that memory does not grow with the image.

    x = Σ_k w_k D(z_k) / Σ_k w_k        z_k the latents in tile k, D the decoder

Next to an edge where another tile goes on, the weight w of a tile is 0 over a quarter of the overlap, rises
linearly over the middle half and is 1 beyond. In several dimensions it is a product.

So the image is continuous, and every pixel a mean of what the tiles decode there. Two things differ from
decoding the whole: a tile does not see what lies outside of it, which decides nothing if the receptive field
of the decoder reaches less than a quarter of the overlap beyond a pixel; and norms and attention are of the
tile. A decoder without these two therefore gives the same image, up to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP = 4
"""Tiles overlap by their side divided by this, or more where that is what fits the image."""


def decode_in_tiles(decode: Callable[[Tensor], Tensor], z: Tensor, tile: int, factor: int) -> Tensor:
    """The images (B, C, *size) of latents (B, D, *size/factor), decoded tile by tile.

    Args:
        decode: The decoder: (B, D, *side) to (B, C, *(factor · side)).
        z: The latents.
        tile: Side of a tile in latent positions, at least `OVERLAP`; smaller latents are decoded whole.
        factor: Pixels per latent position along each side.
    """
    sides = [min(tile, size) for size in z.shape[2:]]
    starts = [_starts(size, side) for size, side in zip(z.shape[2:], sides, strict=True)]
    if all(len(along) == 1 for along in starts):
        return decode(z)
    images = weights = torch.zeros(())
    for corner in itertools.product(*starts):
        weight, place = torch.ones(()), z
        for dim, (start, side, size) in enumerate(zip(corner, sides, z.shape[2:], strict=True), 2):
            place = place.narrow(dim, start, side)
            weight = weight[..., None] * _weight(start, side, size, tile // OVERLAP, factor)
        decoded = decode(place)
        if images.ndim == 0:
            images = decoded.new_zeros(*decoded.shape[:2], *(factor * size for size in z.shape[2:]))
            weights = images.new_zeros(images.shape[2:])
        spans = zip(corner, sides, strict=True)
        at = (..., *(slice(factor * start, factor * (start + side)) for start, side in spans))
        images[at] += weight.to(images) * decoded
        weights[at] += weight.to(images)
    return images / weights


def _starts(size: int, side: int) -> list[int]:
    """Where tiles begin along a side: evenly spaced, the last one at the end."""
    stride = side - side // OVERLAP
    count = 1 + -(-(size - side) // stride)
    return [0] if count == 1 else [round(i * (size - side) / (count - 1)) for i in range(count)]


def _weight(start: int, side: int, size: int, overlap: int, factor: int) -> Tensor:
    """The weight of each pixel of a tile along one side, (factor · side,)."""
    pixel = torch.arange(factor * side) + 0.5
    distance = torch.full_like(pixel, float("inf"))  # from the nearest edge where another tile goes on
    if start > 0:
        distance = pixel
    if start + side < size:
        distance = torch.minimum(distance, factor * side - pixel)
    ramp = factor * overlap / 2
    return ((distance - ramp / 2) / ramp).clamp(0, 1)
