"""What drawing and scoring take, said before they start: too much memory is refused, days are announced."""

from __future__ import annotations

import math
import time

import torch

from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.machine import refuse_beyond_memory, warn_of_days

WORTH_TIMING = 2000  # evaluations of one sample, of which timing some takes a small part
TIMED_SAMPLES = 32
LEAST_ODE_EVALUATIONS = 20  # of an adaptive solver; mostly there are several times as many


def announce_duration(trained: TrainedModel, evaluations: int, what: str, advice: str) -> None:
    """Times the network and says how long work will take, if that is more than a day.

    Args:
        trained: The model.
        evaluations: How often the network evaluates one sample.
        what: The work, the subject of the message.
        advice: What to do.
    """
    if evaluations > WORTH_TIMING:
        warn_of_days(evaluations * _seconds_per_sample(trained), what, advice)


@torch.no_grad()
def _seconds_per_sample(trained: TrainedModel) -> float:
    """The time that the network takes for one of `TIMED_SAMPLES` samples."""
    x = trained.sde.prior_std * torch.randn(
        TIMED_SAMPLES, *trained.data.shape, generator=torch.Generator().manual_seed(0)
    )
    x = x.to(trained.device)
    t = torch.full((len(x),), trained.sde.T, device=x.device)
    score = trained.score_of(range(1))
    score(x[:1], t[:1])  # the first call allocates
    start = time.perf_counter()
    score(x, t).sum().item()  # waits for the device
    return (time.perf_counter() - start) / len(x)


def refuse_too_many_samples(
    trained: TrainedModel, num_samples: int, advice: str = "lower sampling.num_samples"
) -> None:
    """Refuses samples that do not fit in memory; they are written at the end.

    Raises:
        UserError: If they do not.
    """
    size = 2 * 4 * num_samples * math.prod(trained.data.shape)  # in batches, then in one array
    refuse_beyond_memory(size, f"a file of {num_samples:,} samples", advice)


def check_ode(trained: TrainedModel, num_samples: int, batch_size: int, n_probes: int) -> None:
    """Refuses probes that do not fit in memory, and announces days of scoring by the ODE.

    Raises:
        UserError: If they do not.
    """
    size = 2 * 8 * n_probes * min(batch_size, num_samples) * math.prod(trained.data.shape)
    advice = "lower likelihood.n_probes or likelihood.batch_size"
    refuse_beyond_memory(size, f"a batch with {n_probes:,} probes", advice, trained.device.type)
    evaluations = LEAST_ODE_EVALUATIONS * (1 + 2 * n_probes) * num_samples  # a product takes twice the time
    announce_duration(trained, evaluations, "scoring", "lower likelihood.n_probes or likelihood.num_images")


def check_bound(trained: TrainedModel, num_samples: int, batch_size: int, n_terms: int, n_draws: int) -> None:
    """Refuses terms of the variational bound that do not fit in memory, and announces days of scoring by it.

    Raises:
        UserError: If they do not.
    """
    size = 2 * 8 * min(batch_size, num_samples) * n_terms * n_draws
    advice = "lower likelihood.bound_terms or likelihood.bound_draws"
    refuse_beyond_memory(size, f"a batch with {n_terms * n_draws:,} terms", advice, trained.device.type)
    announce_duration(trained, num_samples * n_terms * n_draws, "the variational bound", advice)
