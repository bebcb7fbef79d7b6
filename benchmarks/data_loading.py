"""How fast each kind of data source delivers images, compared to the training step at CIFAR-10's size.

    python -m benchmarks.data_loading
    python -m benchmarks.data_loading --device cuda --data cifar10-jpeg-train.zip

The same 32x32 colour images come as an array in memory, a mapped .npy, a folder of PNG files and a zip of
JPEG files. All but the first are read batch by batch (data.memory_gib=0), like a data set larger than memory.
The step is that of `--config cifar10`. Columns:

    start      seconds to open the data set: list it, read the sizes, checksum it for the held-out split
    reading    images per second when batches are read and not used
    training   images per second in complete training steps
    of memory  the speed of training relative to the array in memory

The sources take turns, and the table has medians. A source limits the training where "reading" is not well
above "training".
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from PIL import Image

from score_diffusion.run.build import data_options
from score_diffusion.run.builders.training import build_trainer
from score_diffusion.run.config import load_config
from score_diffusion.run.console import print_table
from score_diffusion.run.data.load import load_dataset


def make_images(count: int) -> np.ndarray:
    """Smooth random images, uint8 (N, 32, 32, 3): noise would not compress and be slower than any photo."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    sized = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in small]
    return np.stack([np.asarray(image) for image in sized])


def write_sources(folder: Path, images: np.ndarray) -> dict[str, Path]:
    """Writes the images in every format; returns the paths by name."""
    np.save(folder / "images.npy", images)
    (folder / "png").mkdir()
    with zipfile.ZipFile(folder / "jpeg.zip", "w") as archive:
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"png/{i:06d}.png")
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=90)
            archive.writestr(f"{i:06d}.jpg", buffer.getvalue())
    return {
        "array in memory": folder / "images.npy",
        "mapped .npy": folder / "images.npy",
        "folder of PNG": folder / "png",
        "zip of JPEG": folder / "jpeg.zip",
    }


class Contestant:
    """A data source and a trainer that uses it."""

    def __init__(self, path: Path, in_memory: bool, config: ConfigDict, device: torch.device) -> None:
        config = config.copy_and_resolve_references()
        config.data.update(path=str(path), memory_gib=64.0 if in_memory else 0.0)
        start = time.perf_counter()
        dataset = load_dataset(data_options(config.data))
        self.start_seconds = time.perf_counter() - start
        self.device, self.trainer = device, build_trainer(config, dataset, device)
        self.trainer.advance()

    def reading_speed(self, steps: int) -> float:
        """Images per second when batches are read and not used."""
        loader, first = self.trainer.batches.loader, self.trainer.step
        start = self._clock()
        count = sum(len(loader.read(loader.order.positions(first + k))) for k in range(steps))
        return count / (self._clock() - start)

    def training_speed(self, steps: int) -> float:
        """Images per second in complete training steps."""
        start = self._clock()
        for _ in range(steps):
            self.trainer.advance()
        return steps * self.trainer.batches.order.batch_size / (self._clock() - start)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=10_000, help="number of images in each source")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each source")
    parser.add_argument("--steps", type=int, default=10, help="training steps in a turn")
    parser.add_argument("--batch_size", type=int, default=128, help="images in a batch")
    parser.add_argument("--data", type=Path, help="also measure this folder or zip of 32x32 colour images")
    parser.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    arguments = parser.parse_args(argv)
    config = load_config("cifar10")
    config.training.batch_size = arguments.batch_size
    with tempfile.TemporaryDirectory() as folder:
        sources = write_sources(Path(folder), make_images(arguments.images))
        if arguments.data:
            sources[arguments.data.name] = arguments.data.resolve()
        contestants = {
            name: Contestant(path, name == "array in memory", config, torch.device(arguments.device))
            for name, path in sources.items()
        }
        reading, training = ({name: [] for name in contestants} for _ in range(2))
        for _ in range(arguments.rounds):
            for name, contestant in contestants.items():
                reading[name].append(contestant.reading_speed(10 * arguments.steps))
                training[name].append(contestant.training_speed(arguments.steps))
    reference = statistics.median(training["array in memory"])
    rows = [("source", "start, s", "reading, images/s", "training, images/s", "of memory")]
    for name, contestant in contestants.items():
        read, trained = statistics.median(reading[name]), statistics.median(training[name])
        cells = (
            f"{contestant.start_seconds:.2f}",
            f"{read:,.0f}",
            f"{trained:,.1f}",
            f"{trained / reference:.3f}",
        )
        rows.append((name, *cells))
    print_table(rows)


if __name__ == "__main__":
    main()
