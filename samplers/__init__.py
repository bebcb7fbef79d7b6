"""Score function -> samples. Imports only torch, torchdiffeq and sde_lib.

Every sampler is made by `(sde, times, *, denoise, <options>)` and called by `sampler(score, shape, seed=0)`,
or by `sampler(score, shape, seed=0, cond=cond)` for a score of a condition.
"""

from score_diffusion.samplers.adaptive import AdaptiveSDESampler
from score_diffusion.samplers.adaptive_adams import AdaptiveAdams
from score_diffusion.samplers.base import Sampler, SampleResult, StepSampler
from score_diffusion.samplers.chain import AncestralSampler, DDIMSampler
from score_diffusion.samplers.exponential import (
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
    eab_sde,
    eabm,
    unipc,
)
from score_diffusion.samplers.exponential_adams import ExponentialAdams
from score_diffusion.samplers.fit_solver import SolverFit, fit_solver
from score_diffusion.samplers.fixed_batches import FixedBatches
from score_diffusion.samplers.grids import (
    GRIDS,
    Grid,
    chain_grid,
    clock_grid,
    early_grid,
    karras_grid,
    log_snr_grid,
    quadratic_grid,
    spread_grid,
    uniform_grid,
)
from score_diffusion.samplers.langevin import AnnealedLangevinSampler, ConsistentAnnealedSampler
from score_diffusion.samplers.linear import LinearSampler, Stage, clip_bounds
from score_diffusion.samplers.ode import ODE_METHODS, ODESampler, interpolate, reconstruction_error
from score_diffusion.samplers.options import Names, Option
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
    ancestral,
    euler_maruyama,
    reverse_diffusion,
)
from score_diffusion.samplers.registry import (
    DEFAULT,
    DEFAULT_STOCHASTIC,
    SAMPLERS,
    Cost,
    SamplerSpec,
    find_sampler,
    make_sampler,
    sampler_grid,
    sampler_options,
    sampler_table,
)
from score_diffusion.samplers.runge_kutta import (
    dpmpp_2s,
    edm,
    edm_churn,
    euler,
    heun,
    midpoint,
    restart,
    rk4,
)

__all__ = [
    "AdaptiveAdams",
    "AdaptiveSDESampler",
    "Ancestral",
    "AncestralSampler",
    "AnnealedLangevin",
    "AnnealedLangevinSampler",
    "CORRECTORS",
    "ConsistentAnnealedSampler",
    "Corrector",
    "Cost",
    "DDIMSampler",
    "DEFAULT",
    "DEFAULT_STOCHASTIC",
    "EulerMaruyama",
    "ExponentialAdams",
    "FixedBatches",
    "GRIDS",
    "Grid",
    "Langevin",
    "LinearSampler",
    "Names",
    "ODESampler",
    "ODE_METHODS",
    "Option",
    "PCSampler",
    "PREDICTORS",
    "Predictor",
    "ReverseDiffusion",
    "SAMPLERS",
    "SampleResult",
    "SolverFit",
    "Sampler",
    "SamplerSpec",
    "Stage",
    "StepSampler",
    "ancestral",
    "chain_grid",
    "clip_bounds",
    "clock_grid",
    "deis",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "eab_sde",
    "early_grid",
    "spread_grid",
    "eabm",
    "edm",
    "edm_churn",
    "euler",
    "euler_maruyama",
    "find_sampler",
    "fit_solver",
    "heun",
    "interpolate",
    "karras_grid",
    "log_snr_grid",
    "make_sampler",
    "midpoint",
    "quadratic_grid",
    "reconstruction_error",
    "restart",
    "reverse_diffusion",
    "rk4",
    "sampler_grid",
    "sampler_options",
    "sampler_table",
    "uniform_grid",
    "unipc",
]

if __name__ == "samplers":  # in a checkout: the names above, no second copy of the files
    __path__ = []
