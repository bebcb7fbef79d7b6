"""The paths of later papers against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from score_diffusion.sde_lib import EDMSDE, CosineVPSDE, InputError, RectifiedFlowSDE, cosine_betas, expand
from tests.problems import gaussian

TIMES = torch.tensor([1e-6, 1e-3, 0.3, 0.9, 0.99], dtype=torch.float64)


def test_cosine_path():
    """α(t) = cos(π/2 (t + s)/(1 + s))/cos(π/2 s/(1 + s)) (Nichol & Dhariwal, 2021, eq. 17; α(T) = 0.008)."""
    sde = CosineVPSDE()

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2)

    alphas = torch.tensor([f(t) / f(0) for t in TIMES.tolist()], dtype=torch.float64)
    torch.testing.assert_close(sde.alpha(TIMES), alphas)
    torch.testing.assert_close(sde.alpha(TIMES).square() + sde.sigma(TIMES).square(), torch.ones(5).double())
    assert f(sde.T) / f(0) == pytest.approx(0.008, abs=5e-4)
    exact = sde.sigma(TIMES.float().double())
    torch.testing.assert_close(sde.sigma(TIMES.float()).double(), exact, rtol=2e-6, atol=0)


def test_cosine_chain():
    """The steps of improved DDPM's table, for a chain that ends at T instead of 1."""
    sde = CosineVPSDE(N=100)
    sde.T = 1.0  # where the table ends
    ours = 1 - (sde.alphas_cumprod[1:] / sde.alphas_cumprod[:-1])[:90]
    torch.testing.assert_close(ours, cosine_betas(100)[1:91].float(), rtol=1e-4, atol=1e-6)
    sde = CosineVPSDE(N=100)
    times = sde.discrete_times()
    assert torch.equal(sde.step_index(times.float()), torch.arange(100))
    torch.testing.assert_close(sde.alphas_cumprod, sde.alpha(times).square().float())


def test_edm_path():
    """Karras et al. (2022), Table 1: s(t) = 1, σ(t) = t."""
    sde = EDMSDE()
    t = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    assert torch.equal(sde.sigma(t), t) and (sde.alpha(t) == 1).all()
    torch.testing.assert_close(sde.g2(t), 2 * t)
    assert (sde.T, sde.prior_std, sde.sampling_eps) == (80.0, 80.0, 0.002)
    with pytest.raises(InputError, match="0 < sigma_min < sigma_max"):
        EDMSDE(1.0, 0.5)


def test_rectified_flow_is_the_flow_of_its_velocity():
    """The probability-flow ODE is dx/dt = E[ε - x_0 | x_t] (Liu et al., 2023; Lipman et al., 2023)."""
    sde, law = RectifiedFlowSDE(), gaussian()
    t = TIMES[2:]
    x = torch.randn(3, 2, dtype=torch.float64)
    x_0 = law.denoiser(sde)(x, t)
    noise = (x - expand(1 - t, x) * x_0) / expand(t, x)
    drift, diffusion = sde.reverse(law.score(sde), probability_flow=True).sde(x, t)
    torch.testing.assert_close(drift, noise - x_0)
    assert (diffusion == 0).all()
