"""From the latents that a model draws to samples of the data that an autoencoder has encoded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from score_diffusion.run.data.scaling import Scaling
from score_diffusion.samplers import FixedBatches

BATCH = 32  # latents that are decoded at a time, the last batch padded: batches decide no value


class Decoder:
    """Decodes latents.

    Args:
        decode: The decoder of an autoencoder: latents (B, *code) to model inputs (B, *shape).
        scaling: That of the data which the autoencoder has encoded.
        device: Where the decoder is.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], scaling: Scaling, device: torch.device) -> None:
        self._decode = FixedBatches(lambda z, t: decode(z), BATCH)
        self.scaling, self._device = scaling, device

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Samples in the user's units, (B, *shape), of latents as the autoencoder gives them, (B, *code)."""
        z = latents.to(self._device, torch.float32)
        return self.scaling.model_to_user(self._decode(z, torch.zeros(len(z), device=z.device)))


def to_user(x: Tensor, scaling: Scaling, decoder: Decoder | None) -> Tensor:
    """Samples of a model in the user's units; latents are decoded.

    Args:
        x: Samples of the model, shape (B, *shape).
        scaling: That of the model's data.
        decoder: Decodes latents; None for other data.
    """
    values = scaling.model_to_user(x)
    return values if decoder is None else decoder(values)
