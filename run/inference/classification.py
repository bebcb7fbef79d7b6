"""A conditional model as a classifier: p(class | x) by Bayes' rule, from what it says of x under each class.

    p(c | x) ∝ p(x | c) p(c),    p(c) the share of class c in the training set

There are two estimates of log p(x | c). Both use the same random numbers for all classes of a sample, so that
most of the noise cancels in the differences between classes:

    likelihood    the likelihood of the probability flow, or DDPM's bound
    denoising     the bound -½ ∫ E‖ε̂(x_t, c) - ε‖² dλ + constant, λ = log SNR (Kingma et al., 2021), at
                  J times that are stratified over λ: J evaluations for each class

The second is Li et al.'s classifier with the bound's own weights of the noise levels.

References:
    Your Diffusion Model is Secretly a Zero-Shot Classifier (Li et al., 2023), https://arxiv.org/abs/2303.16203:
        Section 3.2, Algorithm 1.
    Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630: Section 5.1, the
        bound as an integral over the SNR.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.distributed import processes
from score_diffusion.run.inference.scoring import batches_of_rank
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.sde_lib import SDE, SampleNoise, denoising_score_matching


@dataclass(frozen=True)
class ClassifiedData:
    """What a diffusion classifier says of n samples of known class."""

    log_probabilities: np.ndarray
    """log p(class | x), shape (n, classes)."""
    labels: np.ndarray
    """The true classes, shape (n,)."""
    evaluations: int
    """Evaluations of the network for each sample, of all classes together."""

    @property
    def correct(self) -> np.ndarray:
        """Whether the likeliest class is the true one, shape (n,)."""
        return self.log_probabilities.argmax(1) == self.labels

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def standard_error(self) -> float:
        """Of the accuracy, by the number of samples."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / len(self.labels)))

    @property
    def log_loss(self) -> float:
        """The mean of -log p(true class | x), in nats."""
        return float(-self.log_probabilities[np.arange(len(self.labels)), self.labels].mean())


def by_bayes(log_likelihoods: np.ndarray, counts: Tensor) -> np.ndarray:
    """log p(c | x), shape (n, classes).

    Args:
        log_likelihoods: log p(x | c) in nats, up to a constant of each sample, shape (n, classes).
        counts: Number of training samples of each class, shape (classes,).
    """
    joint = torch.from_numpy(log_likelihoods).double() + counts.double().log()
    return joint.log_softmax(1).numpy()


def of_each_class(trained: TrainedModel, classes: int) -> Iterator[TrainedModel]:
    """The model with each class in turn in place of the samples' own, all other conditions as they are."""
    for label in range(classes):
        rows = {**trained.conditions.rows, "label": torch.tensor([label])}
        yield replace(trained, conditions=replace(trained.conditions, rows=rows))


def denoising_log_likelihoods(
    trained: TrainedModel, data: Tensor, classes: int, *, draws: int, batch_size: int, seed: int
) -> np.ndarray | None:
    """The denoising bound on log p(x | c) in nats, up to a constant of each sample, shape (n, classes).

    The times and the noise of sample k depend on (seed, k) only. Each rank works on a share, and rank 0 has
    the result; the others have None.

    Args:
        trained: The model, under the conditions of the data.
        data: Held-out samples as they are stored, shape (n, *shape).
        classes: Number of classes.
        draws: J, times for each sample and class.
        batch_size: Samples at a time.
        seed: Seed of times and noise.
    """
    parts = []
    for first, batch in batches_of_rank(data, batch_size, "classifying"):
        x_0 = trained.data.scaling.stored_to_model(batch).to(trained.device)
        indices = range(first, first + len(batch))
        scores = [each.score_of(indices) for each in of_each_class(trained, classes)]
        total = torch.zeros(len(x_0), classes, dtype=torch.float64, device=x_0.device)
        noise = SampleNoise(seed, first, x_0.shape, x_0.device, x_0.dtype, purpose="classification")
        times, width = _times(trained, indices, draws, seed)
        for t in times:
            epsilon = noise.normal()
            with torch.no_grad():
                for c, score in enumerate(scores):
                    mean_squares = denoising_score_matching(trained.sde, score, x_0, t, epsilon)
                    total[:, c] -= 0.5 * width * x_0[0].numel() * mean_squares.double()
        parts.append(total.cpu().numpy())
    gathered = processes.gather(parts)
    return None if gathered is None else np.concatenate(gathered)


def _times(trained: TrainedModel, indices: range, draws: int, seed: int) -> tuple[Tensor, float]:
    """Times (draws, n), one in each of the equal parts of the range of log SNR, and the width of a part."""
    sde, device = trained.sde, trained.device
    ends = sde.log_noise_level(torch.tensor([trained.first_time, _last_time(sde)], dtype=torch.float64))
    low, width = ends[0].item(), ends.diff().item() / draws
    shape = (len(indices), 1)
    streams = SampleNoise(seed, indices.start, shape, device, torch.float64, purpose="classification times")
    u = torch.special.ndtr(torch.stack([streams.normal()[:, 0] for _ in range(draws)]))
    levels = low + width * (torch.arange(draws, device=device)[:, None] + u)
    return sde.time_at_log_noise_level(levels).clamp_min(trained.first_time), 2 * width


def _last_time(sde: SDE) -> float:
    """The last time with data left in it: at T itself rectified flow has none."""
    return sde.T if sde.log_noise_level(torch.tensor(sde.T)).isfinite() else 0.999 * sde.T
