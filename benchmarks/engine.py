"""The overhead of the training engine over a bare loop.

    python -m benchmarks.engine                     # digits and CIFAR size, on the GPU if there is one
    python -m benchmarks.engine --rounds 3 --steps 2 --cifar_images 512 --cifar_batch 8      # a quick look

Both train the same network on the same data in one process, and take turns of `--steps` steps. The bare loop
has a batch of random indices, dequantization, noise, times, network, loss, backward pass, clipping, Adam and
one average, nothing else. The engine is `Trainer.advance`, with all that lets a step resume exactly, be
skipped and be logged. "Data" is the share of the engine's time that drawing and reading a batch takes. The
table has medians over the turns; a turn ends when the device has finished it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from ml_collections import ConfigDict
from torch import nn

from score_diffusion.run.builders.training import build_trainer
from score_diffusion.run.config import apply_overrides, load_config
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.training.trainer import Trainer
from score_diffusion.sde_lib import denoising_score_matching, dequantize


def bare_loop(trainer: Trainer, section: ConfigDict, dataset: Dataset) -> Callable[[], None]:
    """One step of the smallest training loop, with its own copy of the model and its own optimizer."""
    device = trainer.device
    model, average = copy.deepcopy(trainer.model), copy.deepcopy(trainer.model)
    weights, averages = list(model.parameters()), list(average.parameters())
    optimizer = torch.optim.Adam(weights, lr=section.learning_rate, fused=True)
    data, sde = dataset.train.to(device), model.sde

    def step() -> None:
        samples = data[torch.randint(len(data), (section.batch_size,), device=device)]
        x_0 = dequantize(samples, dataset.levels, torch.rand(samples.shape, device=device))
        t = 1e-5 + (sde.T - 1e-5) * torch.rand(len(x_0), device=device)
        loss = denoising_score_matching(sde, model, x_0, t, torch.randn_like(x_0)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, section.grad_clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - section.ema_decay)

    return step


def timed(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Mean seconds of a step over a turn."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def measure(name: str, config: ConfigDict, dataset: Dataset, rounds: int, steps: int) -> str:
    """One row of the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = build_trainer(config, dataset, device)
    contestants = {
        "bare": bare_loop(trainer, config.training, dataset),
        "engine": trainer.advance,
        "data": lambda: trainer.batches.read(trainer.batches.draw(trainer.step)),
    }
    seconds: dict[str, list[float]] = {key: [] for key in contestants}
    for step in contestants.values():
        timed(step, steps, device)  # warm-up
    for _ in range(rounds):
        for key, step in contestants.items():
            seconds[key].append(timed(step, steps, device))
    bare, engine, data = (statistics.median(seconds[key]) for key in contestants)
    # The ratio of neighbouring turns: a machine that slows down slows both.
    over = statistics.median(e / b - 1 for e, b in zip(seconds["engine"], seconds["bare"], strict=True))
    rate = config.training.batch_size / engine
    cells = (f"{1e3 * bare:.2f}", f"{1e3 * engine:.2f}", f"{100 * over:+.1f} %", f"{rate:,.0f}")
    return f"| {name} | {' | '.join(cells)} | {100 * data / engine:.2f} % |"


def cifar_sized(images: int) -> Dataset:
    """Random images of CIFAR-10's shape: the time does not depend on the pixels."""
    generator = torch.Generator().manual_seed(0)
    train, test = (
        torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8) for n in (images, 256)
    )
    return Dataset("noise", train, test, Scaling(levels=256))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=5, help="steps in a turn")
    parser.add_argument("--cifar_images", type=int, default=50_000, help="images of the CIFAR-size set")
    parser.add_argument("--cifar_batch", type=int, default=32, help="batch size at CIFAR size")
    arguments = parser.parse_args(argv)
    single = ("training.precision", "float32")  # like the bare loop
    cifar10 = apply_overrides(
        load_config("cifar10"), [("training.batch_size", str(arguments.cifar_batch)), single]
    )
    experiments = {
        "vpsde, digits 1x8x8": (apply_overrides(load_config("vpsde"), [single]), load_digits()),
        "cifar10, 3x32x32": (cifar10, cifar_sized(arguments.cifar_images)),
    }
    where = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    )
    print(f"{where}, PyTorch {torch.__version__}\n")
    print("| training | bare, ms per step | engine, ms per step | engine over bare | images/s | data |")
    print("|---|---|---|---|---|---|")
    for name, (config, dataset) in experiments.items():
        print(measure(name, config, dataset, arguments.rounds, arguments.steps), flush=True)


if __name__ == "__main__":
    main()
