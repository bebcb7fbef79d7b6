"""The networks of released checkpoints have their published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from score_diffusion.models import UNet
from score_diffusion.run.build import assemble_model, build_sde
from score_diffusion.run.config import load_config
from score_diffusion.run.configs.released import EXPERIMENTS

# Millions of parameters: Dhariwal & Nichol (2021), Table 11; improved-diffusion's README; Ho et al. (2020),
# Appendix B, whose network for 256x256 pixels iddpm_lsun is.
PUBLISHED = {
    "adm_128": 422, "adm_256": 554, "adm_512": 559, "adm_lsun": 552, "iddpm_imagenet_64_classes": 270,
    "iddpm_imagenet_64": 120, "iddpm_lsun": 114,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_sizes(name: str) -> None:
    """Two weights in each channel of a norm that the noise scales and shifts are folded into the noise's."""
    config = load_config(f"released:{name}")
    sde, side = build_sde(config.sde), config.data.image_size
    with torch.device("meta"):
        net = assemble_model(config.model, sde, (3, side, side)).net
        assert isinstance(net, UNet)
        norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
        count = sum(p.numel() for p in net.parameters())
    count += 2 * sum(norm.num_channels for norm in norms if not norm.affine)
    if name in PUBLISHED:
        assert count / 1e6 == pytest.approx(PUBLISHED[name], rel=0.012)
    attended = [side >> level for level in config.model.attention_levels]
    assert set(attended) <= {32, 16, 8} and 16 in attended
    assert side % 2 ** (len(config.model.multipliers) - 1) == 0
    if name.startswith("ncsnpp"):
        assert (sde.N, sde.sigma_min) == (2000, 0.02) and config.model.prediction == "ve"
