"""Between samples of the data and the latents of an autoencoder that a model works on."""

from __future__ import annotations

import torch
from torch import Tensor

from score_diffusion.models import Autoencoder
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.samplers import FixedBatches

BATCH = 32  # samples that the networks work on at a time, the last batch padded: batches decide no value


class LatentSpace:
    """The latent space of an autoencoder.

    Args:
        autoencoder: The autoencoder, in evaluation mode on its device.
        scaling: That of the data which it encodes.
    """

    def __init__(self, autoencoder: Autoencoder, scaling: Scaling) -> None:
        self.autoencoder, self.scaling = autoencoder, scaling
        self._device = next(autoencoder.parameters()).device
        self._encode = FixedBatches(lambda x, t: autoencoder.encode(x), BATCH)
        self._decode = FixedBatches(lambda z, t: autoencoder.decode(z), BATCH)

    def encode(self, x: Tensor) -> Tensor:
        """The latents (B, *code) of model inputs (B, *shape), float32 on the CPU."""
        return self._run(self._encode, x).cpu()

    def decode(self, latents: Tensor) -> Tensor:
        """Samples in the user's units, (B, *shape), of latents as the autoencoder gives them, (B, *code)."""
        return self.scaling.model_to_user(self._run(self._decode, latents))

    @torch.no_grad()
    def _run(self, network: FixedBatches, x: Tensor) -> Tensor:
        x = x.to(self._device, torch.float32)
        return network(x, torch.zeros(len(x), device=self._device))


def to_user(x: Tensor, scaling: Scaling, latent_space: LatentSpace | None) -> Tensor:
    """Samples of a model in the user's units; latents are decoded.

    Args:
        x: Samples of the model, shape (B, *shape).
        scaling: That of the model's data.
        latent_space: The space of latents; None for other data.
    """
    values = scaling.model_to_user(x)
    return values if latent_space is None else latent_space.decode(values)
