"""The bound of the reverse SDE on held-out data, next to the other figures, and bounds that are tighter."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.special import logsumexp
from torch import Tensor

from score_diffusion.run.distributed import processes
from score_diffusion.run.inference.scoring import (
    Dequantization,
    Scores,
    array_of,
    batches_of_rank,
    seed_of_draw,
    unit_of,
)
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.sde_lib import reverse_sde_bound

SURE = 3.0  # standard errors


def reverse_bound_held_out(
    trained: TrainedModel,
    data: Tensor,
    dequantize: Dequantization,
    *,
    batch_size: int,
    seed: int,
    n_times: int = 64,
    n_draws: int = 1,
) -> Scores | None:
    """The reverse SDE's bound of each sample, dequantized as for the ODE; see `score_held_out`.

    Args:
        trained: The model.
        data: Held-out samples, grey levels or points, shape (n, *shape).
        dequantize: Makes them continuous.
        batch_size: Samples scored at a time.
        seed: Seed of the noise; that of sample k depends on (seed, k) only.
        n_times: Times of each estimate, two evaluations each.
        n_draws: Times that each sample is scored, each with its own noise of both kinds.
    """
    batches = []
    for first, batch in batches_of_rank(data, batch_size, "reverse SDE"):
        values, nfe = [], 0
        for draw in range(n_draws):
            dequantized = dequantize(batch, first, draw)
            bound = reverse_sde_bound(
                trained.sde,
                trained.score_of(range(first, first + len(batch))),
                dequantized.x,
                n_times=n_times,
                eps=dequantized.time,
                seed=seed_of_draw(seed, draw),
                first=first,
            )
            bits = dequantized.bits + bound.bits_per_dim
            values.append(array_of(bits * unit_of(trained, batch)))
            nfe += bound.nfe
        batches.append((np.stack(values, 1)[:, :, None], nfe))
    scored = processes.gather(batches)
    if scored is None:
        return None
    estimates = np.concatenate([each for each, _ in scored])
    return Scores(estimates.mean((1, 2)), scored[0][1], estimates=estimates)


def importance_weighted(scores: Scores, nats: float) -> dict[int, Scores]:
    """-log of the mean over K dequantization draws of the likelihood they estimate, over its own weight.

    Each is a bound on the negative log-likelihood of the grey levels, tighter for larger K (Burda et al.,
    2016, "Importance Weighted Autoencoders", Theorem 1; Ho et al., 2019, "Flow++", eq. 8). It takes exact
    likelihoods of the draws: the mean of estimates with noise is too large, because the logarithm is taken
    last.

    Args:
        scores: Scores with `estimates` (n, R, 1), of the exact divergence.
        nats: Nats per unit of the scores.

    Returns:
        The scores by K = 2, 4, ..., up to R draws, each from all disjoint groups of K draws.
    """
    assert scores.estimates is not None
    log_p = -nats * scores.estimates[:, :, 0]  # (n, R)
    n, draws = log_p.shape
    found = {}
    for K in (2**i for i in range(1, draws.bit_length())):
        groups = log_p[:, : draws // K * K].reshape(n, -1, K)
        bounds = math.log(K) - logsumexp(groups, axis=2)  # (n, R // K)
        found[K] = Scores(bounds.mean(1) / nats, scores.nfe)
    return found


def orders_violated(figures: Mapping[str, Scores], chain_is_comparable: bool) -> list[str]:
    """Sentences about bounds that are below the likelihood of the ODE by more than their errors.

    The exact score makes the ODE and the SDE one model, and then a bound cannot be below the likelihood. An
    inexact score makes them two models.

    Args:
        figures: Scores of the same samples, "ode", "reverse_sde" and "bound".
        chain_is_comparable: Whether the ODE's dequantization is that of the chain's bound.
    """
    if "ode" not in figures:
        return []
    ode, found = figures["ode"], []
    names = {"reverse_sde": "the reverse SDE's bound"}
    if chain_is_comparable:
        names["bound"] = "the chain's variational bound"
    for name, words in names.items():
        if name not in figures:
            continue
        difference = figures[name].less(ode)
        error = difference.standard_error
        if error is not None and difference.mean < -SURE * error - (ode.solver_error or 0.0):
            found.append(
                f"{words} is {-difference.mean:.4f} ± {error:.4f} below the likelihood of the ODE, which it "
                "cannot be for an exact score: the solver is not accurate, or the score is far from exact, "
                "and the ODE is a worse model than the SDE; lower likelihood.rtol and atol or raise steps, "
                "then train longer"
            )
    return found
