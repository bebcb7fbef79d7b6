"""The predicted time of a training step on W GPUs, from the time measured on one GPU and the bandwidths.

    python -m benchmarks.scaling --parameters 56e6 --seconds_per_image 6e-4 --batch 32 --numbers 3072

docs/scaling.md has the formulas and their assumptions. Nothing is measured here: the time per image is
1/(steps_per_second · batch) of a run on one GPU, whose log.jsonl has `steps_per_second`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from score_diffusion.run.console import print_table

GIB = 2**30
BUCKET = 25 * 2**20  # bytes of gradients that DDP sends at once
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Assumptions:
    """The parameters of the model of a step."""

    parameters: float
    """P, the weights of the network."""
    seconds_per_image: float
    """τ, of the forward and backward pass on one GPU at its batch size."""
    seconds_per_step: float
    """The rest of a step: optimizer, averages, kernel launches."""
    numbers: float
    """D, the numbers in one sample."""
    activations: float
    """Bytes stored for the backward pass per sample."""
    averages: int
    """Exponential moving averages of the weights."""
    blocks: int
    """Parts of the network whose weights FSDP gathers separately."""
    gpus_per_node: int
    bandwidth_within: float
    """Bytes per second and GPU between the GPUs of one node, in each direction."""
    bandwidth_between: float
    """Bytes per second and GPU between nodes, in each direction."""
    latency: float
    """Seconds per message of a collective operation."""
    normals: float
    """Normal random numbers that a GPU draws per second."""

    def bandwidth(self, ranks: int) -> float:
        """The bandwidth of the slowest link of the ring."""
        return self.bandwidth_within if ranks <= self.gpus_per_node else self.bandwidth_between


@dataclass(frozen=True)
class Step:
    """One step on one of W GPUs."""

    computation: float
    """Seconds without communication."""
    communication: float
    """Seconds of communication."""
    hidden: float
    """Seconds of communication that can overlap with the computation."""
    memory: float
    """Bytes."""
    bytes_sent: float

    @property
    def seconds(self) -> float:
        return self.computation + max(0.0, self.communication - self.hidden)


def step(a: Assumptions, ranks: int, batch: float, kind: str) -> Step:
    """The step for `batch` images per GPU; kind is "ddp" or "fsdp"."""
    # DDP reduces and gathers the gradients during the backward pass, which is two thirds of the computation.
    # FSDP gathers the weights once more, in the forward pass.
    rounds, overlap, messages = (2, 2 / 3, 4 * a.parameters / BUCKET) if kind == "ddp" else (3, 1.0, a.blocks)
    each_way = (ranks - 1) / ranks * 4 * a.parameters
    hops = math.ceil(messages) * math.log2(ranks)
    communication = rounds * (each_way / a.bandwidth(ranks) + hops * a.latency)
    held = 4 * (1 + 1 + 2 + a.averages) * a.parameters  # weights, gradients, Adam's two moments, averages
    noise = 2 * 4 * ranks * batch * a.numbers  # of the whole batch: for dequantization and for the SDE
    images, drawing = a.seconds_per_image * batch, 2 * ranks * batch * a.numbers / a.normals
    return Step(
        computation=images + a.seconds_per_step + drawing,
        communication=communication,
        hidden=overlap * images,
        memory=(held if kind == "ddp" else held / ranks) + a.activations * batch + noise,
        bytes_sent=rounds * each_way,
    )


def table(a: Assumptions, batch: float, kind: str, fixed: bool) -> list[tuple[str, ...]]:
    """Rows over W, for `batch` images per GPU, or in total if the global batch is fixed."""
    rows = [
        ("W", "batch", "images/s", "efficiency", "sent/step", "communication", "computation", "memory/GPU")
    ]
    rate_of_one = batch / step(a, 1, batch, kind).seconds
    for ranks in RANKS:
        per_gpu = batch / ranks if fixed else batch
        if per_gpu < 1:
            break
        s = step(a, ranks, per_gpu, kind)
        rate = per_gpu * ranks / s.seconds
        rows.append(
            (
                f"{ranks:,}",
                f"{per_gpu * ranks:,.0f}",
                f"{rate:,.0f}",
                f"{rate / (rate_of_one * ranks):.0%}",
                f"{s.bytes_sent / 1e6:,.0f} MB",
                f"{1e3 * s.communication:.1f} ms",
                f"{1e3 * s.computation:.1f} ms",
                f"{s.memory / GIB:.1f} GiB",
            )
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, required=True, help="weights of the network")
    parser.add_argument("--seconds_per_image", type=float, required=True, help="measured on one GPU")
    parser.add_argument("--seconds_per_step", type=float, default=5e-3, help="besides the images")
    parser.add_argument("--batch", type=float, default=32, help="images per GPU")
    parser.add_argument("--global_batch", type=float, default=1024, help="total images, second table")
    parser.add_argument("--numbers", type=float, default=3072, help="numbers per image")
    parser.add_argument("--activations", type=float, default=100e6, help="bytes per image")
    parser.add_argument("--averages", type=int, default=1, help="averages of the weights")
    parser.add_argument("--blocks", type=int, default=30, help="parts that FSDP gathers separately")
    parser.add_argument("--gpus_per_node", type=int, default=8, help="GPUs of a node")
    parser.add_argument("--bandwidth_within", type=float, default=200e9, help="bytes per second and GPU")
    parser.add_argument("--bandwidth_between", type=float, default=50e9, help="bytes per second and GPU")
    parser.add_argument("--latency", type=float, default=2e-5, help="seconds per message")
    parser.add_argument("--normals", type=float, default=5e10, help="normal random numbers per second")
    given = vars(parser.parse_args(argv))
    batch, global_batch = given.pop("batch"), given.pop("global_batch")
    assumptions = Assumptions(**given)
    for kind in ("ddp", "fsdp"):
        print(f"\n{kind}, {batch:g} images per GPU")
        print_table(table(assumptions, batch, kind, fixed=False))
        print(f"\n{kind}, {global_batch:g} images in total")
        print_table(table(assumptions, global_batch, kind, fixed=True))


if __name__ == "__main__":
    main()
