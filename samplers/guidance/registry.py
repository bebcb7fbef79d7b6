"""The one table of guidance methods: every one by name.

An entry is the constructor of a score wrapper. Its keyword-only arguments are the options of the method.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from score_diffusion.samplers.guidance.autoguidance import Autoguidance
from score_diffusion.samplers.guidance.classifier import ClassifierGuidance
from score_diffusion.samplers.guidance.classifier_free import ClassifierFreeGuidance
from score_diffusion.samplers.guidance.embedding import EmbeddingGuidance
from score_diffusion.samplers.options import Option, keyword_options
from score_diffusion.sde_lib import ScoreWrapper

GUIDANCE: dict[str, Callable[..., ScoreWrapper]] = {
    "cfg": ClassifierFreeGuidance,
    "autoguidance": Autoguidance,
    "classifier": ClassifierGuidance,
    "clip": EmbeddingGuidance,
}


@cache
def guidance_options(name: str) -> dict[str, Option]:
    """The options of a method by name."""
    return keyword_options(GUIDANCE[name])
