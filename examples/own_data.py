"""Your own data: a network and a training that suit their shape and number are chosen for you.

    python examples/own_data.py --data photos/            # a folder or zip of images, an .npz or .npy
    python examples/own_data.py                           # without --data: writes a small .npz and uses that

The settings that were chosen are printed, and any of them can be set: `settings["training.steps"] = 5000`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from score_diffusion import train


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workdir", type=Path, default=Path("runs/own_data"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=36)
    given = parser.parse_args(arguments)

    data = given.data
    if data is None:  # pixels are uint8 (N, H, W) or (N, H, W, C); anything else is floating point
        digits = load_digits()
        data = given.workdir.parent / "digits.npz"
        data.parent.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
        np.savez_compressed(data, x_train=pixels, y_train=digits.target)

    settings = {"data.path": str(data), "training.steps": given.steps}
    run = train("auto", given.workdir, settings)  # the same call resumes a training that was stopped
    samples = run.sample(given.samples)
    print("samples:", samples.values.shape, samples.values.dtype)
    print("picture:", samples.save(given.workdir / "samples.png"))


if __name__ == "__main__":
    main()
