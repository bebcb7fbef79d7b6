"""What a reader of another library's checkpoints finds: a description of its network, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Description:
    """What a file or folder says itself about a network and what it was trained for."""

    image_shape: tuple[int, int, int]
    """Channels, height and width."""
    network: Mapping[str, object]
    """Arguments of the network after in_channels."""
    score: Mapping[str, object]
    """Arguments of ScoreModel after net and sde."""
    sde: Mapping[str, object]
    """A section `sde`."""
    name: str = "unet"
    """The network, a name that `model.name` takes."""
    variance: str = "small"
    """The variance of the reverse steps that it is sampled with: "small", "large" or "learned"."""
    clip: float = 0.0
    """The bound on denoised samples that it is sampled with; 0 for none."""
    sampler: str | None = None
    """The sampler that it was made for; None where that is left open."""
    notes: tuple[str, ...] = ()
    """What was assumed where the file leaves it open, and what was left out."""


@dataclass(frozen=True)
class Weights:
    """What a file holds, as the tensors of a network."""

    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    """Averaged weights; the same as `model` where the file holds one set."""
    step: int = 0
    """Training steps behind them; 0 where the file does not say."""
    notes: tuple[str, ...] = field(default=())
    """What was assumed where the file leaves it open, and what was left out."""
