"""What the number of samples does to each figure of `--mode evaluate`: bias, noise, and their estimates.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --numbers 64 --repeats 3     # a quick look

The law of the reference is a mixture around the 1,797 digits of scikit-learn: a random digit, as pixels in
[-1, 1], with noise of standard deviation 0.1. Samples come from the same law (perfect), or with noise of
standard deviation 0.3 (noisy). Both are drawn anew, n of each, again and again. Columns:

    truth            the figure of the laws: distances of perfect samples are 0, the Fréchet distance is known
    n                mean of the figure over the repeats, and in brackets the mean of the figure less its
                     change on halving: without a bias that falls as 1/n
    spread, ±        standard deviation of the figure over the repeats, and mean of the standard errors that
                     are reported with it, for the largest n
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from sklearn.datasets import load_digits

from score_diffusion.run.evaluation.feature_set import FeatureSet
from score_diffusion.run.evaluation.manifolds import expected_coverage
from score_diffusion.run.evaluation.metrics import measure
from score_diffusion.run.evaluation.resampling import Estimate

NUMBERS = (64, 256, 1024)
NOISE = {"perfect": 0.1, "noisy": 0.3}
DISTANCES = ("frechet_distance", "kernel_distance", "sliced_wasserstein", "exact_wasserstein")


def digits() -> np.ndarray:
    """Pixels in [-1, 1], shape (1797, 64)."""
    return load_digits().images.reshape(-1, 64) / 8 - 1


def draw(noise: float, n: int, rng: np.random.Generator) -> FeatureSet:
    """Features of n digits with noise of a standard deviation."""
    pixels = digits()[rng.integers(0, 1797, n)]
    return FeatureSet(n, pixels + noise * rng.normal(size=pixels.shape), None)


def truth(name: str, samples: str, n: int) -> float | None:
    """A figure of the laws, of which the covariances have the same eigenvectors; None if it is not known."""
    if name == "coverage" and samples == "perfect":
        return expected_coverage(n, n)
    if name == "density" and samples == "perfect":
        return 1.0
    if name in DISTANCES and samples == "perfect":
        return 0.0
    if name != "frechet_distance":
        return None
    eigenvalues = np.linalg.eigvalsh(np.cov(digits().T, bias=True))
    stds = [np.sqrt(eigenvalues + noise**2) for noise in (NOISE[samples], NOISE["perfect"])]
    return float(((stds[0] - stds[1]) ** 2).sum())


def row(name: str, samples: str, numbers: Sequence[int], runs: dict[int, list[dict[str, Estimate]]]) -> str:
    """A row of the table."""
    known = truth(name, samples, numbers[-1])
    cells = [name.replace("_", " "), samples, "" if known is None else f"{known:.3g}"]
    for n in numbers:
        values = np.array([run[name].value for run in runs[n]])
        changes = np.array([run[name].change_on_halving for run in runs[n]], float)
        cells.append(f"{values.mean():.2g} ({(values - changes).mean():.2g})")
    errors = np.array([run[name].standard_error for run in runs[numbers[-1]]], float)
    return " | ".join([*cells, f"{values.std(ddof=1):.2g}", f"{errors.mean():.2g}"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args(argv)
    numbers = arguments.numbers
    runs = {
        samples: {
            n: [
                measure(draw(noise, n, rng), draw(NOISE["perfect"], n, rng))
                for rng in map(np.random.default_rng, range(arguments.repeats))
            ]
            for n in numbers
        }
        for samples, noise in NOISE.items()
    }
    header = ("figure", "samples", "truth", *(f"n = {n:,}" for n in numbers), "spread", "±")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name in runs["perfect"][numbers[0]][0]:
        for samples in NOISE:
            print(f"| {row(name, samples, numbers, runs[samples])} |")


if __name__ == "__main__":
    main()
