"""The methods by name, each with the sampler that it was measured with in docs/restoring.md.

    problem = InverseProblem(sde, operator, y, sigma_y=0.05)
    result = restorer("moment_matching", problem, nfe=50)(score, (16, 1, 28, 28), seed=0)

A `Restorer` takes the score of the prior and draws samples of p(x_0 | y).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from score_diffusion.samplers.base import Sampler, SampleResult
from score_diffusion.samplers.grids import Grid, times_of
from score_diffusion.samplers.inverse.ddrm import DDRMSampler
from score_diffusion.samplers.inverse.diffpir import DiffPIR, diffpir_steps
from score_diffusion.samplers.inverse.dps import DPS
from score_diffusion.samplers.inverse.moment_matching import MomentMatching
from score_diffusion.samplers.inverse.operators import Operator
from score_diffusion.samplers.inverse.pigdm import PiGDM
from score_diffusion.samplers.inverse.pixels import Downsample
from score_diffusion.samplers.inverse.posterior import checked_measurement
from score_diffusion.samplers.inverse.repaint import RePaintSampler
from score_diffusion.samplers.inverse.replacement import Replacement
from score_diffusion.samplers.inverse.sdedit import grid_from, noised_guide
from score_diffusion.samplers.inverse.super_resolution import GivenSmallImage
from score_diffusion.samplers.inverse.twisted import TwistedSampler
from score_diffusion.samplers.predictors import ancestral
from score_diffusion.samplers.registry import DEFAULT, find_sampler, make_sampler
from score_diffusion.sde_lib import SDE, InputError, ScoreFunction, check_name, score_device
from score_diffusion.sde_lib.score_wrapper import Condition


@dataclass(frozen=True)
class InverseProblem:
    """A measurement y = A(x_0) + σ_y z of data with a known prior."""

    sde: SDE
    operator: Operator
    y: Tensor
    """The measurement of all samples, shape (*output_shape), or one for each, (B, *output_shape)."""
    sigma_y: float = 0.0
    data_std: float = 1.0
    """Standard deviation of the data, over elements and samples."""


@dataclass(frozen=True)
class Restorer:
    """A posterior sampler: the sampler, and what it makes of the score of the prior.

    Raises:
        InputError: If the method does not fit the operator, y or sigma_y.
    """

    sampler: Sampler
    condition: Callable[[ScoreFunction], ScoreFunction] = lambda score: score
    start: Callable[[Sequence[int], int, int, torch.device, torch.dtype], Tensor] | None = None
    """x_T for a shape, a seed, the index of the first sample, a device and a dtype; None for the prior."""

    def __post_init__(self) -> None:
        self.condition(lambda x, t: x)  # for its checks

    def __call__(
        self,
        score: ScoreFunction,
        shape: Sequence[int],
        seed: int = 0,
        *,
        cond: Condition = None,
        first: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        on_step: Callable[[int, int], None] | None = None,
    ) -> SampleResult:
        """Draws samples of p(x_0 | y); arguments, result and errors as for a `Sampler`."""
        device = score_device(score) if device is None else torch.device(device)
        return self.sampler(
            self.condition(score),
            shape,
            seed,
            cond=cond,
            x_T=None if self.start is None else self.start(shape, seed, first, device, dtype),
            first=first,
            device=device,
            dtype=dtype,
            on_step=on_step,
        )


GUIDED = "dpmpp_2m_sde"
"""The sampler of guided scores: of second order, and stochastic, which corrects early mistakes."""


def _clock(nfe: int, evaluations: int = 1) -> Grid:
    steps = (nfe - 1) // evaluations  # one for the final denoising
    if steps < 1:
        raise InputError(f"nfe must be at least {evaluations + 1} for this method, got {nfe}")
    return Grid("clock", steps)


def dps(problem: InverseProblem, nfe: int, *, zeta: float | None = 2.0) -> Restorer:
    """DPS with ancestral sampling.

    Args:
        problem: The measurement.
        nfe: The largest number of evaluations per sample.
        zeta: Length of a step towards the measurement, ζ of Algorithm 1; None takes the likelihood as it is.
    """
    # ζ = 2 is nearer than Algorithm 1's 1 to the exact posteriors of image-like mixtures at 50 steps.
    p, grid = problem, _clock(nfe)
    times = times_of(p.sde, grid)
    return Restorer(
        ancestral(p.sde, grid, denoise=True),
        lambda score: DPS(score, p.sde, p.operator, p.y, p.sigma_y, zeta=zeta, times=times),
    )


def pigdm(problem: InverseProblem, nfe: int, *, sampler: str = GUIDED) -> Restorer:
    """ΠGDM with any sampler by name.

    Args:
        problem: The measurement.
        nfe: The largest number of evaluations per sample.
        sampler: A name in `SAMPLERS`.
    """
    p = problem
    return Restorer(
        make_sampler(sampler, p.sde, nfe, denoise=True),
        lambda score: PiGDM(score, p.sde, p.operator, p.y, p.sigma_y, data_std=p.data_std),
    )


def moment_matching(
    problem: InverseProblem, nfe: int, *, iterations: int = 1, sampler: str = GUIDED
) -> Restorer:
    """Moment matching with any sampler by name.

    Args:
        problem: The measurement.
        nfe: The largest number of evaluations per sample.
        iterations: Iterations of conjugate gradients, one differentiation through the network each.
        sampler: A name in `SAMPLERS`.
    """
    p = problem
    return Restorer(
        make_sampler(sampler, p.sde, nfe, denoise=True),
        lambda score: MomentMatching(
            score, p.sde, p.operator, p.y, p.sigma_y, iterations=iterations, data_std=p.data_std
        ),
    )


def replacement(
    problem: InverseProblem, nfe: int, *, strength: float = 1.0, sampler: str = "ancestral"
) -> Restorer:
    """Replacement with any sampler by name.

    Args:
        problem: The measurement.
        nfe: The largest number of evaluations per sample.
        strength: How far the measured part is moved to the measurement, λ in (0, 1].
        sampler: A name in `SAMPLERS`.
    """
    p = problem
    return Restorer(
        make_sampler(sampler, p.sde, nfe, denoise=True),
        lambda score: Replacement(score, p.sde, p.operator, p.y, p.sigma_y, strength=strength),
    )


def repaint(problem: InverseProblem, nfe: int, *, resamplings: int = 3, jump_length: int = 1) -> Restorer:
    """RePaint.

    Args:
        problem: The measurement.
        nfe: The largest number of evaluations per sample.
        resamplings: How often each step is taken; 1 is plain replacement.
        jump_length: Steps to go back at once.
    """
    p = problem
    return Restorer(
        RePaintSampler(
            p.sde,
            _clock(nfe, resamplings),
            operator=p.operator,
            y=p.y,
            sigma_y=p.sigma_y,
            resamplings=resamplings,
            jump_length=jump_length,
        )
    )


def diffpir(problem: InverseProblem, nfe: int, *, regularization: float = 1.0, zeta: float = 0.6) -> Restorer:
    """DiffPIR.

    Args:
        problem: The measurement.
        nfe: The largest number of evaluations per sample.
        regularization: λ, 1 takes the noise for what it is; the paper's 7 trusts the network more.
        zeta: The share of fresh noise, ζ in [0, 1]; the paper has about 0.3.
    """
    p = problem
    return Restorer(
        diffpir_steps(p.sde, _clock(nfe), zeta=zeta),
        lambda score: DiffPIR(score, p.sde, p.operator, p.y, p.sigma_y, regularization=regularization),
    )


def ddrm(problem: InverseProblem, nfe: int, *, eta: float = 0.85, eta_b: float = 1.0) -> Restorer:
    """DDRM.

    Args:
        problem: The measurement.
        nfe: The largest number of evaluations per sample.
        eta: η in [0, 1], the share of fresh noise.
        eta_b: η_b in [0, 1], how far noisy measured parts follow the measurement.
    """
    p = problem
    return Restorer(
        DDRMSampler(p.sde, _clock(nfe), operator=p.operator, y=p.y, sigma_y=p.sigma_y, eta=eta, eta_b=eta_b)
    )


def twisted(problem: InverseProblem, nfe: int, *, particles: int = 64, draws: int = 64) -> Restorer:
    """The twisted sampler.

    Args:
        problem: The measurement.
        nfe: The largest number of evaluations per particle.
        particles: Particles in a set.
        draws: Samples that a set serves, a divisor of the particles.
    """
    p = problem
    return Restorer(
        TwistedSampler(
            p.sde,
            _clock(nfe),
            operator=p.operator,
            y=p.y,
            sigma_y=p.sigma_y,
            particles=particles,
            draws=draws,
            data_std=p.data_std,
        )
    )


def sdedit(problem: InverseProblem, nfe: int, *, start: float = 0.3, sampler: str = GUIDED) -> Restorer:
    """SDEdit from A⁺ y: no posterior, but images near a guide, for operators with a pseudo-inverse.

    Args:
        problem: The measurement; its noise is not used.
        nfe: The largest number of evaluations per sample.
        start: Where the guide is noised to, a share of the SDE's time: 0 keeps it, 1 forgets it.
        sampler: A name in `SAMPLERS`.
    """
    p = problem
    if not 0 < start <= 1:
        raise InputError(f"start must lie in (0, 1], the share of the SDE's time, got {start}")
    spec = find_sampler(sampler)
    times = grid_from(p.sde, Grid(spec.grid, spec.steps(nfe, denoise=True)), start * p.sde.T)
    p.operator.pseudo_inverse(checked_measurement(p.operator, p.y))  # refuses operators that have none

    def noised(
        shape: Sequence[int], seed: int, first: int, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        y = checked_measurement(p.operator, p.y.to(device, dtype))
        guide = p.operator.pseudo_inverse(y).expand(*shape)
        return noised_guide(p.sde, guide, times[0].item(), seed, first)

    return Restorer(make_sampler(sampler, p.sde, None, times, denoise=True), start=noised)


def enlarge(problem: InverseProblem, nfe: int, *, sampler: str = DEFAULT) -> Restorer:
    """A network that was trained to enlarge images, given the small image and its noise.

    Args:
        problem: The measurement, the means of blocks.
        nfe: The largest number of evaluations per sample.
        sampler: A name in `SAMPLERS`.
    """
    p = problem
    if not isinstance(p.operator, Downsample):
        raise InputError(
            f"a network that enlarges images needs the operator Downsample, got {type(p.operator).__name__}"
        )
    return Restorer(
        make_sampler(sampler, p.sde, nfe, denoise=True), lambda score: GivenSmallImage(score, p.y, p.sigma_y)
    )


METHODS: dict[str, Callable[..., Restorer]] = {
    "dps": dps,
    "pigdm": pigdm,
    "moment_matching": moment_matching,
    "replacement": replacement,
    "repaint": repaint,
    "diffpir": diffpir,
    "ddrm": ddrm,
    "twisted": twisted,
}


def restorer(
    name: str, problem: InverseProblem, nfe: int, options: Mapping[str, Any] | None = None
) -> Restorer:
    """A method by name for a number of evaluations of the score.

    Args:
        name: A name in `METHODS`.
        problem: The measurement.
        nfe: The largest number of evaluations per sample, or per particle for `twisted`.
        options: Options of the method by their names.

    Raises:
        InputError: If the name is unknown, nfe does not suffice for one step, or the method does not fit the
            operator.
    """
    check_name("method", name, METHODS)
    return METHODS[name](problem, nfe, **(options or {}))
