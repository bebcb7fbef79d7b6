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

__all__ = [
    "Autoguidance",
    "ClassLogProbability",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "EmbeddingGuidance",
    "MeanShiftSampler",
    "WithoutCondition",
    "null_condition",
]
