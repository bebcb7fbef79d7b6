"""Inverse problems: measurement operators, and samplers of p(x | y) from the score of the prior p(x)."""

from score_diffusion.samplers.inverse.blur import Blur, gaussian_kernel, uniform_kernel
from score_diffusion.samplers.inverse.calibration import central_interval, interval_coverage
from score_diffusion.samplers.inverse.ddrm import DDRMSampler
from score_diffusion.samplers.inverse.diffpir import DiffPIR, diffpir_steps
from score_diffusion.samplers.inverse.dps import DPS
from score_diffusion.samplers.inverse.fourier import Fourier, column_sampling
from score_diffusion.samplers.inverse.methods import (
    METHODS,
    InverseProblem,
    Restorer,
    enlarge,
    restorer,
    sdedit,
)
from score_diffusion.samplers.inverse.moment_matching import MomentMatching
from score_diffusion.samplers.inverse.nonlinear import JPEGQuantization, PhaseRetrieval
from score_diffusion.samplers.inverse.operators import (
    SVD,
    FunctionOperator,
    LinearFunctionOperator,
    LinearOperator,
    MatrixOperator,
    Operator,
    RandomProjection,
)
from score_diffusion.samplers.inverse.pigdm import PiGDM
from score_diffusion.samplers.inverse.pixels import Downsample, Mask, ToGrey
from score_diffusion.samplers.inverse.posterior import PosteriorScore
from score_diffusion.samplers.inverse.radon import Radon
from score_diffusion.samplers.inverse.repaint import RePaintSampler
from score_diffusion.samplers.inverse.replacement import Replacement
from score_diffusion.samplers.inverse.sdedit import grid_from, noised_guide, times_from
from score_diffusion.samplers.inverse.super_resolution import GivenSmallImage, augmentation_level
from score_diffusion.samplers.inverse.twisted import ParticleResult, TwistedSampler

__all__ = [
    "Blur",
    "DDRMSampler",
    "DPS",
    "DiffPIR",
    "Downsample",
    "Fourier",
    "FunctionOperator",
    "GivenSmallImage",
    "InverseProblem",
    "JPEGQuantization",
    "LinearFunctionOperator",
    "LinearOperator",
    "METHODS",
    "Mask",
    "MatrixOperator",
    "MomentMatching",
    "Operator",
    "ParticleResult",
    "PhaseRetrieval",
    "PiGDM",
    "PosteriorScore",
    "Radon",
    "RandomProjection",
    "Replacement",
    "Restorer",
    "SVD",
    "ToGrey",
    "TwistedSampler",
    "augmentation_level",
    "enlarge",
    "central_interval",
    "column_sampling",
    "diffpir_steps",
    "gaussian_kernel",
    "grid_from",
    "interval_coverage",
    "noised_guide",
    "RePaintSampler",
    "restorer",
    "sdedit",
    "times_from",
    "uniform_kernel",
]
