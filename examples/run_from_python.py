"""A run from Python: train it, or load what the command line trained, and do with it what the commands do.

python examples/run_from_python.py                       # trains on handwritten digits for some minutes
python examples/run_from_python.py --run runs/vpsde      # or takes a run directory
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sklearn.datasets import load_digits

from score_diffusion import load_run, train


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--workdir", type=Path, default=Path("runs/from_python"))
    parser.add_argument("--config", default="vpsde_cfg", help="an experiment on digits with classes")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--nfe", type=int, default=30)
    given = parser.parse_args(arguments)

    if given.run is None:
        settings = {"training.steps": given.steps, "training.conditional": True}
        run = train(given.config, given.workdir, settings)
    else:
        run = load_run(given.run)
    print(run)

    threes = run.sample(8, label=3, nfe=given.nfe)  # the samples of: --mode sample --label 3
    print("threes:", threes.values.shape, threes.values.dtype, "grey levels up to", threes.values.max())
    print("picture:", threes.save(run.path / "threes.png"))
    guided = run.sample(8, label=3, nfe=given.nfe, guidance="cfg", scale=3)
    print("guided threes:", guided.values.shape, "from", guided.nfe, "evaluations each")

    images = load_digits().images[:4].astype("uint8")  # (4, 8, 8), the pixels as they are
    print("bits/dim:", run.log_likelihood(images).bits_per_dim)
    codes = run.encode(images)  # the latents of the probability flow
    print("pixels that come back:", (run.decode(codes).values == images).mean())
    path = run.interpolate(images[0], images[1], n=8)
    print("picture:", path.save(run.path / "path.png"))

    restored = run.restore(images, "inpaint", nfe=given.nfe, num_samples=4)  # the middle is missing
    print("restored:", restored.values.shape, "mean deviation", restored.deviation.mean())


if __name__ == "__main__":
    main()
