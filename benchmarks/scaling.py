"""What a training step costs on W GPUs: a table from a step time that was measured on one and a bandwidth.

    python -m benchmarks.scaling --parameters 56e6 --seconds_per_image 6e-4 --batch 32 --numbers 3072

The formulas and their assumptions are those of docs/scaling.md. Nothing is measured here: the step time is
what `steps_per_second` in a run's log.jsonl says for one GPU, divided by its batch.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from score_diffusion.run.console import print_table

GIB = 2**30
BUCKET = 25 * 2**20  # bytes of gradients that DDP sends at once
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Assumptions:
    """What the model of a step is made of."""

    parameters: float
    """P, of the network."""
    seconds_per_image: float
    """τ, of forward and backward on one GPU at the batch that it works on."""
    seconds_per_step: float
    """Of a step beside that: optimizer, averages, launches."""
    numbers: float
    """D, per sample."""
    activations: float
    """Bytes that one sample keeps for the backward pass."""
    averages: int
    """Exponential moving averages of the weights."""
    blocks: int
    """Parts of the network whose weights FSDP gathers on their own."""
    gpus_per_node: int
    bandwidth_within: float
    """Bytes per second and GPU between the GPUs of a node, each way."""
    bandwidth_between: float
    """Bytes per second and GPU between nodes, each way."""
    latency: float
    """Seconds of one message of a collective."""
    normals: float
    """Random numbers that a GPU draws in a second."""

    def bandwidth(self, ranks: int) -> float:
        """That of the slowest link of the ring."""
        return self.bandwidth_within if ranks <= self.gpus_per_node else self.bandwidth_between


@dataclass(frozen=True)
class Step:
    """One step of one GPU among W."""

    computation: float
    """Seconds, everything but communication."""
    communication: float
    """Seconds on the wire."""
    hidden: float
    """Seconds of these that the computation hides at most."""
    memory: float
    bytes_sent: float

    @property
    def seconds(self) -> float:
        return self.computation + max(0.0, self.communication - self.hidden)


def step(a: Assumptions, ranks: int, batch: float, kind: str) -> Step:
    """A step with so many images per GPU; kind is "ddp" or "fsdp"."""
    # DDP: reduce-scatter and all-gather beside the backward pass, two thirds of the work on an image. FSDP
    # gathers the weights once more, in the forward pass.
    rounds, overlap, messages = (2, 2 / 3, 4 * a.parameters / BUCKET) if kind == "ddp" else (3, 1.0, a.blocks)
    each_way = (ranks - 1) / ranks * 4 * a.parameters
    hops = math.ceil(messages) * math.log2(ranks)
    communication = rounds * (each_way / a.bandwidth(ranks) + hops * a.latency)
    held = 4 * (1 + 1 + 2 + a.averages) * a.parameters  # weights, gradients, Adam's two moments, averages
    whole_batch = 2 * 4 * ranks * batch * a.numbers  # the noise of dequantization and of the SDE
    images, drawing = a.seconds_per_image * batch, 2 * ranks * batch * a.numbers / a.normals
    return Step(
        computation=images + a.seconds_per_step + drawing,
        communication=communication,
        hidden=overlap * images,
        memory=(held if kind == "ddp" else held / ranks) + a.activations * batch + whole_batch,
        bytes_sent=rounds * each_way,
    )


def table(a: Assumptions, batch: float, kind: str, fixed: bool) -> list[tuple[str, ...]]:
    """Rows over W: so many images per GPU, or in all where the global batch is fixed."""
    rows = [
        ("W", "batch", "images/s", "efficiency", "sent/step", "communication", "computation", "memory/GPU")
    ]
    alone = batch / step(a, 1, batch, kind).seconds
    for ranks in RANKS:
        each = batch / ranks if fixed else batch
        if each < 1:
            break
        s = step(a, ranks, each, kind)
        rate = each * ranks / s.seconds
        rows.append(
            (
                f"{ranks:,}",
                f"{each * ranks:,.0f}",
                f"{rate:,.0f}",
                f"{rate / (alone * ranks):.0%}",
                f"{s.bytes_sent / 1e6:,.0f} MB",
                f"{1e3 * s.communication:.1f} ms",
                f"{1e3 * s.computation:.1f} ms",
                f"{s.memory / GIB:.1f} GiB",
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, required=True)
    parser.add_argument("--seconds_per_image", type=float, required=True, help="measured on one GPU")
    parser.add_argument("--seconds_per_step", type=float, default=5e-3, help="beside the images")
    parser.add_argument("--batch", type=float, default=32, help="images per GPU")
    parser.add_argument("--global_batch", type=float, default=1024, help="images in all, of the second table")
    parser.add_argument("--numbers", type=float, default=3072, help="per image")
    parser.add_argument("--activations", type=float, default=100e6, help="bytes per image")
    parser.add_argument("--averages", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=30, help="that FSDP gathers on their own")
    parser.add_argument("--gpus_per_node", type=int, default=8)
    parser.add_argument("--bandwidth_within", type=float, default=200e9, help="bytes per second and GPU")
    parser.add_argument("--bandwidth_between", type=float, default=50e9, help="bytes per second and GPU")
    parser.add_argument("--latency", type=float, default=2e-5, help="seconds per message")
    parser.add_argument("--normals", type=float, default=5e10, help="random numbers per second")
    given = vars(parser.parse_args())
    batch, global_batch = given.pop("batch"), given.pop("global_batch")
    assumptions = Assumptions(**given)
    for kind in ("ddp", "fsdp"):
        print(f"\n{kind}, {batch:g} images per GPU")
        print_table(table(assumptions, batch, kind, fixed=False))
        print(f"\n{kind}, {global_batch:g} images in all")
        print_table(table(assumptions, global_batch, kind, fixed=True))


if __name__ == "__main__":
    main()
