"""Between samples of the data and the latents of an autoencoder that a model works on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from score_diffusion.models import Autoencoder
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.encoded_data.tiles import OVERLAP, decode_in_tiles
from score_diffusion.run.errors import UserError
from score_diffusion.samplers import FixedBatches

BATCH, PIXELS = 32, 2**20
"""Samples that the networks work on at a time, and pixels, if these are fewer samples. The last batch is
padded: batches decide no value."""


class LatentSpace:
    """The latent space of an autoencoder.

    Args:
        autoencoder: The autoencoder, in evaluation mode on its device.
        scaling: That of the data which it encodes.
        tile: Side of the tiles in which latents are decoded, in latent positions; 0 to decode them whole.

    Raises:
        UserError: If the tiles are too small to overlap.
    """

    def __init__(self, autoencoder: Autoencoder, scaling: Scaling, tile: int = 0) -> None:
        if 0 < tile < OVERLAP:
            raise UserError(f"sampling.tile must be 0 for none or at least {OVERLAP}, got {tile}")
        self.autoencoder, self.scaling, self.tile = autoencoder, scaling, tile
        self._device = next(autoencoder.parameters()).device

    def encode(self, x: Tensor) -> Tensor:
        """The latents (B, *code) of model inputs (B, *shape), float32 on the CPU."""
        return self._run(self.autoencoder.encode, x, x.shape[2:]).cpu()

    def decode(self, latents: Tensor) -> Tensor:
        """Samples in the user's units, (B, *shape), of latents as the autoencoder gives them, (B, *code)."""
        decode, factor, sides = self.autoencoder.decode, self.autoencoder.factor, latents.shape[2:]
        if not self.tile:
            images = self._run(decode, latents, [factor * side for side in sides])
        else:
            images = self._run(
                lambda z: decode_in_tiles(decode, z, self.tile, factor),
                latents,
                [factor * min(self.tile, side) for side in sides],
            )
        return self.scaling.model_to_user(images)

    @torch.no_grad()
    def _run(self, network: Callable[[Tensor], Tensor], x: Tensor, at_once: Sequence[int]) -> Tensor:
        """Runs a network in batches of images that have these sides while it works on them."""
        x = x.to(self._device, torch.float32)
        batch = max(1, min(BATCH, PIXELS // math.prod(at_once)))
        return FixedBatches(lambda x, t: network(x), batch)(x, torch.zeros(len(x), device=self._device))


def to_user(x: Tensor, scaling: Scaling, latent_space: LatentSpace | None) -> Tensor:
    """Samples of a model in the user's units; latents are decoded.

    Args:
        x: Samples of the model, shape (B, *shape).
        scaling: That of the model's data.
        latent_space: The space of latents; None for other data.
    """
    values = scaling.model_to_user(x)
    return values if latent_space is None else latent_space.decode(values)
