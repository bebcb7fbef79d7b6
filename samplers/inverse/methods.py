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
from score_diffusion.samplers.inverse.repaint import RePaintSampler
from score_diffusion.samplers.inverse.replacement import Replacement
from score_diffusion.samplers.inverse.twisted import TwistedSampler
from score_diffusion.samplers.options import check_name
from score_diffusion.samplers.predictors import ancestral
from score_diffusion.samplers.registry import make_sampler
from score_diffusion.sde_lib import SDE, InputError, ScoreFunction


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
    """A posterior sampler: the sampler, and what it makes of the score of the prior."""

    sampler: Sampler
    condition: Callable[[ScoreFunction], ScoreFunction] = lambda score: score

    def __call__(
        self,
        score: ScoreFunction,
        shape: Sequence[int],
        seed: int = 0,
        *,
        first: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        on_step: Callable[[int, int], None] | None = None,
    ) -> SampleResult:
        """Draws samples of p(x_0 | y); arguments, result and errors as for a `Sampler`."""
        return self.sampler(
            self.condition(score), shape, seed, first=first, device=device, dtype=dtype, on_step=on_step
        )


GUIDED = "dpmpp_2m_sde"
"""The sampler of guided scores: of second order, and stochastic, which corrects early mistakes."""


def _clock(nfe: int, evaluations: int = 1) -> Grid:
    steps = (nfe - 1) // evaluations  # one for the final denoising
    if steps < 1:
        raise InputError(f"nfe must be at least {evaluations + 1} for this method, got {nfe}")
    return Grid("clock", steps)


def dps(problem: InverseProblem, nfe: int, *, zeta: float | None = 1.0) -> Restorer:
    """DPS with ancestral sampling; options as for `DPS`."""
    p, grid = problem, _clock(nfe)
    times = times_of(p.sde, grid)
    return Restorer(
        ancestral(p.sde, grid, denoise=True),
        lambda score: DPS(score, p.sde, p.operator, p.y, p.sigma_y, zeta=zeta, times=times),
    )


def pigdm(problem: InverseProblem, nfe: int, *, sampler: str = GUIDED) -> Restorer:
    """ΠGDM with any sampler by name."""
    p = problem
    return Restorer(
        make_sampler(sampler, p.sde, nfe, denoise=True),
        lambda score: PiGDM(score, p.sde, p.operator, p.y, p.sigma_y, data_std=p.data_std),
    )


def moment_matching(
    problem: InverseProblem, nfe: int, *, iterations: int = 1, sampler: str = GUIDED
) -> Restorer:
    """Moment matching with any sampler by name; options as for `MomentMatching`."""
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
    """Replacement with any sampler by name; options as for `Replacement`."""
    p = problem
    return Restorer(
        make_sampler(sampler, p.sde, nfe, denoise=True),
        lambda score: Replacement(score, p.sde, p.operator, p.y, p.sigma_y, strength=strength),
    )


def repaint(problem: InverseProblem, nfe: int, *, resamplings: int = 3, jump_length: int = 1) -> Restorer:
    """RePaint; options as for `RePaintSampler`."""
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
    """DiffPIR; options as for `DiffPIR` and `diffpir_steps`."""
    p = problem
    return Restorer(
        diffpir_steps(p.sde, _clock(nfe), zeta=zeta),
        lambda score: DiffPIR(score, p.sde, p.operator, p.y, p.sigma_y, regularization=regularization),
    )


def ddrm(problem: InverseProblem, nfe: int, *, eta: float = 0.85, eta_b: float = 1.0) -> Restorer:
    """DDRM; options as for `DDRMSampler`."""
    p = problem
    return Restorer(
        DDRMSampler(p.sde, _clock(nfe), operator=p.operator, y=p.y, sigma_y=p.sigma_y, eta=eta, eta_b=eta_b)
    )


def twisted(problem: InverseProblem, nfe: int, *, particles: int = 64, draws: int = 64) -> Restorer:
    """The twisted sampler; options as for `TwistedSampler`. nfe is that of a particle."""
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
