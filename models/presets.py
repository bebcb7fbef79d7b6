"""The papers' networks, as arguments of `UNet`: `UNet(3, **PRESETS["cifar10_ncsnpp"])`.

    cifar10_ddpm               DDPM as in score SDE: one attention at the end of a decoder level
    cifar10_ddpm_ho            DDPM as in its own paper: attention after each block of the level
    cifar10_ddpmpp[_deep]      DDPM++: BigGAN blocks, rescaled skip connections; deep has twice the blocks
    cifar10_ncsnpp[_deep]      NCSN++ for VP, sub-VP and discrete VE: FIR filters, residual input pyramid
    cifar10_ncsnpp_ve[_deep]   NCSN++ for continuous VE: conditioned on log σ through Fourier features
    adm64                      ADM for ImageNet at 64x64, class-conditional, with a learned variance
    digits, mnist, cifar10     small networks that train on a CPU

The papers' networks are conditioned on a time step or on log σ, which ScoreModel's predictions "vp" and "ve"
pass on (`run/configs/score_sde.py` has the complete experiments). The small networks are conditioned on
log(σ/α), ScoreModel's default.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239.
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: Table 1 and Appendix H; the authors' configurations.
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233:
        Table 11.
"""

from __future__ import annotations

from typing import Any

_CIFAR10_DDPM: dict[str, Any] = dict(
    channels=128,
    multipliers=(1, 2, 2, 2),
    blocks_per_level=2,
    attention_levels=(1,),  # 16x16 pixels
    heads=1,
    dropout=0.1,
    embedding="sinusoidal",
    embedding_scale=1.0,
    modulation="shift",
    resampling="conv_asymmetric",
    decoder_attention="level",
    norm_eps=1e-6,
    initialization="ddpm",
)
_CIFAR10_DDPMPP = _CIFAR10_DDPM | dict(blocks_per_level=4, resampling="biggan", rescale=True)
_CIFAR10_NCSNPP = _CIFAR10_DDPMPP | dict(filter="fir", input_pyramid="residual")
_CIFAR10_NCSNPP_VE = _CIFAR10_NCSNPP | dict(embedding="fourier", embedding_dim=256, embedding_scale=16.0)

_DIGITS: dict[str, Any] = dict(
    channels=32,
    multipliers=(1, 2),
    blocks_per_level=2,
    attention_levels=(1,),
    heads=4,
    dropout=0.0,
    embedding="fourier",
)

PRESETS: dict[str, dict[str, Any]] = {
    "cifar10_ddpm": _CIFAR10_DDPM,
    "cifar10_ddpm_ho": _CIFAR10_DDPM | dict(decoder_attention="block"),
    "cifar10_ddpmpp": _CIFAR10_DDPMPP,
    "cifar10_ddpmpp_deep": _CIFAR10_DDPMPP | dict(blocks_per_level=8),
    "cifar10_ncsnpp": _CIFAR10_NCSNPP,
    "cifar10_ncsnpp_deep": _CIFAR10_NCSNPP | dict(blocks_per_level=8),
    "cifar10_ncsnpp_ve": _CIFAR10_NCSNPP_VE,
    "cifar10_ncsnpp_ve_deep": _CIFAR10_NCSNPP_VE | dict(blocks_per_level=8),
    "adm64": dict(
        channels=192,
        multipliers=(1, 2, 3, 4),
        blocks_per_level=3,
        attention_levels=(1, 2, 3),  # 32x32, 16x16 and 8x8 pixels
        head_channels=64,
        dropout=0.1,
        embedding="sinusoidal_adm",
        embedding_scale=1.0,
        modulation="scale_shift",
        resampling="residual",
        out_channels=6,
        num_classes=1000,
    ),
    "digits": _DIGITS,
    "mnist": _DIGITS | dict(multipliers=(1, 2, 2), blocks_per_level=1, attention_levels=(2,)),
    "cifar10": _DIGITS | dict(channels=64, multipliers=(1, 2, 2)),
}
