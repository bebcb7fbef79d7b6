"""Inverse problems: measurement operators."""

from score_diffusion.samplers.inverse.blur import Blur, gaussian_kernel, uniform_kernel
from score_diffusion.samplers.inverse.fourier import Fourier, column_sampling
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
from score_diffusion.samplers.inverse.pixels import Downsample, Mask, ToGrey
from score_diffusion.samplers.inverse.radon import Radon

__all__ = [
    "Blur",
    "Downsample",
    "Fourier",
    "FunctionOperator",
    "JPEGQuantization",
    "LinearFunctionOperator",
    "LinearOperator",
    "Mask",
    "MatrixOperator",
    "Operator",
    "PhaseRetrieval",
    "Radon",
    "RandomProjection",
    "SVD",
    "ToGrey",
    "column_sampling",
    "gaussian_kernel",
    "uniform_kernel",
]
