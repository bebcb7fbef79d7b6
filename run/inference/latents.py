"""Codes of samples: the probability flow from data to noise, and back, and the paths between samples that
codes allow (Song et al., 2021, Section 4.3 and Appendix D.3).

All samples here are in the units of the model, as a score function takes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from score_diffusion.run.console import advance_to, progress_bar
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.samplers import ODESampler, interpolate

DELAY = 2.0  # seconds after which a bar is shown


def encode(trained: TrainedModel, sampler: ODESampler, x: Tensor, batch_size: int) -> Tensor:
    """The codes of samples, each under its condition; float32 (n, *shape), on the CPU.

    Args:
        trained: The model.
        sampler: The flow.
        x: Samples, float32 (n, *shape).
        batch_size: Samples encoded at a time.
    """
    score, codes = trained.sampling_score(), []
    starts = range(0, len(x), batch_size)
    with progress_bar(None, "encoding", "step", delay=DELAY) as bar:
        for number, first in enumerate(starts):

            def on_step(i: int, n: int, number: int = number) -> None:
                advance_to(bar, number * n + i, len(starts) * n)

            batch = x[first : first + batch_size]
            cond = trained.conditions.of(range(first, first + len(batch)), trained.device)
            codes.append(sampler.encode(score, batch.to(trained.device), cond, on_step).cpu())
    return torch.cat(codes)


def decode(trained: TrainedModel, sampler: ODESampler, codes: Tensor, batch_size: int) -> tuple[Tensor, int]:
    """The samples of codes, each under its condition, float32 on the CPU, and the network evaluations.

    Args:
        trained: The model.
        sampler: The flow.
        codes: Codes, float32 (n, *shape).
        batch_size: Codes decoded at a time.
    """
    score, parts, nfe = trained.sampling_score(), [], 0
    starts = range(0, len(codes), batch_size)
    with progress_bar(None, "decoding", "step", delay=DELAY) as bar:
        for number, first in enumerate(starts):

            def on_step(i: int, n: int, number: int = number) -> None:
                advance_to(bar, number * n + i, len(starts) * n)

            batch = codes[first : first + batch_size].to(trained.device)
            cond = trained.conditions.of(range(first, first + len(batch)), trained.device)
            result = sampler(score, batch.shape, cond=cond, x_T=batch, on_step=on_step)
            parts.append(result.samples.cpu())
            nfe = max(nfe, result.nfe)
    return torch.cat(parts), nfe


@dataclass(frozen=True)
class Paths:
    """Paths of samples between the two ends of n pairs."""

    samples: Tensor
    """In the units of the model, (n, points, *shape): each path from its first end to its second."""
    codes: Tensor
    """Of the ends, (n, 2, *shape)."""
    nfe: int
    """Network evaluations that decoded the sample that took most."""


def paths_between(
    trained: TrainedModel, sampler: ODESampler, ends: Tensor, points: int, batch_size: int, first: int = 0
) -> Paths:
    """Paths between pairs of samples: their codes, interpolated on the sphere, decoded.

    The whole path of pair k, its ends too, is under condition `first` + k of the model.

    Args:
        trained: The model.
        sampler: The flow.
        ends: The pairs, float32 (n, 2, *shape).
        points: Samples on a path, with its two ends.
        batch_size: Samples encoded or decoded at a time.
        first: Number of the first pair.
    """
    pairs, shape = range(first, first + len(ends)), ends.shape[2:]
    codes = encode(_each_repeated(trained, pairs, 2), sampler, ends.flatten(0, 1), batch_size)
    codes = codes.unflatten(0, (len(ends), 2))
    between = interpolate(codes[:, 0], codes[:, 1], torch.linspace(0, 1, points)).transpose(0, 1)
    model = _each_repeated(trained, pairs, points)
    samples, nfe = decode(model, sampler, between.reshape(-1, *shape), batch_size)
    return Paths(samples.unflatten(0, (len(ends), points)), codes, nfe)


def _each_repeated(trained: TrainedModel, indices: range, times: int) -> TrainedModel:
    """The model under the conditions of these indices, each for so many samples in a row."""
    cond = trained.conditions.chosen(indices)
    rows = {kind: values.repeat_interleave(times, 0) for kind, values in cond.items()}
    return replace(trained, conditions=replace(trained.conditions, rows=rows))
