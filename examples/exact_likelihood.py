"""Likelihoods by the probability flow, next to the truth: a law of the plane whose score is known.

    python examples/exact_likelihood.py

A mixture of Gaussians stays one under the noise of every SDE, so that its score and its density are exact at
every time. With a trained model nothing changes but the score.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch

from score_diffusion.sde_lib import VESDE, VPSDE, GaussianMixture, SubVPSDE, log_likelihood


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=200)
    points = parser.parse_args(arguments).points

    angles = torch.arange(8) * (2 * math.pi / 8)
    means = torch.stack([angles.cos(), angles.sin()], dim=1)  # (8, 2)
    law = GaussianMixture(means, torch.full((8,), 0.05))  # a variance for each component
    x = law.sample(points, seed=0)
    exact = law.log_prob(x)

    print("SDE        mean log p(x)   exact     largest error   evaluations")
    for sde in (VPSDE(), SubVPSDE(), VESDE()):
        result = log_likelihood(sde, law.score(sde), x, divergence="exact")
        error = (result.log_prob - exact).abs().max()
        name = type(sde).__name__
        print(f"{name:<10} {result.log_prob.mean():13.4f} {exact.mean():9.4f} {error:15.5f} {result.nfe:12}")


if __name__ == "__main__":
    main()
