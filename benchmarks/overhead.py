"""The overhead of a sampler's step: microseconds per step with a constant score, which costs nothing.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --rounds 1      # a quick look

Batches of 16x3x32x32 in float32 on the CPU. Ours and azula: complete runs of 20 steps, divided by 20.
diffusers: only the calls of `scheduler.step`. The ancestor: the arithmetic of score_sde_pytorch for one step
of the reverse diffusion predictor and one of the Langevin corrector. The floor is one fused update of the
states, `torch.add(x, y, alpha=a)`. All contestants take turns; the table has medians. The rows of azula are
missing where it is not installed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import diffusers
import torch
from torch import Tensor

from benchmarks.peers import azula
from score_diffusion.samplers import SAMPLERS, Grid, PCSampler, Sampler, make_sampler, uniform_grid
from score_diffusion.sde_lib import VPSDE

SHAPE, STEPS = (16, 3, 32, 32), 20


def of_ours(sampler: Sampler, score: Tensor, x: Tensor) -> Callable[[], float]:
    steps = len(sampler.times) - 1

    def run() -> float:
        start = time.perf_counter()
        sampler(lambda x, t: score, SHAPE, x_T=x)
        return (time.perf_counter() - start) / steps

    return run


def of_diffusers(scheduler: object, score: Tensor, x: Tensor) -> Callable[[], float]:
    def run() -> float:
        scheduler.set_timesteps(STEPS)
        state, spent = x, 0.0
        for t in scheduler.timesteps:
            start = time.perf_counter()
            state = scheduler.step(score, t, state).prev_sample
            spent += time.perf_counter() - start
        return spent / STEPS

    return run


def of_azula(cls: type, score: Tensor, x: Tensor) -> Callable[[], float]:
    sde = VPSDE()

    class Denoiser:
        @staticmethod
        def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
            return sde.alpha(t), sde.sigma(t)

        def __call__(self, x: Tensor, t: Tensor) -> SimpleNamespace:
            return SimpleNamespace(mean=score)

    sampler = cls(Denoiser(), start=1.0, stop=1e-3, steps=STEPS, silent=True)

    def run() -> float:
        start = time.perf_counter()
        sampler(x)
        return (time.perf_counter() - start) / STEPS

    return run


def of_ancestor(score: Tensor, x: Tensor, snr: float = 0.16) -> Callable[[], float]:
    """The tables, batch norms and broadcasts of score_sde_pytorch."""
    sde = VPSDE()
    betas, alphas = sde.discrete_betas, sde.alphas

    def std(index: Tensor) -> Tensor:
        """The standard deviation that its score function, -net/std(t), computes in each call."""
        return sde.marginal_prob(torch.zeros_like(x), index / 999)[1][:, None, None, None]

    def run() -> float:
        start, state = time.perf_counter(), x
        for k in torch.linspace(999, 0, STEPS).long().tolist():
            index = (torch.full((len(x),), k / 999) * 999).long()
            gradient = -score / std(index)
            noise = torch.randn_like(state)
            grad_norm = gradient.reshape(len(x), -1).norm(dim=-1).mean()
            noise_norm = noise.reshape(len(x), -1).norm(dim=-1).mean()
            step = (snr * noise_norm / grad_norm) ** 2 * 2 * alphas[index]
            mean = state + step[:, None, None, None] * gradient
            state = mean + torch.sqrt(step * 2)[:, None, None, None] * noise
            beta = betas[index]
            f = torch.sqrt(alphas[index])[:, None, None, None] * state - state
            f = f - beta[:, None, None, None] * (-score / std(index))
            noise = torch.randn_like(state)
            state = state - f + torch.sqrt(beta)[:, None, None, None] * noise
        return (time.perf_counter() - start) / STEPS

    return run


def of_floor(score: Tensor, x: Tensor) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            torch.add(x, score, alpha=0.1)
        return (time.perf_counter() - start) / STEPS

    return run


def contestants() -> dict[str, Callable[[], float]]:
    """Functions by name that run once and return the seconds per step."""
    generator = torch.Generator().manual_seed(0)
    x, score = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    sde = VPSDE()
    runs = {"floor: one fused update": of_floor(score, x)}
    for name, spec in SAMPLERS.items():
        if spec.nfe_per_step and name != "pc":
            sampler = make_sampler(name, sde, grid=Grid(spec.grid, STEPS))
            runs[name] = of_ours(sampler, score, x)
    sampler = PCSampler(sde, uniform_grid(sde, STEPS), denoise=False)
    runs["pc: predictor and Langevin corrector"] = of_ours(sampler, score, x)
    runs["ancestor: predictor and Langevin corrector"] = of_ancestor(score, x)
    for name in ("DDIM", "DDPM", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "EulerDiscrete"):
        runs[f"diffusers {name}"] = of_diffusers(getattr(diffusers, f"{name}Scheduler")(), score, x)
    if azula is not None:
        for name in ("DDIM", "DDPM", "xEAB"):
            runs[f"azula {name}"] = of_azula(getattr(azula.sample, f"{name}Sampler"), score, x)
    return runs


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="turns of each contestant")
    rounds = parser.parse_args(argv).rounds
    diffusers.logging.set_verbosity_error()
    seconds: dict[str, list[float]] = defaultdict(list)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = contestants()
        for _ in range(rounds):
            for name, run in runs.items():
                seconds[name].append(run())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    reference = medians["diffusers DDIM"]
    print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}\n")
    print("| sampler | µs per step | over diffusers' DDIM |\n|---|---|---|")
    for name, value in medians.items():
        if math.isfinite(value):
            print(f"| {name} | {1e6 * value:.0f} | {value / reference:.2f} |")


if __name__ == "__main__":
    main()
