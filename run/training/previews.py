"""Pictures during training: of samples, or of what an autoencoder makes of held-out images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from score_diffusion.run import plots
from score_diffusion.run.console import progress_bar
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.distributed import processes
from score_diffusion.run.encoded_data.latent_space import LatentSpace, to_user
from score_diffusion.samplers import Sampler

REAL_PICTURE = "samples/held_out.png"
"""Held-out data in the run directory, to compare samples with."""


@dataclass(frozen=True)
class Preview:
    """Draws samples from the same noise each time, and saves a picture of them."""

    sampler: Sampler
    shape: tuple[int, ...]
    """Of one sample."""
    scaling: Scaling
    """From the units of the model to the user's."""
    count: int
    """Number of samples; 0 for no pictures."""
    batch_size: int
    """Samples that the network evaluates at a time."""
    conditions: SampleConditions = SampleConditions()
    """What the samples are conditioned on."""
    latent_space: LatentSpace | None = None
    """The space of samples that are latents; None for others."""

    def save(self, path: Path, model: nn.Module, device: torch.device, poll: Callable[[], None]) -> None:
        """Draws the samples and saves their picture.

        All ranks draw all samples, since sharded weights need every rank, and rank 0 saves them.

        Args:
            path: The picture.
            model: The score model.
            device: Where it is.
            poll: Called after every step of the sampler; what it raises ends the drawing.

        Raises:
            ValueError: If the samples are not finite.
        """
        parts = []
        starts = range(0, self.count, self.batch_size)
        with progress_bar(None, "preview", "step", delay=1, leave=False) as bar:

            def on_step(i: int, n: int) -> None:
                bar.total = n * len(starts)
                bar.update()
                poll()

            for first in starts:
                size = min(self.batch_size, self.count - first)
                cond = self.conditions.of(range(first, first + size), device)
                shape = (size, *self.shape)
                result = self.sampler(model, shape, cond=cond, first=first, device=device, on_step=on_step)
                parts.append(result.samples)
        if processes.is_rank_0():
            values = to_user(torch.cat(parts), self.scaling, self.latent_space).cpu().numpy()
            names, given = self.conditions.names(self.count), self.conditions.images(self.count)
            shown = self.scaling if self.latent_space is None else self.latent_space.scaling
            plots.save_samples(path, values, shown.limits, names, given)


@dataclass(frozen=True)
class ReconstructionPreview:
    """Saves a picture of held-out images, each with its reconstruction to the right of it."""

    stored: Tensor
    """The images as they are stored, shape (n, *shape)."""
    scaling: Scaling
    """From stored images to inputs of the autoencoder, and from there to the user's units."""
    batch_size: int
    """Images that the network works on at a time."""
    latent_space: None = None
    """Images are no latents."""

    @property
    def count(self) -> int:
        """Number of images; 0 for no pictures."""
        return len(self.stored)

    @torch.no_grad()
    def save(self, path: Path, model: nn.Module, device: torch.device, poll: Callable[[], None]) -> None:
        """Reconstructs the images and saves their picture.

        Args:
            path: The picture.
            model: The autoencoder.
            device: Where it is.
            poll: Called after every batch; what it raises ends the drawing.
        """
        parts = []
        for stored in self.stored.split(self.batch_size):
            parts.append(model(self.scaling.stored_to_model(stored).to(device)).images.float())
            poll()
        if processes.is_rank_0():
            decoded = self.scaling.model_to_user(torch.cat(parts)).cpu()
            pairs = torch.cat([self.scaling.stored_to_user(self.stored), decoded], dim=-1).numpy()
            plots.save_samples(path, pairs, self.scaling.limits)


def save_real(
    workdir: Path, dataset: Dataset, preview: Preview | ReconstructionPreview, conditional: bool
) -> None:
    """Saves a picture of the first held-out samples, as many as a preview has; latents are decoded.

    Args:
        workdir: The run directory.
        dataset: The data.
        preview: The preview of the training.
        conditional: Whether classes or texts are shown.
    """
    if not preview.count:
        return
    x, space = dataset.scaling.stored_to_model(dataset.held_out[: preview.count]), preview.latent_space
    values = to_user(x, dataset.scaling, space).cpu().numpy()
    rows = dataset.held_out_conditions if conditional else {}
    conditions = SampleConditions(rows, dataset.classes, dataset.vocabulary)
    names, given = conditions.names(len(values)), conditions.images(len(values))
    limits = (dataset.scaling if space is None else space.scaling).limits
    plots.save_samples(workdir / REAL_PICTURE, values, limits, names, given)
