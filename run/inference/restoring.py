"""Restoring: posterior samples of each measurement, their mean and deviation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from score_diffusion.run.console import advance_to, progress_bar
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.distributed import processes
from score_diffusion.run.inference.measurements import Measurements, to_user
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.samplers.inverse import Restorer
from score_diffusion.sde_lib import generator_for


@dataclass(frozen=True)
class RestoreRequest:
    """Which samples of the posteriors to draw."""

    task: str
    method: str
    noise: float
    num_samples: int
    """Of each input."""
    seed: int
    batch_size: int
    """Samples drawn at a time, which decides the speed only."""
    settings: str
    """All settings that decide the samples, as JSON."""


@dataclass(frozen=True)
class Batch:
    """Samples that are drawn together: of one input, from one index on."""

    input: int
    first: int
    count: int


@dataclass(frozen=True)
class Restored:
    """Posterior samples of n inputs."""

    samples: np.ndarray
    """In the user's units, (n, num_samples, *shape)."""
    nfe: int
    ess: float | None
    """The smallest effective sample size of a set of particles; None for methods without."""

    @cached_property
    def mean(self) -> np.ndarray:
        """Means over samples, (n, *shape)."""
        return self.samples.mean(1, dtype=np.float64).astype(self.samples.dtype)

    @cached_property
    def deviation(self) -> np.ndarray:
        """Standard deviations over samples of each element, (n, *shape)."""
        return self.samples.std(1, ddof=1, dtype=np.float64).astype(self.samples.dtype)


def draw_posteriors(
    trained: TrainedModel,
    make: Callable[[Tensor], Restorer],
    measurements: Measurements,
    request: RestoreRequest,
) -> Restored | None:
    """Draws samples given each measurement: each rank a share. Rank 0 has the result, the others None.

    Sample j of input i depends on (seed, i, j) and the measurement only, bit for bit.

    Args:
        trained: The model of the prior.
        make: From a measurement (*output_shape) to what draws samples given it.
        measurements: The measurements.
        request: Which samples to draw.
    """
    inputs, samples = len(measurements.y), request.num_samples
    score, cond = trained.sampling_score(), trained.conditions.of(range(1))
    batches = list(split(processes.own_share(inputs * samples), samples, request.batch_size))
    drawn: list[tuple[np.ndarray, int, float | None]] = []
    with progress_bar(None, "restoring", "step") as bar:
        for number, batch in enumerate(batches):

            def on_step(i: int, n: int, number: int = number) -> None:
                advance_to(bar, number * n + i, len(batches) * n)

            shape = (batch.count, *trained.data.shape)
            seed = generator_for(request.seed, "restore", batch.input).initial_seed()
            restorer = make(measurements.y[batch.input])
            result = restorer(score, shape, seed, cond=cond, first=batch.first, on_step=on_step)
            values = trained.data.scaling.model_to_user(result.samples).cpu().numpy()
            ess = getattr(result, "ess", None)  # of methods with particles
            drawn.append((values, result.nfe, None if ess is None else ess.min().item()))
    parts = processes.gather(drawn)
    if parts is None:
        return None
    values = np.concatenate([part[0] for part in parts])
    sizes = [part[2] for part in parts if part[2] is not None]
    return Restored(
        values.reshape(inputs, samples, *values.shape[1:]),
        max(part[1] for part in parts),
        min(sizes) if sizes else None,
    )


def split(share: range, num_samples: int, batch_size: int) -> Iterator[Batch]:
    """The batches of a share of all samples, of which each input has `num_samples` in a row."""
    start = share.start
    while start < share.stop:
        number, first = divmod(start, num_samples)
        count = min(batch_size, num_samples - first, share.stop - start)
        yield Batch(number, first, count)
        start += count


def with_known_elements(restored: Restored, measurements: Measurements, scaling: Scaling) -> Restored:
    """The samples with the elements that were measured without noise: methods come close to them only."""
    known = measurements.task.known
    if known is None:
        return restored
    measured = to_user(measurements, scaling)[:, None]
    samples = np.where(known.numpy(), measured, restored.samples).astype(restored.samples.dtype)
    return Restored(samples, restored.nfe, restored.ess)
