"""Runge-Kutta methods: order conditions of the tableaus, and steps of EDM and restarts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from score_diffusion.samplers import Grid, dpmpp_2s, edm, edm_churn, euler, karras_grid, restart, rk4
from score_diffusion.samplers.grids import karras_times
from score_diffusion.samplers.runge_kutta import TABLEAUS, Tableau
from score_diffusion.sde_lib import EDMSDE, VPSDE, InputError
from tests.problems import ALL_SDES, carry, line

EDM = EDMSDE()


def order_conditions(tableau):
    """By order, the differences that must vanish (Hairer, Nørsett & Wanner, 1993, Table II.2.2)."""
    n = len(tableau.c)
    c, b, a = np.array(tableau.c), np.array(tableau.b), np.zeros((n, n))
    for i, row in enumerate(tableau.a, start=1):
        a[i, : len(row)] = row
    return {
        1: [b.sum() - 1],
        2: [b @ c - 1 / 2],
        3: [b @ c**2 - 1 / 3, b @ a @ c - 1 / 6],
        4: [b @ c**3 - 1 / 4, (b * c) @ a @ c - 1 / 8, b @ a @ c**2 - 1 / 12, b @ a @ a @ c - 1 / 24],
    }


@pytest.mark.parametrize("name", TABLEAUS)
def test_tableaus_have_their_order(name):
    """All conditions up to the order hold, and one of the next does not."""
    tableau = TABLEAUS[name]
    conditions = order_conditions(tableau)
    for order in range(1, tableau.order + 1):
        np.testing.assert_allclose(conditions[order], 0, atol=1e-15)
    assert tableau.order == 4 or np.abs(conditions[tableau.order + 1]).max() > 1e-3


@pytest.mark.parametrize(
    ("c", "a", "b", "message"),
    [
        (
            (0.0, 0.4),
            ((0.5,),),
            (0.0, 1.0),
            r"each row of a must sum to its c, \(0.5,\) sums to 0.5, c is 0.4",
        ),
        ((0.1, 0.5), ((0.5,),), (0.0, 1.0), r"each row of a must sum to its c, \(\) sums to 0, c is 0.1"),
        ((0.0, 0.5), ((0.5,),), (0.5, 0.4), "the weights b of a tableau must sum to 1"),
        (
            (0.0, 0.5),
            ((0.5, 0.0),),
            (0.0, 1.0),
            "2 stages must have rows of 1 to 1 numbers in a and 2 numbers",
        ),
        ((0.0, 0.5), ((0.5,),), (1.0,), "2 stages must have rows of 1 to 1 numbers in a and 2 numbers"),
        ((0.0, 0.5), (), (0.0, 1.0), "2 stages must have rows"),
    ],
)
def test_a_wrong_tableau_is_refused(c, a, b, message):
    with pytest.raises(ValueError, match=message):
        Tableau(c, a, b, order=2)


def starts(sde, n=6):
    return sde.prior_std * torch.linspace(-1.5, 1.5, n, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
def test_euler_and_rk4_are_the_formulas_of_the_probability_flow(sde):
    """dx/dt = f x - g²/2 score, by hand over two steps."""
    times, score = torch.tensor([0.8, 0.5, 0.3], dtype=torch.float64), line().score(sde)

    def slope(x, t):
        return sde.dlog_alpha(t) * x - sde.g2(t) / 2 * score(x, t.expand(len(x)))

    ours = {make: carry(make(sde, times), score, starts(sde)) for make in (euler, rk4)}
    x = y = starts(sde)
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True), start=1):
        h = s - t
        x = x + h * slope(x, t)
        k1 = slope(y, t)
        k2 = slope(y + h / 2 * k1, t + h / 2)
        k3 = slope(y + h / 2 * k2, t + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, s))
        torch.testing.assert_close(ours[euler][i], x)
        torch.testing.assert_close(ours[rk4][i], y)


def edm_by_hand(x, sigmas, churn=None, noise=()):
    """Karras et al. (2022), Algorithm 2, with the denoiser of the line; without churn Algorithm 1."""
    denoiser, noise, out = line().denoiser(EDM), iter(noise), [x]

    def slope(x, sigma):
        return (x - denoiser(x, torch.full((len(x),), sigma, dtype=torch.float64))) / sigma

    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        if churn is not None:
            S_churn, S_tmin, S_tmax, S_noise = churn
            gamma = min(S_churn / len(sigmas), math.sqrt(2) - 1)
            if S_tmin <= sigma <= S_tmax and (1 + gamma) * sigma <= EDM.T:
                raised = (1 + gamma) * sigma
                x = x + math.sqrt(raised**2 - sigma**2) * S_noise * next(noise)
                sigma = raised
        d = slope(x, sigma)
        x = x + (after - sigma) / 2 * (d + slope(x + (after - sigma) * d, after))
        out.append(x)
    return out


def test_edm_is_algorithm_1():
    times = karras_grid(EDM, 8)
    for ours, expected in zip(
        carry(edm(EDM, times), line().score(EDM), starts(EDM)),
        edm_by_hand(starts(EDM), times.tolist()),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "churn", [(40.0, 0.05, 50.0, 1.003), (2.0, 0.0, math.inf, 1.0), (5.0, 1.0, 10.0, 1.0)]
)
def test_edm_churn_is_algorithm_2(churn):
    """Also where γ is below its bound, and outside [S_tmin, S_tmax], where no noise is added."""
    times, generator = karras_grid(EDM, 8), torch.Generator().manual_seed(0)
    noise = list(torch.randn(8, 6, 1, generator=generator, dtype=torch.float64))
    names = ("S_churn", "S_tmin", "S_tmax", "S_noise")
    sampler = edm_churn(EDM, times, **dict(zip(names, churn, strict=True)))
    expected = edm_by_hand(starts(EDM), times.tolist(), churn, noise)
    for ours, theirs in zip(carry(sampler, line().score(EDM), starts(EDM), noise), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_restart_goes_forward_and_back_where_the_grid_passes_its_interval():
    """Xu et al. (2023), Algorithm 1: at the time nearest to σ_min K times up to σ_max and back."""
    times, score, K, steps = karras_grid(EDM, 9), line().score(EDM), 2, 3
    generator = torch.Generator().manual_seed(0)
    noise = list(torch.randn(K, 6, 1, generator=generator, dtype=torch.float64))
    ours = carry(restart(EDM, times, intervals=((0.2, 1.5, K, steps),)), score, starts(EDM), noise)
    sigmas = times.tolist()
    nearest = min(range(1, 10), key=lambda i: abs(math.log(sigmas[i] / 0.2)))
    x = edm_by_hand(starts(EDM), sigmas[: nearest + 1])[-1]
    for z in noise:
        back = karras_times(EDM, 1.5, sigmas[nearest], steps).tolist()
        x = edm_by_hand(x + math.sqrt(back[0] ** 2 - sigmas[nearest] ** 2) * z, back)[-1]
    torch.testing.assert_close(ours[nearest], x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(ours[-1], edm_by_hand(x, sigmas[nearest:])[-1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
def test_dpmpp_2s_is_algorithm_1(sde):
    """Lu et al. (2022, DPM-Solver++), Algorithm 1 with r = 1/2."""
    sampler, denoiser = dpmpp_2s(sde, Grid("log_snr", 5)), line().denoiser(sde)
    ours = carry(sampler, line().score(sde), starts(sde))
    x = starts(sde)
    for i, (t, s) in enumerate(zip(sampler.times[:-1], sampler.times[1:], strict=True), start=1):
        lam_t, lam_s = (sde.log_snr(v) / 2 for v in (t, s))
        h, m = lam_s - lam_t, sde.time_at_log_noise_level(-(lam_t + lam_s) / 2)
        first = denoiser(x, t.expand(len(x)))
        u = sde.sigma(m) / sde.sigma(t) * x - sde.alpha(m) * torch.expm1(-h / 2) * first
        second = denoiser(u, m.expand(len(x)))
        x = sde.sigma(s) / sde.sigma(t) * x - sde.alpha(s) * torch.expm1(-h) * second
        torch.testing.assert_close(ours[i], x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: edm(EDM, method="rk5"), "method must be one of euler, midpoint, heun, rk4, got 'rk5'"),
        (lambda: edm_churn(EDM, S_churn=-1), "S_churn must be at least 0, got -1"),
        (
            lambda: restart(EDM, intervals=((0.3, 0.06, 3, 4),)),
            r"a restart needs 0.002 <= σ_min < σ_max <= 80",
        ),
        (lambda: restart(EDM, intervals=((0.06, 0.3, 0, 4),)), "K and steps of at least 1"),
        (lambda: dpmpp_2s(VPSDE(), Grid("chain", 5)), r"log\(α/σ\) must be finite at all times of the grid"),
    ],
)
def test_mistakes_are_explained(act, message):
    with pytest.raises(InputError, match=message):
        act()
