"""The deterministic samplers of diffusers and azula with an exact or learned score of ours, for comparison.

Each runs from a given x_T to the noise level of a given end time, on exactly the noise levels σ̃ = σ/α of the
SDE at the times of a grid, so that its error converges to zero as the grid is refined. diffusers' multistep
schedulers assume α² + σ² = 1: they receive x̃/√(1 + σ̃²) with x̃ = x/α, which is right for every SDE. Its
k-diffusion schedulers receive x̃ itself. azula receives α and σ of the SDE as its schedule; its grids are
uniform or quadratic in time. azula is optional: without it only diffusers' samplers are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import diffusers
import torch
from torch import Tensor

from score_diffusion.samplers import GRIDS
from score_diffusion.sde_lib import SDE, ScoreFunction, tweedie

try:
    import azula.sample
except ImportError:
    azula = None

DIFFUSERS_GRIDS = ("uniform", "karras", "log_snr", "quadratic")


@dataclass(frozen=True)
class Peer:
    """A sampler of another library."""

    library: str
    nfe_per_step: int
    run: Callable[[SDE, ScoreFunction, Tensor, int], Tensor]
    """From (SDE, score, x_T, number of steps) to the states at `sde.sampling_eps`."""


def variance_preserving(make: Callable[[], object], grid: str) -> Callable[..., Tensor]:
    def run(sde: SDE, score: ScoreFunction, x_T: Tensor, steps: int) -> Tensor:
        times, levels, scheduler = _prepared(make(), sde, grid, steps)
        scheduler.sigmas = levels.float()
        x = x_T / sde.alpha(times[0]) / math.hypot(1, levels[0])
        for i, k in enumerate(scheduler.timesteps):
            here = x * (sde.alpha(times[i]) * math.hypot(1, levels[i]))
            noise = -sde.sigma(times[i]) * score(here, times[i].expand(len(x)))
            x = scheduler.step(noise, k, x).prev_sample.to(x_T)
        return x * (sde.alpha(times[-1]) * math.hypot(1, levels[-1]))

    return run


def scaled_signal(make: Callable[[], object], grid: str, evaluations: int) -> Callable[..., Tensor]:
    """For k-diffusion's schedulers; Heun's evaluates at the levels 0, 1, 1, 2, 2, ..., n."""

    def run(sde: SDE, score: ScoreFunction, x_T: Tensor, steps: int) -> Tensor:
        times, levels, scheduler = _prepared(make(), sde, grid, steps)
        at = torch.arange(steps + 1)
        if evaluations == 2:
            at = at.repeat_interleave(2)[1:-1]
            scheduler.timesteps = torch.linspace(999, 0, 2 * steps)
        scheduler.sigmas = levels[at] if evaluations == 1 else torch.cat([levels[at], levels[-1:]])
        x = x_T / sde.alpha(times[0])
        for i, k in zip(
            at.tolist() if evaluations == 2 else at[:-1].tolist(), scheduler.timesteps, strict=False
        ):
            noise = -sde.sigma(times[i]) * score(x * sde.alpha(times[i]), times[i].expand(len(x)))
            x = scheduler.step(noise, k, x).prev_sample.to(x_T)
        return x * sde.alpha(times[-1])

    return run


def _ipndm(grid: str) -> Callable[..., Tensor]:
    """iPNDM takes v = (ε̂ - σ x)/α of α² + σ² = 1, the α and σ of the grid in place of its own."""

    def run(sde: SDE, score: ScoreFunction, x_T: Tensor, steps: int) -> Tensor:
        times, levels, scheduler = _prepared(diffusers.IPNDMScheduler(), sde, grid, steps)
        scheduler.alphas = 1 / (1 + levels.square()).sqrt()
        scheduler.betas = levels * scheduler.alphas
        x = x_T / sde.alpha(times[0]) * scheduler.alphas[0]
        for i, k in enumerate(scheduler.timesteps):
            alpha, sigma = scheduler.alphas[i], scheduler.betas[i]
            noise = -sde.sigma(times[i]) * score(x / alpha * sde.alpha(times[i]), times[i].expand(len(x)))
            x = scheduler.step((noise - sigma * x) / alpha, k, x).prev_sample
        return x / scheduler.alphas[-1] * sde.alpha(times[-1])

    return run


def _prepared(scheduler: object, sde: SDE, grid: str, steps: int) -> tuple[Tensor, Tensor, object]:
    times = GRIDS[grid](sde, steps)
    scheduler.set_timesteps(steps)
    # Some schedulers look steps up by timestep, so they must be distinct; the noise levels are replaced.
    scheduler.timesteps = (999 * times[:-1] / sde.T).float()
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    return times, sde.log_noise_level(times).exp(), scheduler


def azula_run(sampler: Callable[..., object], power: int) -> Callable[..., Tensor]:
    def run(sde: SDE, score: ScoreFunction, x_T: Tensor, steps: int) -> Tensor:
        class Denoiser:
            """azula's denoiser; the time u of its grid is the time u^power of the SDE."""

            @staticmethod
            def schedule(u: Tensor) -> tuple[Tensor, Tensor]:
                return sde.alpha(u**power), sde.sigma(u**power)

            def __call__(self, x: Tensor, u: Tensor) -> SimpleNamespace:
                return SimpleNamespace(mean=tweedie(sde, score, x, (u**power).expand(len(x))))

        start, stop = sde.T ** (1 / power), sde.sampling_eps ** (1 / power)
        made = sampler(Denoiser(), start=start, stop=stop, steps=steps, silent=True, dtype=torch.float64)
        return made(x_T)

    return run


def peers() -> dict[str, Peer]:
    """Every peer by name."""
    return diffusers_peers() | (azula_peers() if azula else {})


def diffusers_peers() -> dict[str, Peer]:
    """diffusers' deterministic schedulers by name."""
    found = {}
    end = {"final_sigmas_type": "sigma_min"}
    multistep, single = diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
    unipc, deis = diffusers.UniPCMultistepScheduler, diffusers.DEISMultistepScheduler
    found["DPMSolver++ (default)"] = Peer("diffusers", 1, variance_preserving(multistep, "uniform"))
    for grid in DIFFUSERS_GRIDS:
        options = {f"DPMSolver++ {n}M": lambda n=n: multistep(solver_order=n, **end) for n in (1, 2, 3)}
        options |= {
            f"DPMSolver {n}M": lambda n=n: multistep(solver_order=n, algorithm_type="dpmsolver", **end)
            for n in (2, 3)
        }
        options |= {f"DPMSolver++ {n}S": lambda n=n: single(solver_order=n, **end) for n in (2, 3)}
        options |= {
            f"UniPC-{n} {bh}": lambda n=n, bh=bh: unipc(solver_order=n, solver_type=bh, **end)
            for n in (2, 3)
            for bh in ("bh1", "bh2")
        }
        options |= {f"DEIS-{n}": lambda n=n: deis(solver_order=n) for n in (2, 3)}
        for name, make in options.items():
            found[f"{name} {grid}"] = Peer("diffusers", 1, variance_preserving(make, grid))
        found[f"IPNDM {grid}"] = Peer("diffusers", 1, _ipndm(grid))
        for name, cost in (("EulerDiscrete", 1), ("HeunDiscrete", 2), ("LMSDiscrete", 1)):
            make = getattr(diffusers, f"{name}Scheduler")
            found[f"{name} {grid}"] = Peer("diffusers", cost, scaled_signal(make, grid, cost))
    return found


def azula_peers() -> dict[str, Peer]:
    """azula's deterministic samplers by name."""
    found = {}
    for name, cost, orders in (
        ("Euler", 1, (None,)),
        ("Heun", 2, (None,)),
        ("zAB", 1, (2, 3)),
        ("vAB", 1, (2, 3)),
        ("zEAB", 1, (2, 3)),
        ("xEAB", 1, (2, 3)),
        ("REAB", 1, (2, 3)),
    ):
        cls = getattr(azula.sample, f"{name}Sampler")
        for order in orders:
            made = cls if order is None else lambda *a, cls=cls, n=order, **k: cls(*a, order=n, **k)
            for power, grid in ((1, "uniform"), (2, "quadratic")):
                label = f"azula {name}{order or ''} {grid}"
                found[label] = Peer("azula", cost, azula_run(made, power))
    return found


@torch.no_grad()
def run_peer(peer: Peer, sde: SDE, score: ScoreFunction, x_T: Tensor, nfe: int) -> Tensor | None:
    """The peer's final states with at most nfe evaluations; None if it cannot run with so few."""
    calls = 0

    def counted(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return score(x, t)

    steps = nfe // peer.nfe_per_step
    if steps < 1:
        return None
    try:
        samples = peer.run(sde, counted, x_T, steps)
    except (ValueError, RuntimeError, IndexError, AssertionError, ZeroDivisionError):
        return None
    if calls > nfe:
        raise AssertionError(f"a peer used {calls} evaluations, {nfe} were allowed")
    return samples if samples.isfinite().all() else None
