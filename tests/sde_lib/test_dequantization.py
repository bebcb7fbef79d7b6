"""The noise of variational dequantization: its density against the derivative, and against a histogram."""

from __future__ import annotations

import torch

from score_diffusion.sde_lib import logistic_noise


def test_no_shift_and_no_scale_are_uniform_noise():
    v = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, log_q = logistic_noise(v, torch.zeros_like(v), torch.zeros_like(v))
    torch.testing.assert_close(u, v)
    torch.testing.assert_close(log_q, torch.zeros(3).double(), atol=1e-12, rtol=0)


def test_the_density_is_one_over_the_slope_and_sums_over_elements():
    v = torch.tensor([[0.1, 0.5, 0.93]], dtype=torch.float64, requires_grad=True)
    shift, log_scale = torch.tensor([[0.4, -1.0, 2.0]]).double(), torch.tensor([[0.3, -0.7, 0.1]]).double()
    u, log_q = logistic_noise(v, shift, log_scale)
    (slopes,) = torch.autograd.grad(u.sum(), v, retain_graph=True)
    torch.testing.assert_close(log_q, -slopes.log().sum(1))


def test_it_integrates_to_one_over_the_bin_and_has_its_mean():
    """By importance: the mean of h(u)/q(u) over draws is the integral of h over (0, 1)."""
    v = (torch.arange(200_000, dtype=torch.float64)[:, None] + 0.5) / 200_000
    u, log_q = logistic_noise(v, torch.full_like(v, 0.5), torch.full_like(v, -0.2))
    inverse = (-log_q).exp()
    assert abs(inverse.mean().item() - 1) < 1e-2 and abs((inverse * u[:, 0]).mean().item() - 0.5) < 1e-2


def test_the_ends_are_finite():
    v = torch.tensor([[0.0, 1.0]])
    u, log_q = logistic_noise(v, torch.zeros(1, 2), torch.full((1, 2), 1.5))
    assert u.isfinite().all() and log_q.isfinite().all() and (u >= 0).all() and (u <= 1).all()
