"""Restored samples against the truth: closeness of their mean, and whether their deviations are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.inference.image_quality import psnr, ssim
from score_diffusion.run.inference.measurements import Measurements
from score_diffusion.run.inference.restoring import Restored
from score_diffusion.samplers.inverse import interval_coverage
from score_diffusion.sde_lib import generator_for

LEVELS = (0.5, 0.9)
"""Levels of the intervals whose coverage is measured."""
TOLERANCE = 0.05  # of the coverage of the widest


@dataclass(frozen=True)
class Quality:
    """Restored samples against the truth, one number for each of n inputs."""

    psnr: np.ndarray
    """Of the mean, in dB."""
    psnr_of_samples: np.ndarray
    """The mean over samples."""
    ssim: np.ndarray | None
    """Of the mean; None for data that are no images."""
    coverage: np.ndarray | None
    """The share of judged elements inside the central intervals of `LEVELS`, (len(LEVELS), n); None if there
    are too few samples."""
    error_over_deviation: float
    """Root mean square of the mean's error over that of the deviation, 1 for calibrated samples."""

    @property
    def verdict(self) -> str:
        """What the coverage of the widest intervals says."""
        if self.coverage is None:
            return ""
        share = self.coverage[-1].mean()
        if abs(share - LEVELS[-1]) <= TOLERANCE:
            return "calibrated"
        return "over-confident" if share < LEVELS[-1] else "wider than needed"


def judge(restored: Restored, measurements: Measurements, scaling: Scaling, seed: int) -> Quality | None:
    """The samples against the truth; None where it is not known.

    Grey levels are judged as the model knows them: the truth at its levels, and uniform noise within a level
    added to samples and truth, so that a truth that equals many samples is as often above them as below.
    """
    truth, where = measurements.truth, measurements.where
    if truth is None:
        return None
    value_range = 2.0 if scaling.levels else float(np.ptp(truth))
    mean, samples = restored.mean, restored.samples
    each = [psnr(samples[:, j], truth, value_range) for j in range(samples.shape[1])]
    spread = np.square(restored.deviation.astype(np.float64))[:, where].mean()
    error = np.square(mean.astype(np.float64) - truth)[:, where].mean()
    return Quality(
        psnr(mean, truth, value_range),
        np.mean(each, axis=0),
        ssim(mean, truth, value_range) if truth.ndim == 4 else None,
        _coverage(samples, truth, scaling, where, seed),
        float(np.sqrt(error / spread)) if spread > 0 else float("inf" if error > 0 else 1),
    )


def _coverage(
    samples: np.ndarray, truth: np.ndarray, scaling: Scaling, where: Tensor, seed: int
) -> np.ndarray | None:
    n = samples.shape[1]
    if n + 1 < 2 / (1 - max(LEVELS)):
        return None
    draws, true = torch.from_numpy(samples).transpose(0, 1), torch.from_numpy(truth)
    if scaling.levels:
        generator = generator_for(seed, "judge")
        draws, true = (
            scaling.model_to_user(x.float())
            + (torch.rand(x.shape, generator=generator) - 0.5) * scaling.bin_width
            for x in (draws, true)
        )
    each = [interval_coverage(draws[:, i], true[i], LEVELS, where) for i in range(len(truth))]
    return torch.stack(each, 1).numpy()
