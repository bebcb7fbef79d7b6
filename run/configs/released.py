"""The networks of released checkpoints, for --mode convert: `--config released:adm_256`.

    score_sde_pytorch    ncsnpp_bedroom_256, ncsnpp_church_256, ncsnpp_celebahq_256, ncsnpp_ffhq_256,
                         ncsnpp_1024 (CelebA-HQ and FFHQ), ddpm_256 (bedroom, church, CelebA-HQ)
    guided_diffusion     adm_128, adm_256, adm_256_unconditional, adm_512, adm_lsun (all in the legacy order)
    improved_diffusion   iddpm_cifar10, iddpm_imagenet_64; and, without rescaled timesteps,
                         iddpm_imagenet_64_classes, iddpm_lsun (--from guided_diffusion_legacy)

score_sde.py has the CIFAR-10 experiments of score_sde_pytorch, adm64.py guided-diffusion's 64x64 network.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: Appendix H, and the authors' configurations.
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233:
        Table 11, and the authors' README.
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021),
        https://arxiv.org/abs/2102.09672: the authors' README.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from score_diffusion.run.configs import adm64, score_sde

_PYRAMIDS: dict[str, Any] = dict(
    blocks_per_level=2, dropout=0.0, input_pyramid="skip", output_pyramid="skip", combine="sum"
)
_NCSNPP_256 = _PYRAMIDS | dict(multipliers=(1, 1, 2, 2, 2, 2, 2), attention_levels=(4,))  # 16x16 pixels
_NCSNPP_1024 = _PYRAMIDS | dict(
    channels=16, multipliers=(1, 2, 4, 8, 16, 32, 32, 32), blocks_per_level=1, attention_levels=(6,),
    embedding_dim=32,
)  # fmt: skip
_DDPM_256: dict[str, Any] = dict(multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4,), dropout=0.0)

_ADM: dict[str, Any] = dict(channels=256, blocks_per_level=2, dropout=0.0)
_ADM_256 = _ADM | dict(multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(3, 4, 5))  # 32, 16 and 8 pixels
_IDDPM: dict[str, Any] = dict(
    channels=128, resampling="conv", heads=4, head_channels=None, num_classes=0, dropout=0.0
)
_IDDPM_64 = _IDDPM | dict(multipliers=(1, 2, 3, 4), attention_levels=(2, 3))  # 16 and 8 pixels

# Name: what it is based on, the size of the images, arguments of the network and of the SDE.
EXPERIMENTS: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {
    "ncsnpp_bedroom_256": ("ve", 256, _NCSNPP_256, dict(sigma_max=756.0, N=2000)),
    "ncsnpp_church_256": ("ve", 256, _NCSNPP_256, dict(sigma_max=760.0, N=2000)),
    "ncsnpp_celebahq_256": ("ve", 256, _NCSNPP_256, dict(sigma_max=696.0, N=2000)),
    "ncsnpp_ffhq_256": ("ve", 256, _NCSNPP_256, dict(sigma_max=696.0, N=2000)),
    "ncsnpp_1024": ("ve", 1024, _NCSNPP_1024, dict(sigma_max=2696.0, N=2000)),
    "ddpm_256": ("ddpm", 256, _DDPM_256, {}),
    "adm_128": (
        "adm",
        128,
        _ADM | dict(multipliers=(1, 1, 2, 3, 4), attention_levels=(2, 3, 4), heads=4, head_channels=None),
        dict(betas="linear"),
    ),
    "adm_256": ("adm", 256, _ADM_256, dict(betas="linear")),
    "adm_256_unconditional": ("adm", 256, _ADM_256 | dict(num_classes=0), dict(betas="linear")),
    "adm_512": (
        "adm",
        512,
        _ADM  # the finest level is half as wide as the network, whose embedding keeps its size
        | dict(
            channels=128, multipliers=(1, 2, 2, 4, 4, 8, 8), attention_levels=(4, 5, 6), embedding_dim=256,
            embedding_width=1024,
        ),
        dict(betas="linear"),
    ),
    "adm_lsun": ("adm", 256, _ADM_256 | dict(num_classes=0, dropout=0.1), dict(betas="linear")),
    "iddpm_cifar10": (
        "adm",
        32,
        _IDDPM | dict(multipliers=(1, 2, 2, 2), attention_levels=(1, 2), dropout=0.3),
        dict(N=4000),
    ),
    "iddpm_imagenet_64": ("adm", 64, _IDDPM_64, dict(N=4000)),
    "iddpm_imagenet_64_classes": ("adm", 64, _IDDPM_64 | dict(channels=192, num_classes=1000), dict(N=4000)),
    "iddpm_lsun": (
        "adm",
        256,
        _IDDPM
        | dict(
            multipliers=(1, 1, 2, 2, 4, 4), blocks_per_level=2, attention_levels=(4,), heads=1,
            modulation="shift",
        ),
        dict(betas="linear"),
    ),
}  # fmt: skip


def get_config(name: str) -> ConfigDict:
    """The configuration of a released checkpoint by its name."""
    base, size, network, sde = EXPERIMENTS[name]
    if base == "adm":
        config = adm64.get_config()
    else:
        config = score_sde.get_config("ve_ncsnpp_continuous" if base == "ve" else "vp_ddpm")
        config.training.update(steps=2_400_000, batch_size=64 if size == 256 else 8)
    config.data.image_size = size
    config.model.update(**network)
    config.sde.update(**sde)
    return config
