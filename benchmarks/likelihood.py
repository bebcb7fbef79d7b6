"""Likelihoods at equal true error, against the ancestor's way, and the coverage of their intervals.

    python -m benchmarks.likelihood --run runs/vpsde        # seconds and evaluations at equal error
    python -m benchmarks.likelihood --coverage              # errors and intervals on exact mixtures

**Equal error.** The images, the network, its one Rademacher probe and the process are the same for all. The
true value is that of a tight solution with this probe; the error of a method is the
largest over the images, in bits/dim. Each method gets the coarsest of its settings whose error is below the
target; then all take turns, and the table has medians. The ancestor's way is that of score_sde_pytorch's
likelihood.py: SciPy's RK45 through NumPy on the whole batch as one vector, with one evaluation of the network
for the drift and another one for the divergence, restated here.

**Coverage.** Exact mixtures in 2-D, 1x8x8 and 3x16x16, for every SDE: the error of the mean log-likelihood
with the exact trace, in nats per dimension, and in how many of 100 repeats, each with its own samples and
probes, the 95 % interval holds the true mean log density. That is the mean over 200,000 samples.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.special import stdtrit
from torch import Tensor

from score_diffusion import load_run
from score_diffusion.run.build import data_options
from score_diffusion.run.data.info import load_data
from score_diffusion.samplers import AdaptiveAdams, ExponentialAdams
from score_diffusion.sde_lib import (
    SDE,
    AdaptiveSolver,
    DensitySolver,
    GaussianMixture,
    SampleNoise,
    ScoreFunction,
    log_likelihood,
)
from score_diffusion.sde_lib.divergence import probes_of
from tests.problems import SDES, images, ring

EPS, TIGHT = 1e-5, 1e-8
TOLERANCES = tuple(10 ** (-k / 2) for k in range(4, 15))  # 1e-2 to 1e-7
STEPS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 192, 256, 384, 512)
REPEATS, OF_TRUTH = 100, 200_000


@dataclass(frozen=True)
class Scored:
    """Log densities of a batch in nats, shape (B,), and the evaluations of the network per image."""

    log_prob: Tensor
    nfe: int


Method = Callable[[float], Scored]
"""From a setting, a tolerance or a number of steps, to the scores of the images."""


def of_ours(sde: SDE, score: ScoreFunction, x: Tensor, solver: Callable[[float], DensitySolver]) -> Method:
    def run(setting: float) -> Scored:
        found = log_likelihood(sde, score, x, n_probes=1, solver=solver(setting), eps=EPS)
        return Scored(found.log_prob, found.nfe)

    return run


def ancestors_way(sde: SDE, score: ScoreFunction, x: Tensor, probe: Tensor) -> Method:
    """The ODE of (x, log p) as one NumPy vector; drift and divergence each evaluate the network."""
    size = x.numel()

    def drift(x_t: Tensor, t: Tensor) -> Tensor:
        f, g2 = sde.dlog_alpha(t), sde.g2(t)
        return (f * x_t - 0.5 * g2 * score(x_t, t.expand(len(x_t)).float())).to(x)

    def divergence(x_t: Tensor, t: Tensor) -> Tensor:
        x_t = x_t.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad((drift(x_t, t) * probe).sum(), x_t)
        return (gradient * probe).flatten(1).sum(1)

    def run(tolerance: float) -> Scored:
        evaluations = 0

        def rhs(t: float, state: np.ndarray) -> np.ndarray:
            nonlocal evaluations
            evaluations += 2
            x_t = torch.from_numpy(state[:size].reshape(x.shape)).to(x)
            time_t = torch.tensor(t, dtype=torch.float64)
            with torch.no_grad():
                velocity = drift(x_t, time_t)
            change = divergence(x_t, time_t)
            return np.concatenate([velocity.flatten().double().numpy(), change.double().numpy()])

        start = np.concatenate([x.flatten().double().numpy(), np.zeros(len(x))])
        end = solve_ivp(rhs, (EPS, sde.T), start, rtol=tolerance, atol=tolerance, method="RK45").y[:, -1]
        latent = torch.from_numpy(end[:size].reshape(x.shape))
        return Scored(sde.prior_logp(latent) + torch.from_numpy(end[size:]), evaluations)

    return run


def cheapest(method: Method, settings: Sequence[float], truth: Tensor, target: float) -> float | None:
    """The coarsest setting whose largest error in nats is at most the target; None where there is none."""
    for setting in settings:
        if (method(setting).log_prob - truth).abs().max().item() <= target:
            return setting
    return None


def equal_error(run: Path, count: int, rounds: int, targets: Sequence[float]) -> None:
    """Prints seconds and evaluations per image of each method at equal true error."""
    trained = load_run(run)
    sde, score, scaling = trained.sde, trained.score, trained.data.scaling
    stored = load_data(data_options(trained.config.data), trained.data).test[:count]
    x = scaling.stored_to_model(stored, torch.rand(stored.shape, generator=torch.Generator().manual_seed(0)))
    probe = probes_of(
        SampleNoise(0, 0, x.shape, dtype=torch.float64, purpose="probes").normal(), "rademacher"
    )
    methods: dict[str, tuple[Method, Sequence[float]]] = {
        "the ancestor's way": (ancestors_way(sde, score, x, probe.float()), TOLERANCES),
        "dopri5": (of_ours(sde, score, x, lambda tol: AdaptiveSolver("dopri5", tol, tol)), TOLERANCES),
        "adaptive_adams": (of_ours(sde, score, x, lambda tol: AdaptiveAdams(tol, tol)), TOLERANCES),
        "exponential_adams": (of_ours(sde, score, x, lambda n: ExponentialAdams(int(n))), STEPS),
    }
    truth = methods["dopri5"][0](TIGHT).log_prob
    nats = x[0].numel() * math.log(2)  # of one bit/dim
    print("| error, bits/dim | method | setting | evaluations | seconds per image | against the ancestor |")
    print("|---|---|---|---|---|---|")
    for target in targets:
        chosen = {name: cheapest(*method, truth, target * nats) for name, method in methods.items()}
        found = {name: setting for name, setting in chosen.items() if setting is not None}
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(rounds):
            for name, setting in found.items():
                start = time.perf_counter()
                methods[name][0](setting)
                seconds[name].append((time.perf_counter() - start) / len(x))
        medians = {name: statistics.median(each) for name, each in seconds.items()}
        ancestor = medians.get("the ancestor's way", math.nan)
        for name, setting in found.items():
            row = f"{setting:.2g} | {methods[name][0](setting).nfe} | {medians[name]:.4f}"
            print(f"| {target:g} | {name} | {row} | {ancestor / medians[name]:.2f} |", flush=True)
        for name in chosen.keys() - found.keys():
            print(f"| {target:g} | {name} | none is accurate enough | | | |", flush=True)


def wide_images() -> GaussianMixture:
    """3x16x16 images: five components with unequal variances per element."""
    source = torch.Generator().manual_seed(3)
    means = torch.rand(5, 3, 16, 16, generator=source, dtype=torch.float64) * 2 - 1
    deviations = 0.1 + 0.4 * torch.rand(5, 3, 16, 16, generator=source, dtype=torch.float64)
    return GaussianMixture(means, deviations.square())


LAWS: dict[str, tuple[Callable[[], GaussianMixture], int, int]] = {
    "2-D": (ring, 16, 96),
    "1x8x8": (images, 8, 64),
    "3x16x16": (wide_images, 2, 64),
}
"""The law, the samples whose trace is exact, and the steps of the solver."""


def coverage(law_name: str, sde_name: str, size: int, repeats: int) -> None:
    """Prints the row of a law and an SDE: the error of the mean, and how many intervals hold the truth."""
    make, exact_samples, steps = LAWS[law_name]
    law, sde = make(), SDES[sde_name]
    last, first = law.marginal(sde, sde.T).log_prob, law.marginal(sde, EPS)
    solver = ExponentialAdams(steps)

    def scored(x: Tensor, divergence: str) -> Tensor:
        found = log_likelihood(
            sde, law.score(sde), x, divergence=divergence, n_probes=1, prior_logp=last, solver=solver, eps=EPS
        )
        return found.log_prob

    x = first.sample(exact_samples, seed=1)
    error = (scored(x, "exact") - first.log_prob(x)).mean().item() / x[0].numel()
    many = OF_TRUTH // max(1, x[0].numel() // 16)
    truth = first.log_prob(first.sample(many, seed=2)).mean().item()
    values = scored(first.sample(size * repeats, seed=4), "hutchinson").view(repeats, size)
    width = float(stdtrit(size - 1, 0.975)) * values.std(1) / math.sqrt(size)
    held = int(((values.mean(1) - truth).abs() < width).sum())
    print(f"| {law_name} | {sde_name} | {abs(error):.1e} | {held} of {repeats} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, help="run directory of a model of images")
    parser.add_argument("--images", type=int, default=16, help="held-out images to score, as one batch")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each method")
    parser.add_argument("--errors", type=float, nargs="+", default=[1e-3, 1e-4], help="bits/dim")
    parser.add_argument("--coverage", action="store_true", help="intervals on exact mixtures instead")
    parser.add_argument("--law", nargs="+", choices=LAWS, default=list(LAWS), help="exact mixtures")
    parser.add_argument("--sde", nargs="+", choices=SDES, default=list(SDES), help="SDEs")
    parser.add_argument("--size", type=int, default=20, help="samples of a repeat")
    parser.add_argument("--repeats", type=int, default=100, help="intervals for each law and SDE")
    arguments = parser.parse_args(argv)
    if arguments.coverage:
        print("| law | SDE | error of the mean, nats/dim, exact trace | intervals that hold the truth |")
        print("|---|---|---|---|")
        for law in arguments.law:
            for sde in arguments.sde:
                coverage(law, sde, arguments.size, arguments.repeats)
        return
    if arguments.run is None:
        parser.error("name a model of images by --run, or give --coverage")
    equal_error(arguments.run, arguments.images, arguments.rounds, arguments.errors)


if __name__ == "__main__":
    main()
