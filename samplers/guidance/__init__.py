"""Guidance: score functions that lead samples to a class, a caption or a better model's samples.

Every method takes a score function and is one: it works with every sampler, SDE and time grid.
"""

from score_diffusion.samplers.guidance.autoguidance import Autoguidance
from score_diffusion.samplers.guidance.classifier import (
    ClassifierGuidance,
    ClassLogProbability,
    MeanShiftSampler,
)
from score_diffusion.samplers.guidance.classifier_free import ClassifierFreeGuidance
from score_diffusion.samplers.guidance.conditions import WithoutCondition, null_condition
from score_diffusion.samplers.guidance.embedding import EmbeddingGuidance
from score_diffusion.samplers.guidance.registry import GUIDANCE, guidance_options
from score_diffusion.samplers.guidance.thresholding import DynamicThresholding

__all__ = [
    "Autoguidance",
    "ClassLogProbability",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "DynamicThresholding",
    "EmbeddingGuidance",
    "GUIDANCE",
    "MeanShiftSampler",
    "WithoutCondition",
    "guidance_options",
    "null_condition",
]
