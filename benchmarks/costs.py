"""What the systems cost: measured at toy scale, and predicted for the published sizes.

    python -m benchmarks.costs measured --systems cascade_shapes unclip_shapes
    python -m benchmarks.costs measured --systems cascade_mnist latent_mnist --path mnist.npz
    python -m benchmarks.costs predicted
    python -m benchmarks.costs utilization            # on a GPU

`measured` trains each stage for a few steps in a process of its own: parameters, the largest memory of that
process (of the GPU if there is one, else of the whole process), and seconds of a step, after a third of the
steps. `predicted` counts the floating-point operations and the memory of the published networks without
computing anything, and gives a step by the model of docs/scaling.md (benchmarks/scaling.py) at an assumed
utilization of the GPU. `utilization` measures that, on the GPU at hand.

References:
    Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022),
        https://arxiv.org/abs/2205.11487: Appendix F, the base model.
    Hierarchical Text-Conditional Image Generation with CLIP Latents (Ramesh et al., 2022),
        https://arxiv.org/abs/2204.06125: Appendix C, the decoder.
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233:
        Table 11, ADM at 256 pixels.
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022),
        https://arxiv.org/abs/2112.10752, and the model card of Stable Diffusion 1.5.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling import GIB, Assumptions, step
from score_diffusion.models import TextEncoder, UNet
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.commands.train import train
from score_diffusion.run.config import load_config, with_values
from score_diffusion.run.console import print_table
from score_diffusion.run.systems.configuration import load_system, names_system
from score_diffusion.run.training.log import read_log

SYSTEMS = ("text_digits", "text_shapes", "cascade_shapes", "glide_shapes", "unclip_shapes")
PEAK = 989e12  # operations per second of an H100 SXM in bfloat16, dense, by its data sheet
MEMORY = 72 * GIB  # of its 80 GB, for what is counted here
HELD = 10e-3  # seconds per step besides the images
Arguments = tuple[object, ...]


# ---- Measured ----


def stages_of(name: str, workdir: Path, path: str) -> dict[str, tuple[ConfigDict, Path]]:
    """The configuration and the run directory of each stage; an experiment of one run is one stage."""
    overrides = [("data.path", path)] if path else []
    if not names_system(name):
        return {"": (with_values(load_config(name), dict(overrides)), workdir)}
    system, configs = load_system(name, workdir, overrides)
    return {stage: (config, system.stage(stage)) for stage, config in configs.items()}


def train_a_little(name: str, stage: str, workdir: Path, path: str, steps: int) -> None:
    """Trains one stage, in a process that ends with it; leaves its peak memory in bytes in the file PEAK."""
    config, run = stages_of(name, workdir, path)[stage]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    short = {"steps": steps, "log_every": steps // 3, "checkpoint_every": steps, "preview_samples": 0}
    with open(os.devnull, "w") as sys.stdout:
        train(with_values(config, {f"training.{key}": value for key, value in short.items()}), run, device)
    of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else of_process
    (run / "PEAK").write_text(str(peak))


def measured(names: Sequence[str], path: str, steps: int) -> list[tuple[str, ...]]:
    """A row for each stage of each system."""
    quiet = os.getloadavg()[0] < 1
    rows = [("system", "stage", "batch", "parameters", "peak memory", "seconds per step", "")]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            for stage, (config, run) in stages_of(name, Path(folder), path).items():
                arguments = (name, stage, Path(folder), path, steps)
                child = multiprocessing.get_context("spawn").Process(target=train_a_little, args=arguments)
                child.start()
                child.join()
                if child.exitcode:
                    raise SystemExit(f"{name} {stage} could not be trained")
                weights = checkpoint.at_step(run, steps).model.values()
                rate = read_log(run)[-1]["steps_per_second"]
                rows.append(
                    (
                        name,
                        stage,
                        f"{config.training.batch_size}",
                        f"{sum(w.numel() for w in weights):,}",
                        f"{int((run / 'PEAK').read_text()) / GIB:.2f} GiB",
                        f"{1 / rate:.3f}",
                        "" if quiet else "busy",
                    )
                )
    return rows


# ---- Predicted ----


@dataclass(frozen=True)
class Published:
    """A published network and its training."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Arguments]
    """The arguments of its forward pass, for a number of images."""
    numbers: int
    """In one sample."""
    batch: int
    steps: int


def _image(batch: int, channels: int, side: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(batch, channels, side, side), torch.zeros(batch)


def _of_64_pixels(**options: object) -> UNet:
    """The network of Imagen's base model and of DALL-E 2's decoder."""
    return UNet(
        3, channels=512, multipliers=(1, 2, 3, 4), blocks_per_level=3, attention_levels=(1, 2, 3),
        head_channels=64, resampling="residual", **options,  # type: ignore[arg-type]
    )  # fmt: skip


class WithText(nn.Module):
    """DALL-E 2's decoder, with the text encoder that is trained with it; ids of words are not checked."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _of_64_pixels(token_dim=2048, vector_dim=2048, out_channels=6)
        self.encoder = TextEncoder(words=50_000, width=2048, depth=24, heads=32)

    def forward(self, x: Tensor, noise: Tensor, ids: Tensor) -> Tensor:
        tokens, valid, vector = self.encoder(ids)
        return self.net(x, noise, {"tokens": tokens, "mask": valid, "vector": vector})


def _adm_256() -> UNet:
    return UNet(
        3, channels=256, multipliers=(1, 1, 2, 2, 4, 4), blocks_per_level=2, attention_levels=(3, 4, 5),
        head_channels=64, resampling="residual", out_channels=6, num_classes=1000,
    )  # fmt: skip


def _stable_diffusion() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


# Imagen's base model, DALL-E 2's decoder, the U-Net of Stable Diffusion 1.5, and ADM for 256x256 pixels.
PUBLISHED = {
    "imagen": Published(
        lambda: _of_64_pixels(token_dim=4096),
        lambda b: (*_image(b, 3, 64), {"tokens": torch.zeros(b, 128, 4096)}), 3 * 64**2, 2048, 2_500_000,
    ),
    "dalle2": Published(
        WithText,
        lambda b: (*_image(b, 3, 64), torch.ones(b, 256, dtype=torch.int64)), 3 * 64**2, 2048, 800_000,
    ),
    "sd15": Published(
        _stable_diffusion, lambda b: (*_image(b, 4, 64), torch.zeros(b, 77, 768)), 4 * 64**2, 2048, 595_000,
    ),
    "adm256": Published(
        _adm_256, lambda b: _image(b, 3, 256), 3 * 256**2, 256, 1_980_000,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Of a network in bfloat16 autocast."""

    parameters: int
    operations: float
    """Of the forward pass of one image."""
    activations: float
    """Bytes that the backward pass of one image needs."""
    constant: float
    """Bytes that it needs whatever the number of images: copies of weights in bfloat16."""


def _attention_operations(q: Sequence[int], k: Sequence[int], *rest: object, **others: object) -> int:
    batch, heads, length, size = q
    return 4 * batch * heads * length * k[2] * size


ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations}


def count(published: Published, recompute: bool) -> Counts:
    """Counts a network's operations and memory on tensors without data."""
    with FakeTensorMode():
        net = published.make().train()
        if recompute:
            recompute_blocks(net)
        one, two = (_forward(net, published.inputs(batch)) for batch in (1, 2))
    parameters = sum(p.numel() for p in net.parameters())
    return Counts(parameters, two[0] - one[0], two[1] - one[1], 2 * one[1] - two[1])


def _forward(net: nn.Module, inputs: Arguments) -> tuple[int, int]:
    """The operations of a forward pass, and the bytes that its backward pass needs."""
    kept = {p.untyped_storage() for p in net.parameters()}
    total = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal total
        if x.untyped_storage() not in kept:
            kept.add(x.untyped_storage())
            total += x.untyped_storage().nbytes()
        return x

    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
    with counter, torch.autocast("cpu", torch.bfloat16), hooks:
        net(*inputs)
    return counter.get_total_flops(), total


def recompute_blocks(net: nn.Module) -> None:
    """Sets training.recompute, or what diffusers calls it."""
    if hasattr(net, "enable_gradient_checkpointing"):
        net.enable_gradient_checkpointing()
    else:
        next(module for module in net.modules() if isinstance(module, UNet)).recompute_blocks()


@dataclass(frozen=True)
class Plan:
    """A way to take a step on W GPUs, and what it costs."""

    parallel: str
    recompute: bool
    micro_batch: int
    accumulate: int
    seconds: float
    memory: dict[str, float]
    """Bytes per GPU, by `parallel`."""


def plans(
    published: Published, ranks: int, utilization: float, by_recompute: dict[bool, Counts]
) -> list[Plan]:
    """All plans whose micro-batch is a power of two that fits into memory."""
    found = []
    for recompute, counts in by_recompute.items():
        passes = 4 if recompute else 3  # the backward pass takes twice as long as the forward pass
        assumptions = Assumptions(
            parameters=counts.parameters,
            seconds_per_image=passes * counts.operations / (utilization * PEAK),
            seconds_per_step=0.0,
            numbers=published.numbers,
            activations=counts.activations,
            averages=1,
            blocks=30,
            gpus_per_node=8,
            bandwidth_within=200e9,
            bandwidth_between=50e9,
            latency=2e-5,
            normals=5e10,
        )
        micro_batch = published.batch // ranks
        while micro_batch >= 1:
            by_kind = {kind: step(assumptions, ranks, micro_batch, kind) for kind in ("ddp", "fsdp")}
            memory = {kind: s.memory + counts.constant for kind, s in by_kind.items()}
            accumulate = published.batch // ranks // micro_batch
            for kind, s in by_kind.items():
                if memory[kind] <= MEMORY:
                    seconds = HELD + accumulate * s.seconds
                    found.append(Plan(kind, recompute, micro_batch, accumulate, seconds, memory))
            micro_batch //= 2
    return found


def simplest(found: Sequence[Plan]) -> Plan:
    """The simplest of the plans that take at most 5 % longer than the fastest."""
    fastest = min(plan.seconds for plan in found)
    near = [plan for plan in found if plan.seconds <= 1.05 * fastest]
    return min(near, key=lambda plan: (plan.parallel != "ddp", plan.recompute, plan.accumulate))


def predicted(names: Sequence[str], utilization: float) -> list[tuple[str, ...]]:
    """A row for each published network on 8 and on 64 GPUs."""
    rows = [
        (
            *("network", "parameters", "forward", "activations", "recomputed", "GPUs", "set"),
            *("memory, ddp", "memory, fsdp", "step", "published steps"),
        )
    ]
    for name in names:
        published = PUBLISHED[name]
        counts = {recompute: count(published, recompute) for recompute in (False, True)}
        plain = counts[False]
        for ranks in (8, 64):
            best = simplest(plans(published, ranks, utilization, counts))
            rows.append(
                (
                    name,
                    f"{plain.parameters / 1e9:.2f} B",
                    f"{plain.operations / 1e12:.2f} TFLOP",
                    f"{plain.activations / GIB:.2f} GiB",
                    f"{counts[True].activations / GIB:.2f} GiB",
                    f"{ranks}",
                    f"{best.parallel}, {best.accumulate} x {best.micro_batch}"
                    + (", recompute" if best.recompute else ""),
                    *(f"{best.memory[kind] / GIB:.0f} GiB" for kind in ("ddp", "fsdp")),
                    f"{best.seconds:.1f} s",
                    f"{published.steps:,} in {best.seconds * published.steps / 86400:,.0f} days",
                )
            )
    return rows


# ---- The utilization of a GPU ----


def utilization_of_gpu(names: Sequence[str], micro_batch: int, rounds: int) -> list[tuple[str, ...]]:
    """Forward and backward passes of the published networks on this GPU, in bfloat16, compiled."""
    rows = [("network", "images", "seconds per image", "of the H100's peak", "peak memory")]
    for name in names:
        published = PUBLISHED[name]
        counts = count(published, False)
        torch.cuda.reset_peak_memory_stats()
        with torch.device("cuda"):
            net, inputs = published.make().train(), published.inputs(micro_batch)
        compiled = torch.compile(net)

        def passes(run: nn.Module = compiled, given: Arguments = inputs) -> None:
            with torch.autocast("cuda", torch.bfloat16):
                out = run(*given)
            (out if isinstance(out, Tensor) else out[0]).float().square().mean().backward()

        passes()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(rounds):
            passes()
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / rounds / micro_batch
        rows.append(
            (
                name,
                f"{micro_batch}",
                f"{seconds:.4f}",
                f"{3 * counts.operations / seconds / PEAK:.0%}",
                f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB",
            )
        )
        del net, compiled
        torch.cuda.empty_cache()
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("measured", "predicted", "utilization"))
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, help="experiments to measure")
    parser.add_argument("--path", default="", help="data.path of their stages")
    parser.add_argument("--steps", type=int, default=30, help="steps that are trained to measure")
    parser.add_argument("--networks", nargs="+", default=tuple(PUBLISHED), choices=PUBLISHED)
    parser.add_argument("--utilization", type=float, default=0.25, help="share of the peak that is reached")
    parser.add_argument("--micro_batch", type=int, default=8, help="images at a time, on the GPU at hand")
    given = parser.parse_args(argv)
    if given.what == "measured":
        print_table(measured(given.systems, given.path, given.steps))
    elif given.what == "predicted":
        print_table(predicted(given.networks, given.utilization))
    else:
        print_table(utilization_of_gpu(given.networks, given.micro_batch, rounds=5))


if __name__ == "__main__":
    main()
