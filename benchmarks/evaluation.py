"""What the number of samples does to each figure of `--mode evaluate`: bias, noise, and their estimates.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --numbers 64 --repeats 3     # a quick look

The law of the reference is a mixture around the 1,797 digits of scikit-learn: a random digit, as pixels in
[-1, 1], with noise of standard deviation 0.1. Samples come from the same law (perfect), or with noise of
standard deviation 0.3 (noisy). Both are drawn anew, n of each, again and again. Columns:

    truth       the figure of the laws: the Fréchet distance is known, distances of perfect samples are 0
    mean        of the figure over the repeats
    corrected   mean of the figure less its change on halving: without a bias that falls as 1/n
    spread      standard deviation of the figure over the repeats
    ± reported  mean of the standard errors that are reported with it
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.datasets import load_digits

from score_diffusion.run.evaluation.feature_set import FeatureSet
from score_diffusion.run.evaluation.manifolds import expected_coverage
from score_diffusion.run.evaluation.metrics import measure

NUMBERS = (64, 256, 1024)
NOISE = {"perfect": 0.1, "noisy": 0.3}
HEADER = ("figure", "samples", "n", "truth", "mean", "corrected", "spread", "± reported")
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


def rows(samples: str, n: int, repeats: int) -> Iterator[tuple[str, ...]]:
    """A row of the table for each figure."""
    generators = map(np.random.default_rng, range(repeats))
    runs = [measure(draw(NOISE[samples], n, rng), draw(NOISE["perfect"], n, rng)) for rng in generators]
    for name in runs[0]:
        values = np.array([run[name].value for run in runs])
        errors = np.array([run[name].standard_error for run in runs], float)
        changes = np.array([run[name].change_on_halving for run in runs], float)
        known = truth(name, samples, n)
        columns = (values.mean(), (values - changes).mean(), values.std(ddof=1), errors.mean())
        first = "" if known is None else f"{known:.3g}"
        yield name.replace("_", " "), samples, f"{n:,}", first, *(f"{x:.2g}" for x in columns)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS)
    parser.add_argument("--samples", nargs="+", choices=NOISE, default=list(NOISE))
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args(argv)
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    found = [
        row
        for samples in arguments.samples
        for n in arguments.numbers
        for row in rows(samples, n, arguments.repeats)
    ]
    names = [name for name, *_ in found]
    for row in sorted(found, key=lambda row: names.index(row[0])):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
