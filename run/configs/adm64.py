"""ADM at 64x64 pixels with classes (Dhariwal & Nichol, 2021): for the authors' checkpoint, and a starting
point for images of your own.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import improved_ddpm


def get_config() -> ConfigDict:
    from score_diffusion.models import PRESETS

    config = improved_ddpm.get_config()
    config.data.update(flip=True, image_size=64)
    config.model.update(prediction="iddpm", norm_groups=32, **PRESETS["adm64"])
    config.training.update(
        steps=540_000,
        batch_size=2048,
        learning_rate=3e-4,
        warmup_steps=0,
        schedule="constant",
        ema_decay=0.9999,
        sample_every=10_000,
        checkpoint_every=10_000,
    )
    config.sampling.update(steps=250)
    return config
