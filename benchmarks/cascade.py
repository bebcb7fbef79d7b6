"""Conditioning augmentation: Fréchet distances of whole cascades, at several levels of noise in small images.

    python -m benchmarks.cascade runs/cascade_mnist runs/without --single runs/single --features runs/features

The first system is trained as it is, the second with augment_noise=0; the single run is a model at full size
that was trained for the same time. Distances to held-out data are in the features of a classifier, as
`--mode evaluate` has them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from score_diffusion import load_run, load_system
from score_diffusion.run.build import data_options
from score_diffusion.run.builders.evaluation import build_evaluator
from score_diffusion.run.config import apply_overrides, read_config
from score_diffusion.run.console import silence
from score_diffusion.run.data.info import load_data, read_data_info
from score_diffusion.run.evaluation.evaluator import Evaluator

FIGURE = "frechet_distance"


def evaluator_of(run: Path, features: str) -> Evaluator:
    """What measures samples that are like the data of a run."""
    config = apply_overrides(read_config(run), [("evaluation.features", features)], "evaluate")
    dataset = load_data(data_options(config.data), read_data_info(run))
    return build_evaluator(config.evaluation, dataset, run, torch.device("cpu"))


def distance(evaluator: Evaluator, samples: np.ndarray) -> str:
    """The Fréchet distance of samples with its standard error."""
    with silence():
        found = evaluator.measure(evaluator.features_of(samples))[FIGURE]
    return f"{found.value:8.3f} ± {found.standard_error or 0:.3f}"


def table(systems: Sequence[str], levels: Sequence[float], count: int, nfe: int, features: str) -> None:
    """One row for each system, one column for each level that its training had."""
    evaluator: Evaluator | None = None
    for path in systems:
        system = load_system(path)
        enlarging = system.stages[1:]
        runs = [read_config(system.path / stage).training.augment_noise for stage in enlarging]
        evaluator = evaluator or evaluator_of(system.path / system.stages[-1], features)
        for level in [level for level in levels if level <= min(runs)]:
            settings = {f"{stage}.augment_noise": level for stage in enlarging}
            with silence():
                samples = system.sample(count, nfe=nfe, settings=settings).samples
            row = f"{path}, trained up to {min(runs):g}, drawn at {level:g}"
            print(f"{row:<60}{distance(evaluator, samples)}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("systems", nargs="+")
    parser.add_argument("--single", default="")
    parser.add_argument("--features", required=True)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.4])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--nfe", type=int, default=20)
    arguments = parser.parse_args(argv)
    table(arguments.systems, arguments.levels, arguments.samples, arguments.nfe, arguments.features)
    if arguments.single:
        run = Path(arguments.single)
        evaluator = evaluator_of(run, arguments.features)
        with silence():
            samples = load_run(run).sample(arguments.samples, nfe=arguments.nfe).samples
        print(f"{f'{run}, one model':<60}{distance(evaluator, samples)}")
        with silence():
            real = evaluator.measure(evaluator.real(arguments.samples))[FIGURE]
        print(f"{'real data':<60}{real.value:8.3f}")


if __name__ == "__main__":
    main()
