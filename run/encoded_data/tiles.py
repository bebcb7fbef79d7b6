"""Decoding large latents in overlapping tiles, so that memory does not grow with the image.

    x = Σ_k w_k D(z_k)        z_k the latents in tile k, D the decoder, Σ_k w_k = 1 at every pixel

At an edge inside the image, the weight w of a tile is 0 over a quarter of the overlap, rises linearly over
the middle half, and is 1 beyond, divided by the sum over the tiles. In several dimensions it is a product.

So the image is continuous, and every pixel a mean of what the tiles decode there. Two things differ from
decoding the whole: a tile does not see what lies outside of it, which decides nothing if the receptive field
of the decoder reaches less than a quarter of the overlap beyond a pixel; and norms and attention are of the
tile. A decoder without these two therefore gives the same image, up to rounding.
"""

from __future__ import annotations

import itertools
import math
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
    along = [_tiles(size, min(tile, size), factor) for size in z.shape[2:]]
    if all(len(tiles) == 1 for tiles in along):
        return decode(z)
    images: Tensor | None = None
    for corner in itertools.product(*along):
        latents, weight, pixels = z, torch.ones(()), [slice(None), slice(None)]
        for dim, (start, of_side) in enumerate(corner, 2):
            latents = latents.narrow(dim, start, len(of_side) // factor)
            weight = weight[..., None] * of_side
            pixels.append(slice(factor * start, factor * start + len(of_side)))
        decoded = decode(latents)
        if images is None:
            images = decoded.new_zeros((*decoded.shape[:2], *(factor * size for size in z.shape[2:])))
        images[tuple(pixels)] += weight.to(decoded) * decoded
    assert images is not None  # there is a tile
    return images


def _tiles(size: int, side: int, factor: int) -> list[tuple[int, Tensor]]:
    """Where tiles begin along a side, evenly spaced, and the weights of their pixels, (factor · side,).

    The weights of all tiles at a pixel sum to one.
    """
    overlap = side // OVERLAP
    count = 1 + math.ceil((size - side) / (side - overlap))
    starts = [round(i * (size - side) / max(1, count - 1)) for i in range(count)]
    pixel, ramp, total = torch.arange(factor * side) + 0.5, factor * overlap / 2, torch.zeros(factor * size)
    weights = []
    for start in starts:
        before = pixel if start > 0 else math.inf * pixel  # the distance from an edge inside the image
        behind = factor * side - pixel if start + side < size else math.inf * pixel
        weights.append(((torch.minimum(before, behind) - ramp / 2) / ramp).clamp(0, 1))
        total[factor * start : factor * (start + side)] += weights[-1]
    return [
        (start, weight / total[factor * start : factor * (start + side)])
        for start, weight in zip(starts, weights, strict=True)
    ]
