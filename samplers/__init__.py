"""Score function -> samples. Imports torch, torchdiffeq and sde_lib alone.

Every sampler has the same call: `result = sampler(score, shape, seed=0)`.
"""

from score_diffusion.samplers.adaptive import AdaptiveSDESampler
from score_diffusion.samplers.ancestral import AncestralSampler, DDIMSampler
from score_diffusion.samplers.base import Sampler, SampleResult, StepSampler
from score_diffusion.samplers.exponential import dpm_solver_stages, exponential_adams_stages, unipc_stages
from score_diffusion.samplers.fit_grid import fit_grid
from score_diffusion.samplers.fixed_batches import FixedBatches
from score_diffusion.samplers.grids import (
    GRIDS,
    chain_grid,
    clock_grid,
    karras_grid,
    log_snr_grid,
    quadratic_grid,
    uniform_grid,
)
from score_diffusion.samplers.langevin import AnnealedLangevinSampler, ConsistentAnnealedSampler
from score_diffusion.samplers.linear import LinearSampler, Stage
from score_diffusion.samplers.ode import ODE_METHODS, ODESampler, interpolate, reconstruction_error
from score_diffusion.samplers.predictor_corrector import (
    CORRECTORS,
    AnnealedLangevin,
    Corrector,
    Langevin,
    PCSampler,
)
from score_diffusion.samplers.predictors import (
    PREDICTORS,
    Ancestral,
    EulerMaruyama,
    Predictor,
    ReverseDiffusion,
)
from score_diffusion.samplers.registry import (
    DEFAULT,
    SAMPLERS,
    SamplerSpec,
    find_sampler,
    make_sampler,
    sampler_table,
)
from score_diffusion.samplers.runge_kutta import (
    dpm_solver_2s_stages,
    edm_stages,
    restart_stages,
    runge_kutta_stages,
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
    "AdaptiveSDESampler",
    "DEFAULT",
    "SAMPLERS",
    "SamplerSpec",
    "clock_grid",
    "dpm_solver_2s_stages",
    "dpm_solver_stages",
    "edm_stages",
    "exponential_adams_stages",
    "interpolate",
    "karras_grid",
    "make_sampler",
    "quadratic_grid",
    "reconstruction_error",
    "restart_stages",
    "runge_kutta_stages",
    "sampler_table",
    "unipc_stages",
    "FixedBatches",
    "find_sampler",
    "fit_grid",
    "uniform_grid",
]

if __name__ == "samplers":  # in a checkout: the names above, no second copy of the files
    __path__ = []
