"""VP, sub-VP and VE against the formulas of the papers and the values of score_sde_pytorch; their tables."""

from __future__ import annotations

import math

import pytest
import torch

from score_diffusion.sde_lib import (
    DDPM,
    VESDE,
    VPSDE,
    CosineVPSDE,
    SubVPSDE,
    linear_betas,
    subVPSDE,
)
from tests.problems import SDES

T = torch.tensor([1e-3, 0.5, 1.0])


@pytest.mark.parametrize(
    ("sde", "mean", "std", "diffusion"),
    [
        (
            VPSDE(),
            [0.999945, 0.281183, 0.00657159],
            [0.0104867, 0.959654, 0.999978],
            [0.346266, 3.17017, 4.47214],
        ),
        (
            SubVPSDE(),
            [0.999945, 0.281183, 0.00657159],
            [1.09971e-4, 0.920936, 0.999957],
            [0.00513457, 3.16025, 4.47214],
        ),
        (VESDE(), [1.0, 1.0, 1.0], [0.0100855, 0.707107, 50.0], [0.0416258, 2.91842, 206.364]),
    ],
    ids=SDES.keys(),
)
def test_score_sde_pytorch_values(sde, mean, std, diffusion):
    """Values that the reference implementation prints at t = 1e-3, 0.5, 1 for its default arguments."""
    x = torch.ones(3, 1)
    m, s = sde.marginal_prob(x, T)
    torch.testing.assert_close(m[:, 0], torch.tensor(mean), rtol=2e-6, atol=2e-6)
    # its float32 std is 1e-4 off at t = 1e-3; test_small_times holds ours to the exact value
    torch.testing.assert_close(s, torch.tensor(std), rtol=3e-4, atol=0)
    torch.testing.assert_close(sde.sde(x, T)[1], torch.tensor(diffusion), rtol=3e-5, atol=0)


def test_score_sde_pytorch_discrete_values():
    x = torch.ones(4, 3)
    f, G = VESDE().discretize(x, torch.tensor([1e-5, 1e-3, 0.5, 1.0]))
    torch.testing.assert_close(G, torch.tensor([0.01, 0.01, 0.0915516, 6.5013]), rtol=1e-5, atol=0)
    assert torch.equal(f, torch.zeros_like(x))
    zero = torch.zeros(2, 12)
    torch.testing.assert_close(VPSDE().prior_logp(zero), torch.full((2,), -11.0272627))
    torch.testing.assert_close(VESDE().prior_logp(zero), torch.full((2,), -57.9715385))


@pytest.mark.parametrize(
    ("sde", "exact"),
    [
        (VPSDE(), lambda log_a2: math.sqrt(-math.expm1(log_a2))),
        (SubVPSDE(), lambda log_a2: -math.expm1(log_a2)),
    ],
    ids=["vp", "sub-vp"],
)
@pytest.mark.parametrize("t", [1e-5, 1e-4, 1e-2])
def test_small_times_in_float32(sde, exact, t):
    """std at small times is right to 1e-5 in float32, where 1 - exp(.) would have lost 0.6 % at t = 1e-5."""
    time = torch.tensor(t).item()  # as float32 holds it
    expected = exact(-(time**2) * 19.9 / 2 - time * 0.1)
    _, std = sde.marginal_prob(torch.zeros(1, 1), torch.tensor([t]))
    assert std.item() == pytest.approx(expected, rel=1e-5)


def test_diffusion_closed_forms():
    """g² derived from the path equals the papers' formulas: β, β (1 - exp(-2∫β)), σ² 2 log(σ_max/σ_min)."""
    t = torch.linspace(1e-5, 1, 101, dtype=torch.float64)
    beta = 0.1 + 19.9 * t
    torch.testing.assert_close(VPSDE().g2(t), beta)
    discount = -torch.expm1(-2 * 0.1 * t - 19.9 * t**2)
    torch.testing.assert_close(SubVPSDE().g2(t), beta * discount)
    sigma = 0.01 * 5000**t
    torch.testing.assert_close(VESDE().g2(t), sigma**2 * 2 * math.log(5000))


def test_vp_tables_are_ddpms():
    """β_k from 1e-4 to 0.02 at N = 1000, and the tables that follow from it."""
    sde = VPSDE()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(sde.discrete_betas, betas.float())
    torch.testing.assert_close(sde.alphas, (1 - betas).float())
    torch.testing.assert_close(sde.alphas_cumprod, (1 - betas).cumprod(0).float())
    torch.testing.assert_close(sde.sqrt_alphas_cumprod**2 + sde.sqrt_1m_alphas_cumprod**2, torch.ones(1000))
    f, G = sde.discretize(torch.ones(1000, 1), torch.arange(1000) / 999)
    torch.testing.assert_close(1 + f[:, 0], (1 - betas).sqrt().float())
    torch.testing.assert_close(G, betas.sqrt().float())


def test_the_chain_ends_where_the_path_ends():
    """A subclass may end earlier: the chain's signal at its last step is the path's, up to steps of 1/N."""

    class Half(VPSDE):
        T = 0.5

    sde = Half(N=4000)
    torch.testing.assert_close(
        sde.sqrt_alphas_cumprod[-1].double(),
        sde.alpha(torch.tensor(0.5, dtype=torch.float64)),
        rtol=2e-3,
        atol=0,
    )
    (_, G), t = sde.discretize(torch.ones(1, 1), torch.tensor([0.5])), torch.tensor([0.5])
    torch.testing.assert_close(G.square(), sde.beta(t) * 0.5 / 4000)


def test_grid_times_find_their_index():
    """Every float32 time k/(N - 1) belongs to index k, which flooring alone misses for some."""
    for N in (10, 1000, 2000, 4000):
        k = torch.arange(N)
        assert torch.equal(VESDE(N=N).step_index(k / (N - 1)), k)


def test_few_steps():
    """A chain with β_k >= 1 is refused where it would give NaN; the SDE itself stays usable at any N."""
    sde = VPSDE(N=10)
    assert sde.sde(torch.ones(1, 2), torch.ones(1))[0].isfinite().all()
    with pytest.raises(ValueError, match="must stay below 1"):
        sde.discretize(torch.ones(1, 2), torch.ones(1))


def test_base_discretization_has_the_grids_step():
    sde = SubVPSDE(N=50)
    x, t = torch.randn(2, 3), torch.tensor([0.3, 0.9])
    drift, diffusion = sde.sde(x, t)
    f, G = sde.discretize(x, t)
    torch.testing.assert_close(f, drift * sde.T / 50)
    torch.testing.assert_close(G, diffusion * math.sqrt(sde.T / 50))
    assert subVPSDE is SubVPSDE


# Tables can be assigned.

TABLES = ("discrete_betas", "alphas", "alphas_cumprod", "sqrt_alphas_cumprod", "sqrt_1m_alphas_cumprod")


@pytest.mark.parametrize(
    "make",
    [VPSDE, subVPSDE, CosineVPSDE, VESDE, lambda: DDPM(linear_betas(1000))],
    ids=["vp", "sub-vp", "cosine", "ve", "ddpm"],
)
def test_the_usual_cure_for_devices_changes_nothing(make):
    """`sde.alphas = sde.alphas.to(device)`, in nine of ten programs for score_sde_pytorch."""
    sde, x, t = make(), torch.randn(5, 3), torch.tensor([1e-3, 0.1, 0.4, 0.8, 0.99])
    before, name_and_numbers = sde.discretize(x, t), repr(sde)
    for name in TABLES if hasattr(sde, "alphas") else ["discrete_sigmas"]:
        table = getattr(sde, name).to(torch.float64)
        setattr(sde, name, table)
        assert getattr(sde, name) is table
        for ours, theirs in zip(sde.discretize(x, t), before, strict=True):
            assert torch.equal(ours, theirs)
    assert repr(sde) == name_and_numbers
    assert getattr(sde.reverse(lambda x, t: x), name) is table


def test_other_tables_are_those_of_discretize():
    """As in score_sde_pytorch, by its formulas; a chain that VPSDE does not have can be assigned, too."""
    x, t = torch.randn(4, 3), torch.arange(4) / 3
    for N, betas in ((4, torch.tensor([0.1, 0.2, 0.3, 0.4])), (4, torch.full((4,), 0.25))):
        sde = VPSDE(N=N)
        sde.discrete_betas = betas
        sde.alphas = 1.0 - betas
        f, G = sde.discretize(x, t)
        torch.testing.assert_close(f, (1 - betas).sqrt()[:, None] * x - x)
        torch.testing.assert_close(G, betas.sqrt())
    sigmas = torch.tensor([0.1, 0.5, 1.0, 7.0])
    sde = VESDE(N=4)
    sde.discrete_sigmas = sigmas
    f, G = sde.discretize(x, t)
    before = torch.cat([torch.zeros(1), sigmas[:-1]])
    torch.testing.assert_close(G, (sigmas**2 - before**2).sqrt())
    assert (f == 0).all()
    assert torch.equal(VESDE(N=4).discrete_sigmas, VESDE(N=4).sigma(torch.arange(4).double() / 3).float())
