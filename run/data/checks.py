"""Warnings about training sets that can be used but are probably not what the user meant."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from score_diffusion.run.console import warn
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.sources import subset_in_memory

LOOKED_AT = 256  # samples of a stream
SMALL_PART = 1 / 8  # of the grey levels
MOST_SCALE = 20.0  # of the values of a condition
MOST_SPREAD = 20.0  # of standard deviations of channels that are standardized by one number


def warn_of_oddities(dataset: Dataset) -> None:
    """Warns if all samples have one grey level or use a small part of the range, or if a channel is constant
    or varies much less than others.
    """
    samples = subset_in_memory(dataset.train, LOOKED_AT)
    oddities = _levels(samples, dataset.levels) if dataset.levels else _numbers(samples)
    for sentence in (*oddities, *_conditions(dataset)):
        warn(f"data {dataset.name}: {sentence}")


def warn_of_unsigned_brightness(low: float, scaling: Scaling, source: str) -> None:
    """Warns if brightness, which is -1 for black and 1 for white, may have been given from 0 to 1.

    Args:
        low: The smallest value.
        scaling: The scaling of the run's data; numbers have no brightness.
        source: What to call the samples.
    """
    if scaling.levels is not None and low >= 0:
        warn(
            f"{source} are brighter than mid-grey everywhere, as -1 is black and 1 is white: give values "
            f"from 0 to 1 as 2x - 1, or as whole numbers from 0 to {scaling.levels - 1}"
        )


def _conditions(dataset: Dataset) -> Iterator[str]:
    for kind in ("vector", "tokens", "image"):
        values = dataset.conditions.get(kind)
        if values is not None and not 1 / MOST_SCALE < values.square().mean().sqrt() < MOST_SCALE:
            yield (
                f"the root mean square of cond_{kind} is {values.square().mean().sqrt():.3g}, and a network "
                "learns best from conditions of about unit scale: scale them"
            )


def _levels(samples: torch.Tensor, levels: int) -> Iterator[str]:
    low, high = (int(end) for end in samples.aminmax())
    cause = "check the files, and data.bits if their grey levels have other than 8 bits"
    if low == high:
        yield f"all training samples have the one grey level {low} of {levels}: {cause}"
    elif high - low + 1 <= SMALL_PART * levels:
        yield f"training samples use nothing but the grey levels {low} to {high} of {levels}: {cause}"
    else:
        channels = samples.transpose(0, 1).flatten(1)
        constant = [k for k, channel in enumerate(channels) if channel.min() == channel.max()]
        if constant:
            yield f"channel {', '.join(map(str, constant))} is constant in all training samples"


def _numbers(samples: torch.Tensor) -> Iterator[str]:
    if samples.ndim == 2:
        return  # points: each column is standardized, and none is constant
    std = samples.transpose(0, 1).flatten(1).std(1, correction=0)
    if std.min() * MOST_SPREAD < std.max():
        listed = ", ".join(f"{value:.3g}" for value in (std / std.max()).tolist()[:8])
        yield (
            f"the standard deviations of the channels differ by a large factor ({listed}), and the small "
            "ones are learned badly: set --config.data.standardize=per_channel"
        )
