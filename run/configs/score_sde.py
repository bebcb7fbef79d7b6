"""The CIFAR-10 experiments of score SDE (Song et al., 2021), and the configurations of its checkpoints:
`--config score_sde:vp_ddpmpp_continuous`.

The names are those of score_sde_pytorch's configurations. Data are bare pixel values in [-1, 1]; there, VE's
are in [0, 1], so that its σ are twice theirs here. The networks' noise input is theirs: the position on the
chain, or log σ.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from score_diffusion.run.configs import base

_VE, _VE_CHAIN = dict(prediction="ve"), dict(prediction="ve", noise_input="reversed_step")
_VP = dict(prediction="vp")
_SUBVP = dict(prediction="vp", scale_input=False)  # sees x_t itself, whose variance is not 1 there
_SDES = {
    "ve": dict(name="vesde", sigma_min=0.02, sigma_max=100.0, N=1000),
    "vp": dict(name="vpsde", beta_min=0.1, beta_max=20.0, N=1000),
    "vp_chain": dict(name="ddpm", betas="linear", N=1000),
    "subvp": dict(name="subvpsde", beta_min=0.1, beta_max=20.0, N=1000),
}

# Name: the SDE, the network, its prediction and inputs, and whether it is trained on the chain only.
EXPERIMENTS: dict[str, tuple[str, str, dict[str, Any], bool]] = {
    "ve_ddpm": ("ve", "cifar10_ddpm", _VE_CHAIN, True),
    "ve_ncsnpp": ("ve", "cifar10_ncsnpp", _VE_CHAIN, True),
    "ve_ncsnpp_continuous": ("ve", "cifar10_ncsnpp_ve", _VE, False),
    "ve_ncsnpp_deep_continuous": ("ve", "cifar10_ncsnpp_ve_deep", _VE, False),
    "vp_ddpm": ("vp_chain", "cifar10_ddpm", _VP, True),
    "vp_ddpm_continuous": ("vp", "cifar10_ddpm", _VP, False),
    "vp_ddpmpp": ("vp_chain", "cifar10_ddpmpp", _VP, True),
    "vp_ddpmpp_continuous": ("vp", "cifar10_ddpmpp", _VP, False),
    "vp_ddpmpp_deep_continuous": ("vp", "cifar10_ddpmpp_deep", _VP, False),
    "vp_ncsnpp": ("vp_chain", "cifar10_ncsnpp", _VP, True),
    "vp_ncsnpp_continuous": ("vp", "cifar10_ncsnpp", _VP, False),
    "vp_ncsnpp_deep_continuous": ("vp", "cifar10_ncsnpp_deep", _VP, False),
    "subvp_ddpm_continuous": ("subvp", "cifar10_ddpm", _SUBVP, False),
    "subvp_ddpmpp_continuous": ("subvp", "cifar10_ddpmpp", _SUBVP, False),
    "subvp_ddpmpp_deep_continuous": ("subvp", "cifar10_ddpmpp_deep", _SUBVP, False),
    "subvp_ncsnpp_continuous": ("subvp", "cifar10_ncsnpp", _SUBVP, False),
    "subvp_ncsnpp_deep_continuous": ("subvp", "cifar10_ncsnpp_deep", _SUBVP, False),
}


def get_config(name: str) -> ConfigDict:
    """The configuration of an experiment by its name."""
    from score_diffusion.models import PRESETS

    sde, network, score, chain = EXPERIMENTS[name]
    variance_exploding = sde == "ve"
    config = base.get_config()
    config.data.update(dequantize=False, flip=True)
    config.sde = ConfigDict(_SDES[sde])
    config.model.update(**score, **PRESETS[network])
    config.training.update(
        steps=950_000 if "deep" in name else 1_300_000,
        batch_size=128,
        learning_rate=2e-4,
        warmup_steps=5000,
        schedule="constant",
        ema_decay=0.999 if variance_exploding else 0.9999,
        times="discrete" if chain else "continuous",
        log_every=100,
        sample_every=10_000,
        checkpoint_every=10_000,
    )
    if variance_exploding:
        config.sampling.update(sampler="pc", steps=1000)
    else:
        config.sampling.update(sampler="euler_maruyama", steps=1000)
    config.likelihood.num_images = 10_000
    return config
