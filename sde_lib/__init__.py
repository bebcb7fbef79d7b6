"""The mathematics: SDEs, score functions, losses, likelihoods and exact laws. Imports only torch."""

from score_diffusion.sde_lib.beta_tables import (
    BETA_TABLES,
    cosine_betas,
    linear_betas,
    quadratic_betas,
    sigmoid_betas,
)
from score_diffusion.sde_lib.ddpm import (
    DDPM,
    VARIANCES,
    chain_times,
    check_variance,
    reverse_transition,
)
from score_diffusion.sde_lib.dequantization import logistic_noise
from score_diffusion.sde_lib.divergence import draw_probes, score_and_divergence
from score_diffusion.sde_lib.errors import InputError, check_name
from score_diffusion.sde_lib.exact import Gaussian, GaussianMixture
from score_diffusion.sde_lib.likelihood import (
    AdaptiveSolver,
    DensitySolver,
    Likelihood,
    dequantize,
    log_likelihood,
    quantize,
)
from score_diffusion.sde_lib.losses import (
    WEIGHTINGS,
    EDMWeighting,
    LearnedUncertainty,
    MinSNRWeighting,
    Weighting,
    denoising_score_matching,
    find_weighting,
)
from score_diffusion.sde_lib.ncsn_levels import (
    SMALLEST_DIMENSION,
    geometric_levels,
    langevin_epsilon,
    largest_distance,
    level_ratio,
    level_times,
    ncsnv2_levels,
    number_of_levels,
    relative_step_size,
    variance_ratio,
)
from score_diffusion.sde_lib.noisy_data_model import NoisyDataModel
from score_diffusion.sde_lib.paths import EDMSDE, CosineVPSDE, RectifiedFlowSDE
from score_diffusion.sde_lib.random_streams import SampleNoise, generator_for
from score_diffusion.sde_lib.reverse_bound import ReverseBound, reverse_sde_bound, reverse_sde_estimate
from score_diffusion.sde_lib.score import ScoreModel, denoised_from, score_change, tweedie
from score_diffusion.sde_lib.score_matching import (
    implicit_score_matching,
    perturbed_score_matching,
    sliced_score_matching,
)
from score_diffusion.sde_lib.score_wrapper import (
    Condition,
    ConditionalScore,
    Evaluation,
    ScoreWrapper,
    evaluations,
    in_dtype,
    map_condition,
    score_and_fraction,
    score_device,
)
from score_diffusion.sde_lib.sde import SDE, ReverseSDE, ScoreFunction, expand
from score_diffusion.sde_lib.times import (
    ChainTimes,
    DrawnTimes,
    ImportanceTimes,
    LikelihoodTimes,
    LogNormalTimes,
    TrainingTimes,
    UniformTimes,
    noisy_times,
    sample_times,
    stratified_uniform,
)
from score_diffusion.sde_lib.vlb import (
    VariationalBound,
    decoder_log_prob,
    hybrid_loss,
    variational_bound,
    vlb_terms,
)
from score_diffusion.sde_lib.vp_ve import VESDE, VPSDE, SubVPSDE, subVPSDE

__all__ = [
    "AdaptiveSolver",
    "BETA_TABLES",
    "DDPM",
    "DensitySolver",
    "EDMSDE",
    "SDE",
    "SMALLEST_DIMENSION",
    "VARIANCES",
    "VESDE",
    "VPSDE",
    "WEIGHTINGS",
    "ChainTimes",
    "Condition",
    "ConditionalScore",
    "CosineVPSDE",
    "DrawnTimes",
    "EDMWeighting",
    "Evaluation",
    "Gaussian",
    "GaussianMixture",
    "ImportanceTimes",
    "InputError",
    "LearnedUncertainty",
    "Likelihood",
    "LikelihoodTimes",
    "LogNormalTimes",
    "MinSNRWeighting",
    "NoisyDataModel",
    "RectifiedFlowSDE",
    "ReverseBound",
    "ReverseSDE",
    "SampleNoise",
    "ScoreFunction",
    "ScoreModel",
    "ScoreWrapper",
    "SubVPSDE",
    "TrainingTimes",
    "UniformTimes",
    "VariationalBound",
    "Weighting",
    "chain_times",
    "check_name",
    "check_variance",
    "cosine_betas",
    "decoder_log_prob",
    "denoised_from",
    "denoising_score_matching",
    "dequantize",
    "draw_probes",
    "evaluations",
    "expand",
    "find_weighting",
    "generator_for",
    "geometric_levels",
    "hybrid_loss",
    "in_dtype",
    "implicit_score_matching",
    "langevin_epsilon",
    "largest_distance",
    "level_ratio",
    "level_times",
    "linear_betas",
    "log_likelihood",
    "logistic_noise",
    "map_condition",
    "ncsnv2_levels",
    "noisy_times",
    "number_of_levels",
    "perturbed_score_matching",
    "quadratic_betas",
    "quantize",
    "relative_step_size",
    "reverse_sde_bound",
    "reverse_sde_estimate",
    "reverse_transition",
    "sample_times",
    "score_and_fraction",
    "score_and_divergence",
    "score_change",
    "score_device",
    "sigmoid_betas",
    "sliced_score_matching",
    "stratified_uniform",
    "subVPSDE",
    "tweedie",
    "variance_ratio",
    "variational_bound",
    "vlb_terms",
]

if __name__ == "sde_lib":  # in a checkout: the names above, no second copy of the files
    __path__ = []
