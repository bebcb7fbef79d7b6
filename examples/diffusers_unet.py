"""A network of Hugging Face diffusers, trained and sampled by this library.

    python examples/diffusers_unet.py --steps 2000        # needs the package diffusers

Its networks take the number of DDPM's step, `noise_input="step"`, and images whose sides can be halved.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from diffusers import UNet2DModel
from sklearn.datasets import load_digits

from score_diffusion import Trainer
from score_diffusion.sde_lib import DDPM, ScoreModel, linear_betas


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--nfe", type=int, default=30)
    given = parser.parse_args(arguments)

    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(given.channels, 2 * given.channels),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    sde = DDPM(linear_betas(1000))  # diffusers' DDPMScheduler is this chain
    model = ScoreModel(net, sde, prediction="noise", noise_input="step")

    pixels = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    settings = {"training.batch_size": 64, "training.learning_rate": 1e-3, "training.times": "discrete"}
    run = Trainer(model, pixels, settings=settings).fit(steps=given.steps)  # averages the weights, too
    samples = run.sample(36, sampler="ddim", nfe=given.nfe)
    print("samples:", samples.values.shape, "from", samples.nfe, "evaluations each")


if __name__ == "__main__":
    main()
