"""What a `Run` returns."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from score_diffusion.run import plots
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.user_arrays import to_own_units
from score_diffusion.run.inference.judging import Quality
from score_diffusion.run.inference.scoring import Scores

PICTURED = 400  # images in a picture, at most


@dataclass(frozen=True)
class Samples:
    """Samples of a run. NumPy takes them for the array `values`, and a notebook shows them as a picture."""

    samples: np.ndarray
    """As in the files of `--mode sample`: brightness in [-1, 1], float32 (n, C, H, W), or numbers in the
    units of your data, (n, D) or channels first.
    """
    nfe: int
    """Network evaluations per sample, the largest number where samples choose their own steps."""
    data: DataInfo
    """The data of the run."""
    labels: np.ndarray | None = None
    """Class indices, int64 (n,), -1 for no class; None for a model without classes."""
    names: Sequence[str] | None = None
    """The names of these classes, or the texts; None without either."""

    @cached_property
    def values(self) -> np.ndarray:
        """Raw pixels, uint8 (n, H, W) or (n, H, W, C), or numbers in the units of your data."""
        return to_own_units(self.samples, self.data.scaling)

    def save(self, path: str | Path) -> Path:
        """Saves a picture, a .png file: images as a grid, points as a scatter plot, signals as curves."""
        path = Path(path)
        shown = self.samples if self.samples.ndim == 2 else self.samples[:PICTURED]
        names = None if self.names is None else self.names[: len(shown)]
        plots.save_samples(path, shown, self.data.scaling.limits, names)
        return path

    def __len__(self) -> int:
        return len(self.samples)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def _repr_png_(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return self.save(Path(folder) / "samples.png").read_bytes()


@dataclass(frozen=True)
class LogLikelihoods:
    """Log-likelihoods of n samples."""

    log_prob: np.ndarray
    """log p(x) in nats, float64 (n,): of images the log-probability of their grey levels, or a lower bound on
    it; of numbers the log-density in the units of your data.
    """
    bits_per_dim: np.ndarray
    """-log₂ p(x) per dimension, float64 (n,)."""
    nfe: int
    """Network evaluations per sample."""
    standard_error: np.ndarray | None = None
    """Of each `bits_per_dim`, by dequantization and probes, float64 (n,); None where a sample was scored with
    one draw of both.
    """

    @classmethod
    def of(cls, scores: Scores, data: DataInfo) -> LogLikelihoods:
        """Those of scores, which are in bits per dimension for images and in nats for numbers."""
        nats_of_a_bit = math.prod(data.shape) * math.log(2)
        to_bits = 1.0 if data.levels else 1 / nats_of_a_bit
        bits, errors = scores.values * to_bits, scores.standard_error_each
        return cls(-bits * nats_of_a_bit, bits, scores.nfe, None if errors is None else errors * to_bits)

    @property
    def mean(self) -> float:
        """The mean of `log_prob`."""
        return float(self.log_prob.mean())


@dataclass(frozen=True)
class Restorations:
    """Posterior samples of n measurements, k of each."""

    samples: np.ndarray
    """Brightness in [-1, 1] or numbers in the units of your data, (n, k, *shape), channels first."""
    mean: np.ndarray
    """Means over the samples, (n, *shape)."""
    deviation: np.ndarray
    """Standard deviations over the samples of each element, (n, *shape)."""
    nfe: int
    """Network evaluations per sample."""
    data: DataInfo
    """The data of the run."""
    quality: Quality | None
    """The samples against the truth: PSNR, SSIM, coverage; None where the truth is not known."""

    @property
    def values(self) -> np.ndarray:
        """Raw pixels, uint8 (n, k, H, W) or (n, k, H, W, C), or numbers in the units of your data."""
        n, k, *shape = self.samples.shape
        values = to_own_units(self.samples.reshape(n * k, *shape), self.data.scaling)
        return values.reshape(n, k, *values.shape[1:])
