"""Score matching without denoising against the explicit Fisher divergence, which is known for Gaussians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from score_diffusion.sde_lib import (
    VESDE,
    VPSDE,
    WEIGHTINGS,
    Gaussian,
    GaussianMixture,
    denoising_score_matching,
    draw_probes,
    implicit_score_matching,
    perturbed_score_matching,
    sliced_score_matching,
)

LAWS = ("rademacher", "gaussian", "sphere")


def mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]])
    return GaussianMixture(means, torch.tensor([0.3, 0.6]), torch.tensor([0.3, 0.7]))


def true_score(law: GaussianMixture):
    """∇log p of the law itself, by differentiation of its density."""

    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(law.log_prob(x).sum(), x, create_graph=True)[0]

    return score


def curved(x: Tensor, w: float | Tensor = 0.8) -> Tensor:
    """A score that is no gradient, with a full Jacobian."""
    a, b = x.unbind(1)
    return torch.stack([-a + w * torch.sin(b), -2 * b + w * a * b], 1)


def gauss_hermite(mean: Tensor, covariance: Tensor, order: int = 30) -> tuple[Tensor, Tensor]:
    """Nodes (order², 2) and weights of E under a Gaussian: exact for polynomials of degree 59."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    z = torch.cartesian_prod(torch.tensor(nodes), torch.tensor(nodes))
    w = torch.cartesian_prod(torch.tensor(weights), torch.tensor(weights)).prod(1)
    return mean + z @ torch.linalg.cholesky(covariance).mT, w / w.sum()


MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.9, 0.4], [0.4, 0.6]], dtype=torch.float64)


def test_implicit_is_the_fisher_divergence_up_to_its_constant() -> None:
    x, w = gauss_hermite(MEAN, COVARIANCE)
    precision = torch.linalg.inv(COVARIANCE)
    fisher = 0.5 * (curved(x) + (x - MEAN) @ precision).square().sum(1) @ w
    constant = 0.5 * precision.trace()  # ½ E‖∇log p‖²
    J = implicit_score_matching(curved, x) @ w
    assert (J + constant).item() == pytest.approx(fisher.item(), abs=1e-9)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("variance_reduction", [True, False])
def test_sliced_has_the_same_expectation(law: str, variance_reduction: bool) -> None:
    x = Gaussian(MEAN, COVARIANCE).sample(20, seed=1)
    probes = draw_probes(x, 20000, law, torch.Generator().manual_seed(0))
    exact = implicit_score_matching(curved, x)
    with torch.no_grad():
        values = torch.stack([_one(curved, x, v, variance_reduction) for v in probes.split(1000)])  # (20, B)
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - exact).abs() < 5 * error + 1e-9).all()


def _one(score, x: Tensor, probes: Tensor, variance_reduction: bool) -> Tensor:
    """One evaluation for many probes, as copies of x in one batch."""
    M = len(probes)
    copies = x.repeat(M, 1)
    probes = probes.reshape(1, *copies.shape)
    J = sliced_score_matching(score, copies, probes, variance_reduction=variance_reduction)
    return J.reshape(M, -1).mean(0)


def test_variance_reduction_reduces_variance() -> None:
    x = Gaussian(MEAN, COVARIANCE).sample(4000, seed=1)
    probes = draw_probes(x, 1, "gaussian", torch.Generator().manual_seed(0))
    exact = implicit_score_matching(curved, x)
    errors = [sliced_score_matching(curved, x, probes, variance_reduction=vr) - exact for vr in (True, False)]
    assert errors[0].var() < 0.8 * errors[1].var()


def test_formulas_on_a_linear_score() -> None:
    A = torch.tensor([[-1.0, 2.0, 0.5], [0.3, -2.0, 0.1], [0.0, 0.4, -0.7]], dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probes = draw_probes(x, 3, "gaussian", torch.Generator().manual_seed(1))
    s = x @ A.mT
    quadratic = torch.einsum("mbi,ij,mbj->mb", probes, A, probes).mean(0)
    projected = torch.einsum("mbi,bi->mb", probes, s).square().mean(0)

    def score(x: Tensor) -> Tensor:
        return x @ A.mT

    torch.testing.assert_close(implicit_score_matching(score, x), A.trace() + 0.5 * s.square().sum(1))
    torch.testing.assert_close(sliced_score_matching(score, x, probes), quadratic + 0.5 * s.square().sum(1))
    plain = sliced_score_matching(score, x, probes, variance_reduction=False)
    torch.testing.assert_close(plain, quadratic + 0.5 * projected)


@pytest.mark.parametrize("objective", ["implicit", "sliced", "sliced_vr"])
def test_gradient_vanishes_at_the_truth(objective: str) -> None:
    """s = -P (x - m) is best at the precision and the mean: by quadrature the gradient is zero there."""
    x, w = gauss_hermite(MEAN, COVARIANCE, order=10)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)  # all of them: their mean is exact
    probes = signs[:, None].expand(2, len(x), 2)

    def gradients(P: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        P, m = P.clone().requires_grad_(), m.clone().requires_grad_()

        def score(x: Tensor) -> Tensor:
            return -(x - m) @ P.mT

        if objective == "implicit":
            J = implicit_score_matching(score, x)
        else:
            J = sliced_score_matching(score, x, probes, variance_reduction=objective == "sliced_vr")
        return torch.autograd.grad(J @ w, (P, m))

    precision = torch.linalg.inv(COVARIANCE)
    for g in gradients(precision, MEAN):
        assert g.abs().max() < 1e-10
    off = torch.tensor([[0.2, 0.0], [0.0, 0.1]], dtype=torch.float64)
    for g, wanted in zip(
        gradients(precision + off, MEAN + 0.1),
        _fisher_gradients(precision + off, MEAN + 0.1),
        strict=True,
    ):
        torch.testing.assert_close(g, wanted)


def _fisher_gradients(P: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ½ E‖-P (x - m) - ∇log p‖² in P and m, in closed form."""
    d = MEAN - m
    second_moment = COVARIANCE + torch.outer(d, d)
    return P @ second_moment - torch.eye(2, dtype=torch.float64), -P.mT @ P @ d


def test_gradient_in_the_parameters_equals_finite_differences() -> None:
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probes = draw_probes(x, 2, "gaussian", torch.Generator().manual_seed(1))
    w = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    for loss in (
        lambda w: implicit_score_matching(lambda x: curved(x, w), x),
        lambda w: sliced_score_matching(lambda x: curved(x, w), x, probes),
        lambda w: sliced_score_matching(lambda x: curved(x, w), x, probes, variance_reduction=False),
    ):
        assert torch.autograd.gradcheck(loss, w)


def test_the_truth_of_a_mixture_has_the_least_value() -> None:
    """E J at the true score is -½ E‖∇log p‖², and more elsewhere."""
    law = mixture()
    x, score = law.sample(40000, seed=3), true_score(law)
    J = implicit_score_matching(score, x)
    excess = J + 0.5 * score(x).detach().square().sum(1)  # of mean zero
    assert abs(excess.mean()) < 4 * excess.std() / math.sqrt(len(x))
    worse = implicit_score_matching(lambda x: score(x) + 0.3 * torch.sin(x), x) - J
    gap = 0.5 * (0.3 * torch.sin(x)).square().sum(1).mean()
    assert abs(worse.mean() - gap) < 4 * worse.std() / math.sqrt(len(x))


@pytest.mark.slow
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.1, 5.0)], ids=["vp", "ve"])
def test_perturbed_differs_from_denoising_by_a_constant(sde, weighting: str) -> None:
    """Between two scores the losses differ by the same amount."""
    law, B = mixture(), 40000
    x_0 = law.sample(B, seed=5)
    noise = torch.randn(B, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.full((B,), 0.4, dtype=torch.float64)
    exact = law.score(sde)
    probes = draw_probes(x_0, 1, "rademacher", torch.Generator().manual_seed(1))

    def wrong(x: Tensor, t: Tensor) -> Tensor:
        return 0.2 * exact(x, t) + 0.5 * x

    def difference(loss) -> Tensor:
        return loss(wrong) - loss(exact)

    dsm = difference(lambda s: denoising_score_matching(sde, s, x_0, t, noise, weighting))
    for objective in ("implicit", "sliced", "sliced_vr"):
        other = difference(
            lambda s, o=objective: perturbed_score_matching(sde, s, x_0, t, noise, o, weighting, probes)
        )
        gap = other - dsm  # paired: the same x_t
        assert other.shape == (B,)
        assert abs(gap.mean()) < 4.5 * gap.std() / math.sqrt(B)
        assert other.mean() > 10 * gap.std() / math.sqrt(B)


def test_at_a_time_means_score_of_x_and_t() -> None:
    sde, law = VPSDE(), mixture()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x = law.sample(3, seed=0)
    for i in range(3):
        alone = implicit_score_matching(lambda x, i=i: law.score(sde)(x, t[i].expand(len(x))), x[i : i + 1])
        torch.testing.assert_close(implicit_score_matching(law.score(sde), x, t)[i : i + 1], alone)


def test_any_data_shape() -> None:
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    probes = draw_probes(x, 2)
    expected = -2 * 32 + 2 * x.flatten(1).square().sum(1)
    torch.testing.assert_close(implicit_score_matching(lambda x: -2 * x, x), expected)
    torch.testing.assert_close(sliced_score_matching(lambda x: -2 * x, x, probes), expected)  # signs: v·v = D


def test_under_no_grad_and_without_dependence_on_x() -> None:
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        J = implicit_score_matching(lambda x: -x, x)
    assert not J.requires_grad
    torch.testing.assert_close(J, -2 + 0.5 * x.square().sum(1))
    theta = torch.ones(2, requires_grad=True)
    J = implicit_score_matching(lambda x: theta.expand(len(x), 2), x)  # a constant: its trace is 0
    (g,) = torch.autograd.grad(J.sum(), theta)
    torch.testing.assert_close(g, torch.full((2,), 4.0))


def test_errors() -> None:
    x = torch.zeros(4, 2)
    probes = draw_probes(x)

    def perturbed(noise: Tensor, objective: str = "implicit", weighting: str = "plain") -> Tensor:
        t = torch.full((4,), 0.5)
        return perturbed_score_matching(VPSDE(), lambda x, t: -x, x, t, noise, objective, weighting)

    for call, message in (
        (lambda: implicit_score_matching(lambda x: x.sum(1), x), r"shape of x, \(4, 2\), it has \(4,\)"),
        (lambda: implicit_score_matching(lambda x: x.detach(), x), "must be differentiable in x"),
        (lambda: implicit_score_matching(lambda x: x, x[0]), r"of shape \(B, \*shape\), got \(2,\)"),
        (lambda: sliced_score_matching(lambda x: x, x, probes[0]), r"\(M, 4, 2\) with M >= 1, got \(4, 2\)"),
        (lambda: perturbed(x, "exact"), "objective must be one of implicit, sliced, sliced_vr, got 'exact'"),
        (
            lambda: perturbed(x, weighting="snr"),
            "weighting must be one of plain, likelihood, x0, min_snr, edm, got 'snr'",
        ),
        (lambda: perturbed(x[:2]), r"noise must have the shape of x_0, \(4, 2\), got \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
