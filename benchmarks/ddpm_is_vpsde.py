"""DDPM is the discretized VP SDE: how fast its chain and its ancestral sampling converge as N grows.

    python -m benchmarks.ddpm_is_vpsde
    python -m benchmarks.ddpm_is_vpsde --steps 32 64      # a quick look

DDPM(N) has the betas of VPSDE(N=N).discrete_betas. Columns of the table:

    tables      max_k |ᾱ_k - α(t_k)²|, DDPM's cumulative products against the SDE's
    paths       root-mean-square distance at t = 1/8 between DDPM's ancestral samples and the reverse SDE of
                VPSDE, both with the exact score of a mixture, the same x_T and the same Brownian path; the
                reverse SDE is solved by 16 Euler-Maruyama steps per step of the finest DDPM
    law β̃, β    2-Wasserstein distance between Gaussian data and the ancestral samples, computed exactly, for
                the small and the large variance, from x_T ~ p_T down to t = 0

The order after each column is log₂ of the ratio to the row above. The small variance approaches order 1 from
below: step k lacks a fraction 1/k of its noise, log(N)/N in total.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.samplers import AncestralSampler, Sampler, chain_grid, euler_maruyama
from score_diffusion.samplers.base import CountedScore
from score_diffusion.sde_lib import DDPM, VPSDE, Gaussian, GaussianMixture, generator_for

STEPS = (32, 64, 128, 256, 512, 1024)
STOP = 1 / 8  # end of the paths: the last step to t = 0 adds no noise, which is a difference of order ½


class GivenNoise:
    """Returns given tensors in place of a sampler's random noise."""

    def __init__(self, *values: Tensor) -> None:
        self.values = iter(values)

    def normal(self) -> Tensor:
        return next(self.values)


def matching_ddpm(N: int) -> DDPM:
    """DDPM with the betas of VPSDE's own chain of N steps."""
    return DDPM(VPSDE(N=N).discrete_betas)


def table_error(N: int) -> float:
    """max_k |ᾱ_k - α(t_k)²|."""
    ddpm, t = matching_ddpm(N), matching_ddpm(N).discrete_times()
    return (ddpm.alpha(t).square() - VPSDE().alpha(t).square()).abs().max().item()


@dataclass
class BrownianPath:
    """Increments of w̄ on [STOP, 1], from t = 1 down, (fine, B, D), and the initial states x_T (B, D)."""

    increments: Tensor
    x_T: Tensor

    @classmethod
    def draw(cls, fine: int, batch: int, dimensions: int) -> BrownianPath:
        generator = generator_for(0, "BrownianPath")
        z = torch.randn(fine + 1, batch, dimensions, dtype=torch.float64, generator=generator)
        return cls(z[1:] * math.sqrt((1 - STOP) / fine), z[0])

    def coarse(self, steps: int) -> Tensor:
        """Standard normal increments over `steps` equal steps, shape (steps, B, D)."""
        sums = self.increments.unflatten(0, (steps, -1)).sum(1)
        return sums / math.sqrt((1 - STOP) / steps)


def mixture() -> GaussianMixture:
    """Three unequal modes in the plane."""
    means = torch.tensor([[1.0, 0.0], [-0.6, 0.8], [-0.5, -1.0]])
    return GaussianMixture(means, torch.tensor([0.05, 0.1, 0.02]), torch.tensor([0.5, 0.3, 0.2]))


def reverse_sde_paths(path: BrownianPath) -> Tensor:
    """The reverse SDE of VPSDE at STOP, by Euler-Maruyama steps as fine as the path."""
    sde, times = VPSDE(), _times_to_stop(len(path.increments))
    sampler = euler_maruyama(sde, times)
    return _follow(sampler, path.x_T, path.coarse(len(path.increments)))


def ancestral_paths(path: BrownianPath, N: int) -> Tensor:
    """DDPM's ancestral sampling at STOP, with N steps on [0, 1]."""
    z = path.coarse(round(N * (1 - STOP)))
    return _follow(AncestralSampler(matching_ddpm(N), _times_to_stop(len(z))), path.x_T, z)


def _times_to_stop(steps: int) -> Tensor:
    return torch.linspace(1, STOP, steps + 1, dtype=torch.float64)


def _follow(sampler: Sampler, x: Tensor, z: Tensor) -> Tensor:
    score = CountedScore(mixture().score(sampler.sde), len(x))
    return sampler.integrate(score, x, GivenNoise(*z), None, lambda i, n: None)


def path_errors(Ns: tuple[int, ...], refinement: int = 16, batch: int = 64) -> list[float]:
    """Root-mean-square distances between ancestral sampling and the reverse SDE at STOP, for each N."""
    path = BrownianPath.draw(round(max(Ns) * (1 - STOP)) * refinement, batch, 2)
    reference = reverse_sde_paths(path)
    return [(ancestral_paths(path, N) - reference).square().sum(1).mean().sqrt().item() for N in Ns]


def law_error(N: int, variance: str, mean: float = 0.4, std: float = 0.5) -> float:
    """2-Wasserstein distance between N(mean, std²) and the ancestral samples, from the steps' affine maps."""
    sde = matching_ddpm(N)
    law = Gaussian(torch.tensor([mean]), torch.tensor(std**2))
    score, times = CountedScore(law.score(sde), 3), chain_grid(sde)
    sampler = AncestralSampler(sde, times, variance=variance)
    probes, z = torch.tensor([[0.0], [1.0], [0.0]]).double(), torch.tensor([[0.0], [0.0], [1.0]]).double()
    m, v = (
        sde.alpha(times[0]).item() * mean,
        (sde.alpha(times[0]) ** 2 * std**2 + sde.sigma(times[0]) ** 2).item(),
    )
    for k in range(len(times) - 1):
        out, _ = sampler.step(score, probes, k, GivenNoise(z), None)
        b, A, C = out[0].item(), (out[1] - out[0]).item(), (out[2] - out[0]).item()
        m, v = A * m + b, A**2 * v + C**2
    return math.hypot(m - mean, math.sqrt(v) - std)


def orders(errors: list[float]) -> list[float]:
    """log₂ of the ratio of each error to the next: the order of convergence when N doubles."""
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="N, each twice the one before")
    steps = tuple(parser.parse_args(argv).steps)
    columns = {
        "tables": [table_error(N) for N in steps],
        "paths": path_errors(steps),
        "law β̃": [law_error(N, "small") for N in steps],
        "law β": [law_error(N, "large") for N in steps],
    }
    print("| N | " + " | ".join(f"{name} | order" for name in columns) + " |")
    print("|---" * (1 + 2 * len(columns)) + "|")
    for i, N in enumerate(steps):
        cells = (f"{e[i]:.2e} | {orders(e)[i - 1]:.2f}" if i else f"{e[i]:.2e} | " for e in columns.values())
        print(f"| {N} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
