"""Time of a forward pass and of a training step of the networks, compared to diffusers' UNet2DModel.

    python -m benchmarks.networks                # 32x32x3, 32 channels, batch 16: minutes on two CPU cores
    python -m benchmarks.networks --compile      # also with torch.compile
    python -m benchmarks.networks --cifar10      # DDPM++ at full size, batches of 128 and 512, for a GPU
    python -m benchmarks.networks --rounds 1 --repeats 1 --batch 2      # a quick look

All contestants take turns in one process; the table has medians. A step is a forward pass, mean squared
error, backward pass, Adam and a moving average. Ours uses fused Adam and a foreach average. diffusers has two
rows: with the same optimizer ("tuned"), and with torch's default AdamW and diffusers' EMAModel ("as users
do"). "DDPM" is the same network in both libraries, weight by weight. The operations are those of convolutions
and matrix products (PyTorch's counter). The peak is the fastest of several 3x3 convolutions on a CPU, of
matrix products on a GPU, measured in turn with the contestants. The last column is the speed in images per
second relative to the first row.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from score_diffusion.models import PRESETS, UNet
from score_diffusion.run.checkpoints.formats import diffusers as diffusers_format
from score_diffusion.run.console import print_table

SIZE, CHANNELS = 32, 3
PEAK_RUNS, PEAK_SECONDS = 11, 2.0  # of an operation at most, whichever comes first
SMALL = dict(channels=32, multipliers=(1, 2, 2), blocks_per_level=2, attention_levels=(1,), dropout=0.0)
PEER = dict(
    sample_size=SIZE, in_channels=3, out_channels=3, block_out_channels=(32, 64, 64), layers_per_block=2,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8, attention_head_dim=None,
)  # fmt: skip
FULL_PEER = dict(
    sample_size=SIZE, in_channels=3, out_channels=3, block_out_channels=(128, 256, 256, 256),
    layers_per_block=4, down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=None,
)  # fmt: skip


@dataclass
class Contestant:
    """A network with its optimizer and its measurements."""

    name: str
    net: nn.Module
    batch: int
    device: torch.device
    autocast: bool = False
    as_users_do: bool = False
    forwards: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    memory: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, CHANNELS, SIZE, SIZE)
        self.x, self.target = (torch.randn(shape, generator=generator).to(self.device) for _ in range(2))
        self.t = (999 * torch.rand(self.batch, generator=generator)).to(self.device)
        self.weights = list(self.net.parameters())
        if self.as_users_do:
            self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4)
            self.ema = EMAModel(self.weights, decay=0.999)
        else:
            self.optimizer = torch.optim.Adam(self.weights, lr=1e-4, fused=True)
            self.averages = [w.detach().clone() for w in self.weights]
        # Attention as matrix products: the counter ignores fused attention on a CPU and counts part of it
        # twice on a GPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.loss().backward()
        self.operations = counter.get_total_flops()

    def forward(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            out = self.net(self.x, self.t)
        return (out if isinstance(out, Tensor) else out.sample).float()

    def loss(self) -> Tensor:
        return (self.forward() - self.target).square().mean()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        if self.as_users_do:
            self.ema.step(self.weights)
        else:
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.weights, 1e-3)

    def take_turn(self, repeats: int) -> None:
        """One step to warm the caches, then the measured steps and forward passes, so many of each."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.step()
        self.steps += [timed(self.step, self.device) for _ in range(repeats)]
        with torch.no_grad():
            self.forwards += [timed(self.forward, self.device) for _ in range(repeats)]
        if self.device.type == "cuda":
            self.memory = torch.cuda.max_memory_allocated()


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """The highest rate measured, in operations per second."""
    runs: list[tuple[Callable[[], object], float]] = []
    if device.type == "cuda":
        for n in (4096, 8192):
            a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
            runs.append((lambda a=a, b=b: a @ b, 2.0 * n**3))
    else:
        for channels, size in ((64, 32), (128, 32), (128, 16), (256, 16)):
            x = torch.randn(16, channels, size, size, dtype=dtype)
            w = torch.randn(channels, channels, 3, 3, dtype=dtype)
            runs.append((lambda x=x, w=w: F.conv2d(x, w, padding=1), 2.0 * 16 * size**2 * 9 * channels**2))
    with torch.no_grad():
        return max(operations / median_seconds(run, device) for run, operations in runs)


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of some calls; fewer where they take long, as in half precision on a CPU without it."""
    seconds: list[float] = []
    while len(seconds) < PEAK_RUNS and sum(seconds) < PEAK_SECONDS:
        seconds.append(timed(run, device))
    return statistics.median(seconds)


def same_network() -> tuple[UNet2DModel, UNet]:
    """DDPM in diffusers and in this library, with the same weights."""
    torch.manual_seed(0)
    theirs = UNet2DModel(**PEER)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        description = diffusers_format.describe(Path(folder))
        ours = UNet(CHANNELS, **description.network)
        ours.load_state_dict(diffusers_format.read(ours, Path(folder)).model)
    return theirs, ours


def small_contestants(device: torch.device, batch: int, compiled: bool) -> list[Contestant]:
    theirs, ddpm = same_network()
    nets = {
        "DDPM": ddpm,
        "default UNet": UNet(CHANNELS, **SMALL, heads=1),
        "DDPM++": UNet(CHANNELS, **{**PRESETS["cifar10_ddpmpp"], **SMALL}),
        "NCSN++": UNet(CHANNELS, **{**PRESETS["cifar10_ncsnpp"], **SMALL}),
    }

    def of(name: str, net: nn.Module, autocast: bool = False, as_users_do: bool = False) -> Contestant:
        return Contestant(name, copy.deepcopy(net).to(device), batch, device, autocast, as_users_do)

    result = [of("diffusers DDPM, as users do", theirs, as_users_do=True)]
    result.append(of("diffusers DDPM, tuned", theirs))
    result.append(of("diffusers DDPM, tuned, bf16", theirs, autocast=True))
    for name, net in nets.items():
        result += [of(name, net), of(f"{name}, bf16", net, autocast=True)]
    if compiled:
        result.append(of("DDPM, bf16, compiled", torch.compile(ddpm), autocast=True))
    return result


def full_contestants(device: torch.device, batch: int) -> list[Contestant]:
    torch.manual_seed(0)
    ours = UNet(CHANNELS, **PRESETS["cifar10_ddpmpp"])

    def of(name: str, net: nn.Module, autocast: bool = False, as_users_do: bool = False) -> Contestant:
        return Contestant(f"{name}, batch {batch}", net.to(device), batch, device, autocast, as_users_do)

    last = copy.deepcopy(ours).to(memory_format=torch.channels_last)
    return [
        of("diffusers, fp32, as users do", UNet2DModel(**FULL_PEER), as_users_do=True),
        of("DDPM++, fp32", copy.deepcopy(ours)),
        of("DDPM++, bf16", copy.deepcopy(ours), autocast=True),
        of("DDPM++, bf16, compiled", torch.compile(copy.deepcopy(ours)), autocast=True),
        of("DDPM++, bf16, compiled, channels last", torch.compile(last), autocast=True),
    ]


def report(contestants: Iterable[Contestant], peaks: dict[bool, float], reference: float) -> list[dict]:
    rows = []
    for c in contestants:
        step = statistics.median(c.steps)
        rows.append(
            dict(
                network=c.name,
                parameters=sum(w.numel() for w in c.weights),
                forward_ms=1e3 * statistics.median(c.forwards),
                step_ms=1e3 * step,
                images_per_second=c.batch / step,
                gflops=c.operations / step / 1e9,
                share_of_peak=c.operations / step / peaks[c.autocast],
                times_diffusers=reference / (step / c.batch),
                peak_memory_gib=c.memory / 2**30,
            )
        )
    header = ("network", "parameters", "forward ms", "step ms", "images/s", "GFLOP/s", "of peak", "speed")
    print_table(
        [
            header,
            *(
                (
                    row["network"],
                    f"{row['parameters']:,}",
                    f"{row['forward_ms']:.1f}",
                    f"{row['step_ms']:.1f}",
                    f"{row['images_per_second']:.1f}",
                    f"{row['gflops']:.0f}",
                    f"{row['share_of_peak']:.0%}",
                    f"{row['times_diffusers']:.2f}",
                )
                for row in rows
            ),
        ]
    )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="turns of each contestant")
    parser.add_argument("--repeats", type=int, default=3, help="steps and forward passes of a turn")
    parser.add_argument("--batch", type=int, default=16, help="batch size of the small networks")
    parser.add_argument("--compile", action="store_true", help="add a compiled network; minutes longer")
    parser.add_argument("--cifar10", action="store_true", help="DDPM++ at full size, for a GPU")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512], help="batch sizes of --cifar10")
    parser.add_argument("--json", type=Path, help="also write the figures to this file, with date and device")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtypes = {False: torch.float32, True: torch.bfloat16}
    groups = (
        [lambda batch=batch: full_contestants(device, batch) for batch in arguments.batches]
        if arguments.cifar10
        else [lambda: small_contestants(device, arguments.batch, arguments.compile)]
    )
    rows = []
    for group in groups:
        contestants, seen = group(), {half: [] for half in dtypes}
        for contestant in contestants:  # warm-up
            contestant.take_turn(1)
            contestant.forwards.clear()
            contestant.steps.clear()
        for _ in range(arguments.rounds):
            for half, dtype in dtypes.items():
                seen[half].append(peak(device, dtype))
            for contestant in contestants:
                contestant.take_turn(arguments.repeats)
        peaks = {half: statistics.median(values) for half, values in seen.items()}
        reference = statistics.median(contestants[0].steps) / contestants[0].batch
        rows += report(contestants, peaks, reference)
        del contestants
    print(f"\npeak: {peaks[False] / 1e9:.0f} GFLOP/s float32, {peaks[True] / 1e9:.0f} bfloat16, {name}")
    if arguments.json:
        record = dict(date=str(date.today()), device=name, peaks=peaks, rows=rows)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
