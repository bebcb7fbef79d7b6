"""Every sampler has the order it declares: against the exact flow of a mixture for the deterministic ones,
against the exact law of Gaussian data for the stochastic ones.
"""

from __future__ import annotations

import math
from collections import deque

import pytest
import torch

from score_diffusion.samplers import (
    GRIDS,
    SAMPLERS,
    Grid,
    make_sampler,
)
from score_diffusion.samplers.base import CountedScore
from score_diffusion.samplers.linear import apply_stage
from score_diffusion.sde_lib import VPSDE, Gaussian
from tests.problems import ALL_SDES, exact_moments, flow, line, moments, observed_orders

KINDS = {name: ALL_SDES[name] for name in ("vp", "ve", "RectifiedFlowSDE")}  # the others are like these
DETERMINISTIC = [n for n, spec in SAMPLERS.items() if not spec.stochastic and spec.nfe_per_step]
# Small variance leaves out a share 1/k of the k-th step's noise and nears order 1 slowly, see test_chain.
STOCHASTIC = [n for n, spec in SAMPLERS.items() if spec.stochastic and spec.order and n != "ddpm"]
# Where the paper's settings do not converge to the law: noise above 1, a fixed number of steps in each
# restart.
CONVERGENT = {
    "edm_churn": lambda steps: {"S_noise": 1.0},
    "restart": lambda steps: {"intervals": ((0.06, 0.3, 3, (steps + 1) // 4),)},
}


def sampler_on(name, sde, steps):
    options = CONVERGENT[name](steps) if name in CONVERGENT else {}
    return make_sampler(name, sde, grid=Grid(SAMPLERS[name].grid, steps), options=options)


def starts(sde):
    return sde.prior_std * torch.linspace(-1.5, 1.5, 41, dtype=torch.float64)[:, None]


def warm_error(name, sde, law, steps):
    """The mean error at σ/α = 0.1 of the steps from σ/α = 1.5 on, with exact states and values up to there:
    what the first steps do for want of a past does not enter. The levels are those of the grid of 100 steps
    next to these, and so points of its refinements.
    """
    coarse = sde.log_noise_level(GRIDS[SAMPLERS[name].grid](sde, 100))
    first, last = (int((coarse - math.log(level)).abs().argmin()) * steps // 100 for level in (1.5, 0.1))
    sampler, score = sampler_on(name, sde, steps), law.score(sde)
    t = sampler.times.tolist()

    def exact(k):
        return flow(sde, law, starts(sde), t[0], t[k])

    values = deque(maxlen=8)
    for k in range(first - 8, first):
        p, q = sampler.stages[k].value
        values.appendleft(p * exact(k) + q * score(exact(k), sampler.times[k].expand(41)))
    x, score = exact(first), CountedScore(score, 41)
    for stage in sampler.stages[first:last]:
        x = apply_stage(stage, score, x, values, None)
    return (x - exact(last)).abs().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("sde", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if SAMPLERS[n].nfe_per_step == 1])
def test_order_of_methods_with_one_evaluation(name, sde):
    """The error falls as h^order, given a past."""
    errors = [warm_error(name, sde, line(), n) for n in (400, 800)]
    assert observed_orders(errors)[0] == pytest.approx(SAMPLERS[name].order, abs=0.15), errors


@pytest.mark.slow
@pytest.mark.parametrize("sde", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if SAMPLERS[n].nfe_per_step > 1])
def test_order_of_single_step_methods(name, sde):
    """The error at the end falls as h^order."""
    law, errors = line(), []
    for steps in (200, 400):
        sampler, x_T = sampler_on(name, sde, steps), starts(sde)
        exact = flow(sde, law, x_T, *sampler.times[[0, -1]].tolist())
        errors.append((sampler(law.score(sde), x_T.shape, x_T=x_T).samples - exact).abs().mean().item())
    assert observed_orders(errors)[0] == pytest.approx(SAMPLERS[name].order, abs=0.15), errors


def law_error(sampler, law):
    """How far mean and covariance are from those of p at the sampler's last time."""
    found = exact_moments(sampler, law)
    truth = moments(law.marginal(sampler.sde, sampler.times[-1].item()))
    return math.hypot(*((a - b).norm().item() for a, b in zip(found, truth, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order(name):
    """Mean and covariance of Gaussian data converge at the declared order; no Monte-Carlo noise."""
    sde, law, errors = VPSDE(), Gaussian(torch.tensor([2.0]), 2 * torch.eye(1)), []
    for n in (50, 100) if name == "restart" else (300, 600):
        errors.append(law_error(sampler_on(name, sde, n), law))
    assert errors[-1] < 0.1
    assert observed_orders(errors)[-1] == pytest.approx(SAMPLERS[name].order, abs=0.15), errors
