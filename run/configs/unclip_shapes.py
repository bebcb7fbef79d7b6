"""unCLIP on coloured shapes of 16x16 pixels: `--mode sample --prompt "a small red square"` or `--variations`.

Encoders of images and captions, a prior that draws the embedding of an image for a text, and a decoder that
draws the image (Ramesh et al., 2022), at a size for two CPU cores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import clip_shapes, text_shapes, vpsde
from score_diffusion.run.constructor_keys import arguments

KIND = "unclip"
ENCODERS = "../towers"


def get_stages() -> dict[str, ConfigDict]:
    return {"towers": clip_shapes.get_config(), "prior": _prior(), "decoder": _decoder()}


def _prior() -> ConfigDict:
    from score_diffusion.models import Prior

    config = vpsde.get_config()
    sizes = {key: declared.default for key, declared in arguments(Prior).items()}
    config.data.update(name="single_shapes", encoder=ENCODERS, embeddings="samples")
    config.model = ConfigDict({"name": "prior", "prediction": "x0", **sizes, "width": 96, "depth": 3})
    with config.ignore_type():  # "auto" gives way to a number
        config.training.preview_samples = 0
    config.training.update(
        conditional=True, weighting="x0", learning_rate=1e-3, batch_size=128, steps=1000, checkpoint_every=500
    )
    return config


def _decoder() -> ConfigDict:
    config = text_shapes.get_config()
    config.data.encoder = ENCODERS
    config.training.update(checkpoint_every=500)
    return config
