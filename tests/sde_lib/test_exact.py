"""The oracle itself, against SciPy, automatic differentiation and sampling."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from score_diffusion.sde_lib import VPSDE, Gaussian, GaussianMixture, tweedie
from tests.problems import (
    SDES,
    gaussian,
    images,
    line,
    random_covariances,
    ring,
    sampling_floor,
    sliced_wasserstein,
)

every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
LAWS = {"line": line(), "ring": ring(), "images": images(), "gaussian": gaussian(3)}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())


def noisy(law, sde, t, seed=0):
    x_0 = law.sample(len(t), seed)
    mean, std = sde.marginal_prob(x_0, t)
    generator = torch.Generator().manual_seed(seed)
    return mean + std.reshape(-1, *(1,) * (x_0.ndim - 1)) * torch.randn(
        x_0.shape, generator=generator, dtype=torch.float64
    )


def test_log_prob_is_scipys():
    covariances = random_covariances(3, 4, 0.5, seed=5)
    means, weights = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5])
    x = torch.randn(6, 4, dtype=torch.float64)
    density = sum(
        w.item() * stats.multivariate_normal(m.numpy(), c.numpy()).pdf(x.numpy())
        for w, m, c in zip(weights, means, covariances, strict=True)
    )
    torch.testing.assert_close(
        GaussianMixture(means, covariances, weights).log_prob(x).exp(),
        torch.from_numpy(density),
        rtol=1e-7,
        atol=0,
    )


@every_sde
@every_law
def test_score_is_the_gradient(law, sde):
    t = torch.tensor([1e-3, 0.2, 0.6, 1.0], dtype=torch.float64)
    x = noisy(law, sde, t).requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob_t(sde)(x, t).sum(), x)
    torch.testing.assert_close(law.score(sde)(x, t), gradient, rtol=1e-9, atol=1e-9)


@every_sde
@every_law
def test_denoiser_is_tweedies(law, sde):
    """Two independent formulas for E[x_0 | x_t] agree."""
    t = torch.tensor([1e-3, 0.2, 0.6, 1.0], dtype=torch.float64)
    x = noisy(law, sde, t)
    torch.testing.assert_close(
        law.denoiser(sde)(x, t), tweedie(sde, law.score(sde), x, t), rtol=1e-6, atol=1e-7
    )


@pytest.mark.slow
@every_sde
@every_law
def test_marginal_is_the_law_of_perturbed_samples(law, sde):
    n, t = 2000, torch.full((2000,), 0.3, dtype=torch.float64)
    marginal = law.marginal(sde, 0.3)
    distance = sliced_wasserstein(noisy(law, sde, t, seed=3), marginal.sample(n, seed=9))
    assert distance < 2 * sampling_floor(marginal, n)
    x = marginal.sample(5, seed=1)
    torch.testing.assert_close(marginal.log_prob(x), law.log_prob_t(sde)(x, t[:5]))


def test_covariance_forms_agree():
    """Isotropic, diagonal and full covariances of the same law."""
    means, t, x = torch.randn(2, 3), torch.tensor([0.3, 0.8]), torch.randn(2, 3)
    variances = torch.tensor([0.5, 2.0])
    scores = [
        GaussianMixture(means, covariances).score(VPSDE())(x, t)
        for covariances in (
            variances,
            variances[:, None].expand(2, 3),
            variances[:, None, None] * torch.eye(3),
        )
    ]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])


def test_far_tails_and_point_masses_are_finite():
    """In log-space nothing overflows, forty standard deviations off; zero covariances are the finite set of
    its means.
    """
    x, t = torch.full((1, 2), 60.0), torch.tensor([0.01])
    assert ring().score(VPSDE())(x, t).isfinite().all() and ring().log_prob(x).isfinite().all()
    points = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    finite_set = GaussianMixture(points, torch.zeros(2))
    assert torch.isin(finite_set.sample(20).float(), points).all()
    near = VPSDE().alpha(torch.tensor(0.01)) * points[:1] + 0.001
    torch.testing.assert_close(finite_set.denoiser(VPSDE())(near, torch.tensor([0.01])), points[:1])


def test_dtype_follows_x():
    score = ring().score(VPSDE())
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.rand(4)
    assert score(x, t).dtype == torch.float64
    torch.testing.assert_close(score(x.float(), t).double(), score(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.ones(3)), "covariances must have shape"),
        ((torch.zeros(2, 3), -torch.ones(2)), "positive semi-definite"),
        ((torch.zeros(2, 3), torch.ones(2), torch.tensor([1.0, 0.0])), "positive numbers"),
        ((torch.zeros(3), torch.ones(3)), "means must have shape"),
        ((torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])), "symmetric"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\)"):
        ring().score(VPSDE())(torch.zeros(3, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"t must have shape"):
        Gaussian(torch.zeros(2), torch.tensor(1.0)).score(VPSDE())(torch.zeros(3, 2), torch.ones(2))


def test_posterior_is_bayes_rule_by_quadrature():
    """Density, weights and mean of p(x | y) in two dimensions, from p(x) N(y; A x, σ_y² I) on a fine grid."""
    law = GaussianMixture(
        torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.0, -1.0]]),
        random_covariances(3, 2, 0.6, seed=3),
        torch.tensor([0.2, 0.5, 0.3]),
    )
    A, y, sigma_y = torch.tensor([[1.0, -0.7]]), torch.tensor([0.4]), 0.3
    posterior = law.posterior(A, y, sigma_y)
    axis = torch.linspace(-5, 5, 401, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log_likelihood = torch.distributions.Normal(x @ A.double().T, sigma_y).log_prob(y)[:, 0]
    joint = (law.log_prob(x) + log_likelihood).exp()
    density = joint / (joint.sum() * (axis[1] - axis[0]) ** 2)
    torch.testing.assert_close(posterior.log_prob(x).exp(), density, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("sigma_y", [0.0, 0.05, 2.0])
def test_posterior_of_images_meets_importance_sampling(sigma_y):
    """E[x | y] = E[x w(x)]/E[w(x)] over prior samples, for the mean of four elements; exact where σ_y = 0."""
    law, A = images(), torch.zeros(1, 64)
    A[0, :4] = 0.25
    y = torch.tensor([0.1])
    posterior = law.posterior(A, y, sigma_y).sample(4_000, seed=1).flatten(1)
    if sigma_y == 0:  # exact; the importance weights need some noise
        torch.testing.assert_close(posterior @ A[0].double(), y.double().expand(4_000))
        sigma_y = 0.02
    x = law.sample(8_000, seed=2).flatten(1)
    w = torch.distributions.Normal(x @ A[0].double(), sigma_y).log_prob(y).softmax(0)
    error = 6 * (1 / w.square().sum()).rsqrt()
    assert ((w @ x) - posterior.mean(0)).abs().max() < error


def test_posterior_of_nothing_new_is_the_prior():
    law, x = images(), images().sample(5, seed=1)
    vague = law.posterior(torch.ones(1, 64), torch.zeros(1), 1e6)
    torch.testing.assert_close(vague.log_prob(x), law.log_prob(x), rtol=1e-6, atol=1e-6)


def test_posterior_refuses_bad_input():
    law = GaussianMixture(torch.zeros(1, 2), torch.zeros(1))
    for A, sigma_y, message in (
        (torch.ones(1, 2), 0.0, "certain before it is made: set sigma_y > 0"),
        (torch.ones(2, 2), 1.0, r"shape \(1, 2\)"),
        (torch.ones(1, 2), -1.0, "sigma_y >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            law.posterior(A, torch.zeros(1), sigma_y)
