"""Posterior samplers against exact posteriors, beside azula's: the tables in docs/restoring.md.

    python -m benchmarks.inverse
    python -m benchmarks.inverse --problem ring --noise 0.3 --samples 50 --nfe 20       # a quick look
    python -m benchmarks.inverse --table particles

Each number is the sliced 2-Wasserstein distance (500 directions) between samples of a method and as many of
the exact posterior, over the mean distance between two sets of the exact posterior: 1 is perfect. Scores
are exact; every method has the same number of evaluations and its default settings, and ours are given the
standard deviation of the data. A second table shows the twisted sampler with more and more particles.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from score_diffusion.samplers.inverse import (
    METHODS,
    Blur,
    Downsample,
    InverseProblem,
    LinearOperator,
    Mask,
    MatrixOperator,
    RandomProjection,
    gaussian_kernel,
    restorer,
)
from score_diffusion.sde_lib import GaussianMixture, InputError
from tests.problems import SDES, gaussian, images, ring, sampling_floor, sliced_wasserstein

PROBLEMS: dict[str, tuple[str, GaussianMixture, LinearOperator]] = {
    "gaussian": ("2-D Gaussian, 1 row", gaussian(2), MatrixOperator(torch.tensor([[1.0, 0.5]]))),
    "ring": ("2-D ring of 8 modes, 1 row", ring(), MatrixOperator(torch.tensor([[1.0, 0.5]]))),
    "gaussian64": ("64-D Gaussian, 16 random rows", gaussian(64), RandomProjection((64,), 16)),
    "inpaint": ("1x8x8 mixture, left half", images(), Mask(torch.arange(8) < 4, (1, 8, 8))),
    "superres": ("1x8x8 mixture, averages of 2x2", images(), Downsample((1, 8, 8), 2)),
    "deblur": ("1x8x8 mixture, 3x3 blur", images(), Blur((1, 8, 8), gaussian_kernel(3, 0.8))),
}
NOISES = (0.05, 0.3, 1.0)
PARTICLES = (64, 256, 1024, 4096)


class Case:
    """A problem at one level of noise, with samples of its exact posterior.

    Args:
        name: A name in `PROBLEMS`.
        sigma_y: Standard deviation of the noise.
        sde: A name in `SDES`.
        count: Number of samples to compare.
    """

    def __init__(self, name: str, sigma_y: float, sde: str, count: int) -> None:
        self.title, self.law, operator = PROBLEMS[name]
        self.count = count
        data = self.law.sample(1000, seed=9)
        data_std = (data - data.mean(0)).square().mean().sqrt().item()
        y = operator.measure(self.law.sample(1, seed=11), sigma_y, seed=3)[0]
        self.problem = InverseProblem(SDES[sde], operator, y, sigma_y, data_std)
        posterior = self.law.posterior(operator.matrix(), y, sigma_y)
        self.floor = sampling_floor(posterior, count, repeats=10)
        self.truths = [posterior.sample(count, seed=77 + k) for k in range(5)]

    def ratio(self, samples: torch.Tensor) -> str:
        """The mean distance of samples to five sets of the posterior over the floor."""
        distances = [sliced_wasserstein(samples, truth) for truth in self.truths]
        return f"{sum(distances) / len(distances) / self.floor:.2f}"

    def ours(self, method: str, nfe: int, **options: object) -> str:
        """The ratio of one of our methods; a dash where it does not fit the problem."""
        try:
            draw = restorer(method, self.problem, nfe, options)
        except InputError:
            return "-"
        shape = (self.count, *self.law.shape)
        return self.ratio(draw(self.law.score(self.problem.sde), shape, seed=3, dtype=torch.float64).samples)

    def azulas(self, method: str, nfe: int) -> str:
        """The ratio of azula's method of the name; a dash where it has none."""
        from benchmarks.inverse_peers import AzulaRestorer, fits

        if not fits(method, self.problem):
            return "-"
        draw = AzulaRestorer(self.problem, nfe, method)
        return self.ratio(draw(self.law.score(self.problem.sde), (self.count, *self.law.shape), seed=3))


def print_methods(arguments: argparse.Namespace) -> None:
    """The table of methods: ours / azula's."""
    print(f"{arguments.nfe} evaluations, {arguments.samples} samples, SDE {arguments.sde}; ours / azula's\n")
    print("| problem | σ_y | " + " | ".join(f"`{name}`" for name in arguments.method) + " |")
    print("|---|---|" + "---|" * len(arguments.method))
    for name in arguments.problem:
        for sigma_y in arguments.noise:
            case = Case(name, sigma_y, arguments.sde, arguments.samples)
            cells = []
            for method in arguments.method:
                one_set = {"particles": arguments.samples, "draws": arguments.samples}
                mine = case.ours(method, arguments.nfe, **(one_set if method == "twisted" else {}))
                peer = case.azulas(method, arguments.nfe) if arguments.peers else "-"
                cells.append(mine if peer == "-" else f"{mine} / {peer}")
            print(f"| {case.title} | {sigma_y} | " + " | ".join(cells) + " |", flush=True)


def print_particles(arguments: argparse.Namespace) -> None:
    """The table of the twisted sampler: sets of P particles, each of which serves as many samples as it
    can.
    """
    print(f"twisted, {arguments.nfe} steps, {arguments.samples} samples, SDE {arguments.sde}\n")
    print("| problem | σ_y | " + " | ".join(f"P = {count}" for count in arguments.particles) + " |")
    print("|---|---|" + "---|" * len(arguments.particles))
    for name in arguments.problem:
        for sigma_y in arguments.noise:
            case = Case(name, sigma_y, arguments.sde, arguments.samples)
            cells = [
                case.ours("twisted", arguments.nfe, particles=count, draws=min(count, arguments.draws))
                for count in arguments.particles
            ]
            print(f"| {case.title} | {sigma_y} | " + " | ".join(cells) + " |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", choices=("methods", "particles"), default="methods")
    parser.add_argument("--problem", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--noise", nargs="+", type=float, default=NOISES, help="σ_y")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sde", choices=SDES, default="vp")
    parser.add_argument("--samples", type=int, default=512, help="samples of each method")
    parser.add_argument("--nfe", type=int, default=50, help="evaluations of the score per sample")
    parser.add_argument("--particles", nargs="+", type=int, default=PARTICLES, help="of the second table")
    parser.add_argument(
        "--draws", type=int, default=512, help="samples that a set of particles serves at most"
    )
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="azula, too")
    arguments = parser.parse_args(argv)
    print_methods(arguments) if arguments.table == "methods" else print_particles(arguments)


if __name__ == "__main__":
    main()
