"""From a configuration to the pictures that are drawn during a training."""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from score_diffusion.run.builders.encoders import AUTOENCODING
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.low_resolution import LOW_RESOLUTION, Augmentation, small_copies
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.distributed import processes
from score_diffusion.run.encoded_data.latent_space import LatentSpace
from score_diffusion.run.key_types import AUTO
from score_diffusion.run.machine import refuse_beyond_memory
from score_diffusion.run.training.previews import Preview, ReconstructionPreview
from score_diffusion.samplers import make_sampler
from score_diffusion.sde_lib import SDE

PREVIEW_SAMPLER, PREVIEW_NFE = "eabm", 15
PREVIEW_IMAGES, PREVIEW_POINTS = 64, 1000  # at most, where training.preview_samples is auto


def build_preview(
    config: ConfigDict, dataset: Dataset, sde: SDE, latent_space: LatentSpace | None = None
) -> Preview | ReconstructionPreview:
    """The preview of a training. Images are drawn in batches of the training's size, which fit the memory.

    Args:
        config: The configuration.
        dataset: The data.
        sde: The SDE.
        latent_space: The space of samples that are latents; None for others.
    """
    section = config.training
    own_batch = section.batch_size // (processes.world_size() * section.accumulate)
    points = len(dataset.shape) == 1  # cheap ones, of which a picture needs many
    default = PREVIEW_POINTS if points else min(PREVIEW_IMAGES, section.batch_size)
    count = default if section.preview_samples == AUTO else section.preview_samples
    needed = 2 * 4 * count * math.prod(dataset.shape)
    refuse_beyond_memory(needed, f"a preview of {count:,} samples", "lower training.preview_samples")
    if section.objective == AUTOENCODING:
        return ReconstructionPreview(dataset.held_out[:count], dataset.scaling, own_batch)
    sampler = make_sampler(PREVIEW_SAMPLER, sde, PREVIEW_NFE, denoise=True)
    return Preview(
        sampler,
        dataset.shape,
        dataset.scaling,
        count,
        max(count, 1) if points else own_batch,
        _preview_conditions(config, dataset, max(count, 1)),
        latent_space,
    )


def _preview_conditions(config: ConfigDict, dataset: Dataset, count: int) -> SampleConditions:
    """All classes in turn; a user's own conditions and small images are those of held-out samples."""
    if not config.training.conditional:
        return SampleConditions()
    factor = config.model.upscale
    if factor:
        small = small_copies(dataset.held_out, factor, dataset.scaling, count)
        rows = {**dataset.held_out_conditions, LOW_RESOLUTION: small}
        level = min(config.sampling.augment_noise, config.training.augment_noise)
        augmentation = Augmentation(level, config.sampling.seed)
        return SampleConditions(rows, dataset.classes, dataset.vocabulary, augmentation)
    if dataset.conditions.keys() == {"label"}:
        return SampleConditions.of_classes(range(dataset.condition_sizes["label"]), dataset.classes)
    return SampleConditions(dataset.held_out_conditions, dataset.classes, dataset.vocabulary)
