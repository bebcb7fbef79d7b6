"""Samples of a user's as a run takes them: pixels or numbers, encoded where the model works on latents."""

from __future__ import annotations

from torch import Tensor

from score_diffusion.run.data.user_arrays import to_stored
from score_diffusion.run.inference.trained_model import TrainedModel


def model_inputs(trained: TrainedModel, x: object) -> Tensor:
    """Inputs of the model, float32 (n, *shape), of samples as `Run.log_likelihood` takes them."""
    return trained.model_inputs(_as_stored(trained, x))


def scored_inputs(trained: TrainedModel, x: object) -> Tensor:
    """The same as they are scored: grey levels, which are dequantized then, or standardized numbers."""
    return _as_stored(trained, x) if trained.latent_space is None else model_inputs(trained, x)


def _as_stored(trained: TrainedModel, x: object) -> Tensor:
    return to_stored(x, trained.shown.shape, trained.shown.scaling)
