"""The scale of the grid `spread`: errors of eabm on random mixtures, by scale and number of steps.

    python -m benchmarks.grid_scale

The laws are no part of the zoo: mixtures of 2 to 16 modes in 1 to 96 dimensions, with means of 0.15 to 6 per
element and deviations from 1/60 of them to about as much, isotropic or not. The error is the median distance
over 24 samples to the end of the same probability flow of VP. Printed is its geometric mean over laws
of similar size, relative to scale 1.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.quality_vs_nfe import NFES, Problem, row
from score_diffusion.samplers import eabm
from score_diffusion.samplers.grids import early_times, spread_power
from score_diffusion.sde_lib import VPSDE, GaussianMixture

SCALES = (1.0, 1.25, 1.5, 2.0)
SIZES = (0.5, 1.5)  # bounds of the groups of laws
DIMENSIONS = (1, 2, 3, 6, 12, 24, 48, 96)


def random_law(seed: int) -> GaussianMixture:
    """A mixture whose size, scale and kind of deviations are drawn by a seed."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    dimensions, modes = DIMENSIONS[seed % len(DIMENSIONS)], int(uniform(2, 17))
    scale = 10 ** (-0.8 + 1.55 * (seed * 0.618034 % 1))  # evenly spread over the seeds
    means = scale * torch.randn(modes, dimensions, generator=generator, dtype=torch.float64)
    deviations = (
        10 ** uniform(-1.8, 0).expand(modes),  # the same for all modes
        10 ** uniform(-1.6, 0.1, modes),
        10 ** uniform(-1.8, 0.2, modes, dimensions),
    )[seed % 3]
    weights = uniform(0.2, 1.2, modes)
    return GaussianMixture(means, (scale * deviations).square(), weights / weights.sum())


def size(law: GaussianMixture) -> float:
    """The standard deviation of an element."""
    return law.sample(1000, seed=0).flatten(1).var(0).mean().sqrt().item()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--laws", type=int, default=96, help="number of random mixtures")
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFES), help="numbers of steps")
    arguments = parser.parse_args(argv)
    sde, laws = VPSDE(), [random_law(seed) for seed in range(arguments.laws)]
    problems = [Problem.exact(str(seed), law, sde, 24) for seed, law in enumerate(laws)]
    logs = torch.empty(len(SCALES), len(arguments.nfe), len(laws))
    for i, scale in enumerate(SCALES):
        for j, steps in enumerate(arguments.nfe):
            sampler = eabm(sde, early_times(sde, steps, None, scale, spread_power(steps)))
            for k, problem in enumerate(problems):
                samples = sampler(problem.score, problem.x_T.shape, x_T=problem.x_T).samples
                logs[i, j, k] = math.log(problem.error(samples))
    sizes = torch.tensor([size(law) for law in laws])
    print("| deviation of the data | scale | " + " | ".join(map(str, arguments.nfe)) + " |")
    print("|" + "---|" * (len(arguments.nfe) + 2))
    for low, high in itertools.pairwise((0, *SIZES, math.inf)):
        chosen = (sizes >= low) & (sizes < high)
        for i, scale in enumerate(SCALES[1:], 1):
            ratios = (logs[i] - logs[0])[:, chosen].mean(1).exp()
            print(row(f"{low:g} to {high:g}, {int(chosen.sum())} laws | {scale:g}", ratios.tolist()))


if __name__ == "__main__":
    main()
