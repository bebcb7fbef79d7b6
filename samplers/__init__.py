"""Score function -> samples. Imports torch, torchdiffeq and sde_lib alone.

Every sampler has the same call: `result = sampler(score, shape, seed=0)`.
"""

from samplers.ancestral import AncestralSampler, DDIMSampler
from samplers.base import Sampler, SampleResult, StepSampler
from samplers.grids import GRIDS, chain_grid, log_snr_grid, uniform_grid
from samplers.langevin import AnnealedLangevinSampler, ConsistentAnnealedSampler
from samplers.ode import ODE_METHODS, ODESampler
from samplers.predictor_corrector import (
    CORRECTORS,
    PREDICTORS,
    Ancestral,
    AnnealedLangevin,
    Corrector,
    EulerMaruyama,
    Langevin,
    PCSampler,
    Predictor,
    ReverseDiffusion,
)

__all__ = [
    "CORRECTORS",
    "GRIDS",
    "ODE_METHODS",
    "PREDICTORS",
    "Ancestral",
    "AncestralSampler",
    "AnnealedLangevin",
    "AnnealedLangevinSampler",
    "ConsistentAnnealedSampler",
    "Corrector",
    "DDIMSampler",
    "EulerMaruyama",
    "Langevin",
    "ODESampler",
    "PCSampler",
    "Predictor",
    "ReverseDiffusion",
    "SampleResult",
    "Sampler",
    "StepSampler",
    "chain_grid",
    "log_snr_grid",
    "uniform_grid",
]
