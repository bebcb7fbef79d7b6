"""A small GLIDE, coloured shapes by text that are enlarged by four: `--mode sample --prompt TEXT`.

A model of 16x16 pixels conditioned on captions, and one that enlarges what it drew to 64x64, conditioned on
it and on the caption (Nichol et al., 2022: 64x64 to 256x256). Guidance is classifier-free;
`--config.base.sampling.guidance=clip` takes that of contrastive encoders. The stage `base` inpaints by text,
`--mode restore --workdir SYSTEM/base --prompt TEXT`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import cascade_shapes

KIND = "cascade"


def get_stages() -> dict[str, ConfigDict]:
    base, x64 = cascade_shapes.stage(shrink=4), cascade_shapes.stage(upscale=4)
    x64.model.update(channels=8, multipliers=(1, 2, 4, 6), attention_levels=(3,))
    x64.training.update(batch_size=16, steps=4000)
    return {"base": base, "x64": x64}
