"""Scoring held-out data: bits/dim of images, nats of points.

There are three figures: the likelihood of the probability-flow ODE and the bound of the reverse SDE, for
which images are dequantized, and DDPM's variational bound for the reverse chain, whose decoder is a
distribution over grey levels.

Dequantization turns grey levels x_0 into numbers x with a density p. On average over x,

    uniform     -log p(x) - log(bin width),                          x uniform in the bin around x_0
    gaussian    -log p(x) + log q(x | x_0) - log p(x_0 | x),         x = x_{t_1} ~ q, the chain's first noise
    variational -log p(x) + log q(x | x_0),                          x ~ q, a law in the bin that was learned

are upper bounds on -log p(x_0). At small noise a model trained on bare pixel values has learned a
distribution concentrated on them, whose density is small in most of a wide bin: for values uniform on 17
levels (4.09 bits) the exact ODE gives 10.7 bits with uniform noise and 4.09 with gaussian.

Reference:
    Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021),
        https://arxiv.org/abs/2101.09258: Theorem 3, dequantization by the diffusion itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from score_diffusion.run.console import progress_bar
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.error_bars import standard_error_each, standard_errors
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.training.dequantization import dequantized
from score_diffusion.sde_lib import (
    SDE,
    DensitySolver,
    Likelihood,
    NoisyDataModel,
    SampleNoise,
    chain_times,
    expand,
    generator_for,
    log_likelihood,
    variational_bound,
    vlb_terms,
)


@dataclass(frozen=True)
class Scores:
    """One value per held-out sample."""

    values: np.ndarray
    """Bits/dim of images, negative log-likelihood in nats of points, shape (n,)."""
    nfe: int
    """Network evaluations per sample, of the batch that took most."""
    terms: dict[str, Scores] = field(default_factory=dict)
    """What the values are sums of, by name, in the same unit."""
    steps: np.ndarray | None = None
    """Means over samples of the bound's L_{N-1}, ..., L_0, shape (N,); None where not all are evaluated."""
    solver_error: float | None = None
    """Error of a sample's value by the solver of the ODE, the mean over samples: the solver's estimate, or
    measured by `with_solver_error`; None for neither.
    """
    estimates: np.ndarray | None = None
    """The values that the samples' are means of, shape (n, dequantization draws, probes)."""

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def standard_error(self) -> float | None:
        """Of the mean over samples, including that of dequantization and probes; None for one sample."""
        return float(self.values.std(ddof=1) / math.sqrt(len(self.values))) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean by Student's t; None for one sample."""
        if self.standard_error is None:
            return None
        width = float(stdtrit(len(self.values) - 1, 0.975)) * self.standard_error
        return self.mean - width, self.mean + width

    @property
    def error_parts(self) -> dict[str, float]:
        """What the standard error consists of; empty where its parts are not known."""
        return {} if self.estimates is None else standard_errors(self.estimates)

    @property
    def standard_error_each(self) -> np.ndarray | None:
        """Of each sample's value, by dequantization and probes, (n,); None where that is not known."""
        return None if self.estimates is None else standard_error_each(self.estimates)

    def of(self, chosen: np.ndarray) -> Scores:
        """Those of the samples for which `chosen`, bool (n,), is true."""
        return Scores(self.values[chosen], self.nfe)

    def with_solver_error(self, tighter: Scores) -> Scores:
        """These with the solver's error measured by tighter scores of the first samples at the same noise."""
        off = np.abs(self.values[: len(tighter.values)] - tighter.values)
        return replace(self, solver_error=float(off.mean()))

    def less(self, other: Scores) -> Scores:
        """The differences from other scores of the same samples."""
        return Scores(self.values - other.values, self.nfe)

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.4f} (standard error)"
        return f"{self.mean:.4f}{error}"

    def record(self, quantity: str) -> dict:
        """Mean and standard error, as they stand in the JSON file."""
        return {quantity: self.mean, "standard_error": self.standard_error, "interval": self.interval}


def check_chain(sde: SDE) -> None:
    """Refuses an SDE whose reverse chain does not end at the data: it has no decoder."""
    if sde.sigma(chain_times(sde)[-1]) > 0:
        raise UserError(
            "the variational bound and gaussian dequantization need an SDE without noise at t = 0, unlike "
            f"{sde}: set likelihood.method=ode and likelihood.dequantization=uniform"
        )


@dataclass(frozen=True)
class Dequantized:
    """A dequantized batch."""

    x: Tensor
    """Samples, shape (B, *shape)."""
    time: float
    """Their time on the path."""
    bits: Tensor
    """What -log₂ p(x) per dimension is to be increased by for a bound on that of x_0, shape (B,)."""


class UniformDequantization:
    """Uniform noise in the grey levels' bins; points stay as they are.

    Args:
        trained: The model that the data are scored with.
        seed: Seed of the noise.
    """

    def __init__(self, trained: TrainedModel, seed: int) -> None:
        self.trained, self.seed = trained, seed

    def __call__(self, batch: Tensor, first: int, draw: int = 0) -> Dequantized:
        """The batch whose first sample has index `first`, dequantized on the model's device."""
        scaling, device = self.trained.data.scaling, self.trained.device
        x = scaling.stored_to_model(batch, self.noise(batch, first, draw)).to(device)
        bits = torch.full((len(x),), scaling.bits_offset, dtype=torch.float64, device=device)
        return Dequantized(x, self.trained.first_time, bits)

    def noise(self, batch: Tensor, first: int, draw: int) -> Tensor:
        """Uniform noise of the shape of the batch."""
        seed = seed_of_draw(self.seed, draw)
        noise = [
            torch.rand(sample.shape, generator=generator_for(seed, "dequantization", first + k))
            for k, sample in enumerate(batch)
        ]
        return torch.stack(noise)


class GaussianDequantization:
    """The noise of the chain's first time; for numbers, too, for which the decoder is a density.

    Args:
        trained: The model that the data are scored with.
        seed: Seed of the noise.
        variance: Variance of the decoder, "small", "large" or "learned".
        clip: Bounds on its denoised samples; None for none.
    """

    def __init__(
        self,
        trained: TrainedModel,
        seed: int,
        variance: str = "small",
        clip: tuple[float, float] | None = None,
    ) -> None:
        self.trained, self.seed, self.variance, self.clip = trained, seed, variance, clip

    def __call__(self, batch: Tensor, first: int, draw: int = 0) -> Dequantized:
        """The batch whose first sample has index `first`, dequantized on the model's device."""
        sde, scaling, device = self.trained.sde, self.trained.data.scaling, self.trained.device
        x_0 = scaling.stored_to_model(batch).to(device)
        times, k = chain_times(sde), torch.zeros(len(x_0), dtype=torch.int64, device=device)
        seed = seed_of_draw(self.seed, draw)
        z = SampleNoise(seed, first, x_0.shape, device, x_0.dtype, purpose="dequantization").normal()
        mean, std = sde.marginal_prob(x_0.double(), times[-2].to(device).expand(len(x_0)))
        log_q = -0.5 * z.double().square().flatten(1).mean(1) - std.log() - 0.5 * math.log(2 * math.pi)
        with torch.no_grad():  # L_0 at this very noise: -log₂ p(x_0 | x)
            score = self.trained.score_of(range(first, first + len(batch)))
            decoder = vlb_terms(sde, score, x_0, times, k, z, scaling.levels, self.variance, self.clip)
        x = mean + expand(std, mean) * z
        return Dequantized(x.to(x_0), times[-2].item(), log_q / math.log(2) + decoder + _scale_bits(scaling))


class VariationalDequantization:
    """Noise in the grey levels' bins whose law a dequantizer knows.

    Args:
        trained: The model that the data are scored with.
        seed: Seed of the noise.
        dequantizer: The dequantizer.
    """

    def __init__(self, trained: TrainedModel, seed: int, dequantizer: NoisyDataModel) -> None:
        self.uniform, self.dequantizer = UniformDequantization(trained, seed), dequantizer

    @torch.no_grad()
    def __call__(self, batch: Tensor, first: int, draw: int = 0) -> Dequantized:
        """The batch whose first sample has index `first`, dequantized on the model's device."""
        trained = self.uniform.trained
        scaling, device = trained.data.scaling, trained.device
        assert scaling.levels is not None  # the dequantizer is for grey levels
        v = self.uniform.noise(batch, first, draw).to(device)
        x, log_q = dequantized(self.dequantizer, batch.to(device), v, scaling.levels)
        return Dequantized(
            x, trained.first_time, scaling.bits_offset + log_q / (batch[0].numel() * math.log(2))
        )


def seed_of_draw(seed: int, draw: int) -> int:
    """The seed of the noise of a repetition, of the first one the seed itself."""
    return generator_for(seed, "draw", draw).initial_seed() if draw else seed


Dequantization = Callable[[Tensor, int, int], Dequantized]
"""From a batch, the index of its first sample, and that of the draw."""


def batches_of_rank(data: Tensor, batch_size: int, title: str) -> Iterator[tuple[int, Tensor]]:
    """Yields the index of the first sample and the samples of each batch of this rank, with progress."""
    starts = range(0, len(data), batch_size)
    mine = processes.own_share(len(starts))
    if len(starts) < processes.world_size():
        print(
            f"there are {len(starts)} batches for {processes.world_size()} processes: lower "
            "likelihood.batch_size to use all of them"
        )
    with progress_bar(len(data[mine.start * batch_size : mine.stop * batch_size]), title, "sample") as bar:
        for first in starts[mine.start : mine.stop]:
            batch = data[first : first + batch_size]
            yield first, batch
            bar.update(len(batch))


def score_held_out(
    trained: TrainedModel,
    data: Tensor,
    dequantize: Dequantization,
    *,
    batch_size: int,
    seed: int,
    n_draws: int = 1,
    divergence: str = "hutchinson",
    probe: str = "rademacher",
    n_probes: int = 1,
    solver: DensitySolver | None = None,
) -> Scores | None:
    """The likelihood of each sample; the noise of sample k depends on (seed, k) only.

    Each rank scores a share, and rank 0 has the result; the others have None.

    Args:
        trained: The model.
        data: Held-out samples, grey levels or points, shape (n, *shape).
        dequantize: Makes them continuous.
        batch_size: Samples scored at a time.
        seed: Seed of the probes.
        n_draws: Times that each sample is scored, each with its own dequantization noise and probes.
        divergence: "hutchinson", "hutch++" or "exact".
        probe: Law of the probes, "rademacher", "gaussian" or "sphere".
        n_probes: Number of probes.
        solver: Solver of the ODE; None for the adaptive one.
    """
    batches = []
    for first, batch in batches_of_rank(data, batch_size, "likelihood"):
        draws = []
        for draw in range(n_draws):
            dequantized = dequantize(batch, first, draw)
            result = log_likelihood(
                trained.sde,
                trained.score_of(range(first, first + len(batch))),
                dequantized.x,
                divergence=divergence,
                probe=probe,
                n_probes=n_probes,
                solver=solver,
                eps=dequantized.time,
                seed=seed_of_draw(seed, draw),
                first=first,
            )
            draws.append((dequantized.bits, result))
        batches.append(_estimates(draws, unit_of(trained, batch), batch[0].numel()))
    scored = processes.gather(batches)
    return None if scored is None else _joined(scored)


def _estimates(
    draws: Sequence[tuple[Tensor, Likelihood]], unit: float, dimensions: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Of a batch the estimates (B, draws, probes), the solver's errors (B, draws), and the evaluations.

    Args:
        draws: Of each draw the bits per dimension to be added, shape (B,), and the likelihood.
        unit: Factor from bits per dimension to the unit of the scores.
        dimensions: Number of dimensions.
    """
    to_unit = unit / (dimensions * math.log(2))  # from nats
    values = [bits[:, None] * unit - result.log_probs * to_unit for bits, result in draws]
    errors = [result.solver_error * to_unit for _, result in draws]
    return (
        array_of(torch.stack(values, 1)),
        array_of(torch.stack(errors, 1)),
        sum(result.nfe for _, result in draws),
    )


def _joined(batches: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> Scores:
    """The scores of batches, each as `_estimates` returns it."""
    each, errors, evaluations = zip(*batches, strict=True)
    estimates, error = np.concatenate(each), float(np.concatenate(errors).mean())
    solver_error = None if math.isnan(error) else error
    return Scores(estimates.mean((1, 2)), max(evaluations), solver_error=solver_error, estimates=estimates)


def bound_held_out(
    trained: TrainedModel,
    data: Tensor,
    *,
    batch_size: int,
    seed: int,
    variance: str = "small",
    clip: tuple[float, float] | None = None,
    n_terms: int | None = None,
    n_draws: int = 1,
) -> Scores | None:
    """The variational bound of each sample; the noise of sample k depends on (seed, k) only.

    Each rank scores a share, and rank 0 has the result; the others have None.

    Args:
        trained: The model.
        data: Held-out samples, grey levels or points, shape (n, *shape).
        batch_size: Samples scored at a time.
        seed: Seed of the noise.
        variance: Variance of the reverse steps, "small", "large" or "learned".
        clip: Bounds on the denoised samples; None for none.
        n_terms: Terms of the bound drawn for each sample; None for all of them.
        n_draws: Times that the bound is repeated, each with its own noise.
    """
    batches = []
    for first, batch in batches_of_rank(data, batch_size, "bound"):
        bound = variational_bound(
            trained.sde,
            trained.score_of(range(first, first + len(batch))),
            batch.to(trained.device),
            trained.data.levels,
            variance=variance,
            clip=clip,
            n_terms=n_terms,
            n_draws=n_draws,
            seed=seed,
            first=first,
        )
        unit, scale_bits = unit_of(trained, batch), _scale_bits(trained.data.scaling)
        parts = bound.terms.clone()
        if not n_terms:
            parts[:, -1] += scale_bits  # of the decoder, L_0
        batches.append((array_of((bound.total + scale_bits) * unit), array_of(parts * unit), bound.nfe))
    scored = processes.gather(batches)
    if scored is None:
        return None
    totals, each, (nfe, *_) = zip(*scored, strict=True)
    total, terms = np.concatenate(totals), np.concatenate(each)
    if n_terms:
        named = {"L_T": terms[:, 0], "L_{t-1} + L_0": total - terms[:, 0]}
    else:
        named = {"L_T": terms[:, 0], "L_{t-1}": terms[:, 1:-1].sum(1), "L_0": terms[:, -1]}
    steps = None if n_terms else terms[:, 1:].mean(0)
    return Scores(total, nfe, {name: Scores(values, nfe) for name, values in named.items()}, steps)


def unit_of(trained: TrainedModel, batch: Tensor) -> float:
    """The factor from bits per dimension to the unit of the scores, nats for points."""
    return 1.0 if trained.data.levels else batch[0].numel() * math.log(2)


def _scale_bits(scaling: Scaling) -> float:
    """Bits per dimension to add to the decoder's, which knows grey levels but not the scale of numbers."""
    return scaling.bits_offset if scaling.levels is None else 0.0


def array_of(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
