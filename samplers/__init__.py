"""Score function -> samples. Imports torch, torchdiffeq and sde_lib alone.

Every sampler has the same call: `result = sampler(score, shape, seed=0)`.
"""

from samplers.ancestral import AncestralSampler, DDIMSampler
from samplers.base import Sampler, SampleResult, StepSampler
from samplers.grids import GRIDS, chain_grid, log_snr_grid, uniform_grid
from samplers.langevin import AnnealedLangevinSampler, ConsistentAnnealedSampler
from samplers.ode import ODE_METHODS, ODESampler
from samplers.predictor_corrector import CORRECTORS, AnnealedLangevin, Corrector, Langevin, PCSampler
from samplers.predictors import PREDICTORS, Ancestral, EulerMaruyama, Predictor, ReverseDiffusion
from samplers.program import LinearSampler, Stage

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
    "LinearSampler",
    "ODESampler",
    "PCSampler",
    "Predictor",
    "ReverseDiffusion",
    "SampleResult",
    "Sampler",
    "Stage",
    "StepSampler",
    "chain_grid",
    "log_snr_grid",
    "uniform_grid",
]
