"""Codes of samples: the probability flow from data to noise, and back (Song et al., 2021, Section 4.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.console import advance_to, progress_bar
from score_diffusion.run.inference.sample_files import sampling_score
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.samplers import ODESampler

DELAY = 2.0  # seconds after which a bar is shown


def encode(trained: TrainedModel, sampler: ODESampler, stored: Tensor, batch_size: int) -> np.ndarray:
    """The codes of samples, each under its condition; float32 (n, *shape).

    Args:
        trained: The model.
        sampler: The flow.
        stored: Grey levels or standardized numbers, shape (n, *shape).
        batch_size: Samples encoded at a time.
    """
    score, codes = sampling_score(trained), []
    with progress_bar(len(stored), "encoding", "sample", delay=DELAY) as bar:
        for first in range(0, len(stored), batch_size):
            batch = trained.data.scaling.stored_to_model(stored[first : first + batch_size])
            cond = trained.conditions.of(range(first, first + len(batch)), trained.device)
            codes.append(sampler.encode(score, batch.to(trained.device), cond).cpu())
            bar.update(len(batch))
    return torch.cat(codes).numpy()


def decode(
    trained: TrainedModel, sampler: ODESampler, codes: Tensor, batch_size: int
) -> tuple[np.ndarray, int]:
    """The samples of codes, each under its condition: in the user's units, and the network evaluations.

    Args:
        trained: The model.
        sampler: The flow.
        codes: Codes, float32 (n, *shape).
        batch_size: Codes decoded at a time.
    """
    score, parts, nfe = sampling_score(trained), [], 0
    starts = range(0, len(codes), batch_size)
    with progress_bar(None, "decoding", "step", delay=DELAY) as bar:
        for number, first in enumerate(starts):

            def on_step(i: int, n: int, number: int = number) -> None:
                advance_to(bar, number * n + i, len(starts) * n)

            batch = codes[first : first + batch_size].to(trained.device)
            cond = trained.conditions.of(range(first, first + len(batch)))
            result = sampler(score, batch.shape, cond=cond, x_T=batch, on_step=on_step)
            parts.append(trained.data.scaling.model_to_user(result.samples).cpu().numpy())
            nfe = max(nfe, result.nfe)
    return np.concatenate(parts), nfe
