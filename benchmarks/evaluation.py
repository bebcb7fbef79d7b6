"""What the number of samples does to each figure of `--mode evaluate`: bias, noise, and their estimates.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --numbers 64 --repeats 3     # a quick look

The 1,797 digits of scikit-learn are split at random into samples and reference, n of each, again and again:
both are of one law, so that every distance ought to be 0. Columns of the table, for each figure and n:

    mean        over the repeats
    spread      standard deviation over the repeats
    ± reported  mean of the standard errors that are reported with the figure
    corrected   mean of the figure less its change on halving: without a bias that falls as 1/n
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from sklearn.datasets import load_digits

from score_diffusion.run.evaluation.feature_set import FeatureSet
from score_diffusion.run.evaluation.manifolds import expected_coverage
from score_diffusion.run.evaluation.metrics import measure

NUMBERS = (64, 128, 256, 512, 898)


def pixels() -> np.ndarray:
    """The digits as features of `--mode evaluate`: pixels in [-1, 1], shape (1797, 64)."""
    return load_digits().images.reshape(-1, 64) / 8 - 1


def split(features: np.ndarray, n: int, seed: int) -> tuple[FeatureSet, FeatureSet]:
    """Two sets of n samples that have none in common."""
    order = np.random.default_rng(seed).permutation(len(features))
    samples, reference = (FeatureSet(n, features[part], None) for part in (order[:n], order[n : 2 * n]))
    return samples, reference


def rows(n: int, repeats: int) -> list[tuple[str, ...]]:
    """A row of the table for each figure."""
    features = pixels()
    runs = [measure(*split(features, n, seed)) for seed in range(repeats)]
    found = []
    for name in runs[0]:
        values = np.array([run[name].value for run in runs])
        errors = np.array([run[name].standard_error for run in runs], float)
        changes = np.array([run[name].change_on_halving for run in runs], float)
        columns = (values.mean(), values.std(ddof=1), errors.mean(), (values - changes).mean())
        found.append((name.replace("_", " "), f"{n}", *(f"{x:.3g}" for x in columns)))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args(argv)
    found = [row for n in arguments.numbers for row in rows(n, arguments.repeats)]
    print("| figure | n | mean | spread | ± reported | corrected |\n|---|---|---|---|---|---|")
    for row in sorted(found, key=lambda row: [name for name, *_ in found].index(row[0])):
        print(f"| {' | '.join(row)} |")
    for n in arguments.numbers:
        print(f"coverage to expect of {n} and {n} samples of one law: {expected_coverage(n, n):.3f}")


if __name__ == "__main__":
    main()
