"""Images a second from every kind of source, beside what the training step takes at CIFAR-10's size.

    python -m benchmarks.data_loading
    python -m benchmarks.data_loading --device cuda --data cifar10-jpeg-train.zip

The same 32x32 colour images as an array in memory, a mapped .npy, a folder of PNG files and a zip of JPEG
files; all but the first are read batch by batch (data.memory_gib=0), as a set larger than memory is. The step
is that of `--config cifar10`.

    start        from the path to a data set: listing, sizes, checksums for the held-out split
    alone        batches as fast as they come, nothing else running
    in training  whole training steps on them; "of memory" is the share of the speed with the array in memory

Sources take turns. A source starves the step where "alone" is below "in training", and costs what "of memory"
lacks of 1.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from PIL import Image

from score_diffusion.run.build import data_options
from score_diffusion.run.config import load_config
from score_diffusion.run.console import print_table
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.training.trainer import Trainer

ROUNDS = 3


def make_images(count: int) -> np.ndarray:
    """Smooth random images, uint8 (N, 32, 32, 3): noise would not compress, and be slower than any photo."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    sized = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in small]
    return np.stack([np.asarray(image) for image in sized])


def write_sources(folder: Path, images: np.ndarray) -> dict[str, Path]:
    """The images in every form, by name."""
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
    """A source with a trainer on it."""

    def __init__(self, path: Path, in_memory: bool, config: ConfigDict, device: torch.device) -> None:
        config = config.copy_and_resolve_references()
        config.data.update(path=str(path), memory_gib=64.0 if in_memory else 0.0)
        start = time.perf_counter()
        dataset = load_dataset(data_options(config.data))
        self.start = time.perf_counter() - start
        self.device, self.trainer = device, Trainer(config, dataset, device)
        self.trainer.advance()

    def alone(self, steps: int) -> float:
        """Images a second."""
        feed, first = self.trainer.feed, self.trainer.step
        start = self._clock()
        count = sum(len(feed.read(feed.order.places(first + k))) for k in range(steps))
        return count / (self._clock() - start)

    def in_training(self, steps: int) -> float:
        """Images a second."""
        start = self._clock()
        for _ in range(steps):
            self.trainer.advance()
        return steps * self.trainer.config.training.batch_size / (self._clock() - start)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=10, help="training steps in each round")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--data", type=Path, help="a folder or zip of 32x32 colour images of your own")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
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
        alone, training = ({name: [] for name in contestants} for _ in range(2))
        for _ in range(ROUNDS):
            for name, contestant in contestants.items():
                alone[name].append(contestant.alone(10 * arguments.steps))
                training[name].append(contestant.in_training(arguments.steps))
    reference = statistics.median(training["array in memory"])
    rows = [("source", "start, s", "alone, images/s", "in training, images/s", "of memory")]
    for name, contestant in contestants.items():
        speed = statistics.median(training[name])
        fastest = statistics.median(alone[name])
        rows.append(
            (name, f"{contestant.start:.2f}", f"{fastest:,.0f}", f"{speed:,.1f}", f"{speed / reference:.3f}")
        )
    print_table(rows)


if __name__ == "__main__":
    main()
