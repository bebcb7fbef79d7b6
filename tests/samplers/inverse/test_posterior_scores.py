"""Posterior scores against exact posteriors, where a method is exact, and against its formula in dense
algebra, where it is not.
"""

from __future__ import annotations

import pytest
import torch
from torch.autograd.functional import jacobian

from score_diffusion.samplers import SAMPLERS, PCSampler, ancestral, clock_grid, make_sampler
from score_diffusion.samplers.inverse import (
    DPS,
    Blur,
    DiffPIR,
    Downsample,
    JPEGQuantization,
    LinearFunctionOperator,
    Mask,
    MatrixOperator,
    MomentMatching,
    PhaseRetrieval,
    PiGDM,
    RandomProjection,
    Replacement,
    ToGrey,
    uniform_kernel,
)
from score_diffusion.samplers.inverse.pigdm import isotropic_variance
from score_diffusion.samplers.inverse.solve import conjugate_gradients
from score_diffusion.sde_lib import VESDE, VPSDE, Gaussian, GaussianMixture, ScoreModel, expand
from tests.problems import (
    ALL_SDES,
    SDES,
    carry,
    exact_moments,
    gaussian,
    images,
    line,
    moments,
    random_covariances,
    ring,
    sampling_floor,
    sliced_wasserstein,
)

every_sde = pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
DOUBLE = {"dtype": torch.float64}


def times_of(sde, n):
    return torch.linspace(0.01 * sde.T, 0.99 * sde.T, n, dtype=torch.float64)


def states(law, sde, t, seed=1):
    noise = torch.randn(len(t), *law.shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)
    return expand(sde.alpha(t), noise) * law.sample(len(t), seed) + expand(sde.sigma(t), noise) * noise


def measured(law, operator, sigma_y, seed=3):
    """A measurement of a sample, and the exact posterior."""
    y = operator.measure(law.sample(1, seed), sigma_y, seed)[0]
    return y, law.posterior(operator.matrix(), y, sigma_y)


def dense_jacobian(law, sde, x, t):
    """∂x̂_0/∂x_t of each sample, (B, D, D)."""
    denoiser = law.denoiser(sde)
    rows = [jacobian(lambda v, k=k: denoiser(v[None], t[k : k + 1])[0], x[k]) for k in range(len(x))]
    return torch.stack(rows).reshape(len(x), x[0].numel(), x[0].numel())


OPERATORS = {
    "mask": Mask(torch.tensor([True, False, True, True, False, False])),
    "downsample": Downsample((6,), 3),
    "blur": Blur((6,), uniform_kernel(3, 1)),
    "projection": RandomProjection((6,), 4),
    "without decomposition": LinearFunctionOperator(lambda x: x.cumsum(1)[:, ::2], (6,)),
}
each_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())


@every_sde
@each_operator
def test_moment_matching_is_exact_for_gaussians(sde, operator):
    """With an iteration for each measured number the score is that of the exact posterior at every time."""
    law = gaussian(6)
    y, posterior = measured(law, operator, 0.3)
    t = times_of(sde, 5)
    x = states(law, sde, t)
    score = MomentMatching(law.score(sde), sde, operator, y, 0.3, iterations=6)
    torch.testing.assert_close(score(x, t), posterior.score(sde)(x, t), rtol=1e-6, atol=1e-8)


@every_sde
@each_operator
def test_pigdm_is_exact_for_isotropic_gaussians(sde, operator):
    """r_t² is the variance of p(x_0 | x_t) for data from N(m, s² I)."""
    law = Gaussian(torch.linspace(-1, 1, 6), torch.tensor(0.49, **DOUBLE))
    operator = operator if operator is not OPERATORS["without decomposition"] else operator.dense()
    y, posterior = measured(law, operator, 0.3)
    t = times_of(sde, 5)
    x = states(law, sde, t)
    score = PiGDM(law.score(sde), sde, operator, y, 0.3, data_std=0.7)
    torch.testing.assert_close(score(x, t), posterior.score(sde)(x, t), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
def test_moment_matching_samples_have_the_posterior_moments(sde):
    """Mean and covariance of the samples, computed without Monte-Carlo noise, converge to the posterior's."""
    law, operator = gaussian(3), RandomProjection((3,), 2)
    y, posterior = measured(law, operator, 0.2)
    score = MomentMatching(law.score(sde), sde, operator, y, 0.2, iterations=2)
    sampler = make_sampler("eabm", sde, grid=clock_grid(sde, 60, eps=1e-3 if sde.prior_std == 1 else 1e-5))
    mean, covariance = exact_moments(sampler, law, score)
    true_mean, true_covariance = moments(posterior.marginal(sde, sampler.times[-1].item()))
    assert (mean - true_mean).norm() < 0.02
    assert (covariance - true_covariance).norm() < 0.02 * true_covariance.norm()


def test_moment_matching_is_its_formula_for_mixtures():
    """Jᵀ Aᵀ (A V Aᵀ + σ_y² I)⁻¹ (y - A x̂_0) with the dense Jacobian of ten components, V = (σ²/α) J."""
    sde, law, operator = VPSDE(), images(), Downsample((1, 8, 8), 4)
    y, _ = measured(law, operator, 0.2)
    t = torch.tensor([0.1, 0.4, 0.8], **DOUBLE)
    x = states(law, sde, t)
    score = MomentMatching(law.score(sde), sde, operator, y, 0.2, iterations=4)
    guidance = score(x, t) - law.score(sde)(x, t)
    J, A = dense_jacobian(law, sde, x, t), operator.matrix()
    residual = y.flatten() - law.denoiser(sde)(x, t).flatten(1) @ A.T
    V = (sde.sigma(t).square() / sde.alpha(t))[:, None, None] * J
    solution = torch.linalg.solve(A @ V @ A.T + 0.04 * torch.eye(4), residual)
    expected = (J.mT @ (solution @ A)[..., None])[..., 0]
    torch.testing.assert_close(guidance.flatten(1), expected, rtol=1e-5, atol=1e-8)


def test_preconditioning_changes_the_way_but_not_the_limit():
    """Without a decomposition conjugate gradients run without a preconditioner, to the same solution."""
    sde, law = VPSDE(), gaussian(6)
    operator = OPERATORS["without decomposition"]
    y, _ = measured(law, operator, 0.1)
    t = times_of(sde, 4)
    x = states(law, sde, t)
    plain, better = (
        MomentMatching(law.score(sde), sde, A, y, 0.1, iterations=5) for A in (operator, operator.dense())
    )
    torch.testing.assert_close(plain(x, t), better(x, t), rtol=1e-6, atol=1e-8)


def test_dps_with_ancestral_sampling_is_algorithm_1():
    """x_s = DDPM's step - ζ ∇‖y - A(x̂_0)‖ on the sampler's own grid, sample by sample."""
    sde, law, operator = VPSDE(), images(), PhaseRetrieval((1, 8, 8))
    y = operator(law.sample(1, 5))[0]
    times = clock_grid(sde, 6)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), **DOUBLE)
    noise = [torch.randn(x.shape, generator=torch.Generator().manual_seed(k), **DOUBLE) for k in range(6)]
    score = DPS(law.score(sde), sde, operator, y, zeta=0.3, times=times)
    path = carry(ancestral(sde, times), score, x, noise)
    for k in range(6):
        a = path[k].clone().requires_grad_()
        x_0 = law.denoiser(sde)(a, times[k].expand(3))
        norms = (y - operator(x_0)).flatten(1).norm(dim=1)
        (gradient,) = torch.autograd.grad(norms.sum(), a)
        step = ancestral(sde, times[k : k + 2])
        plain = carry(step, law.score(sde), path[k], noise[k : k + 1])[-1]
        torch.testing.assert_close(path[k + 1], plain - 0.3 * gradient, rtol=1e-8, atol=1e-9)


def test_dps_takes_single_precision_times_for_those_of_its_grid():
    """A plain function computes in the dtype of the samples: its times are rounded, up as well as down."""
    sde, law, operator = VPSDE(), images(), Downsample((1, 8, 8), 2)
    y, _ = measured(law, operator, 0.5)
    times = clock_grid(sde, 49)
    score = DPS(law.score(sde), sde, operator, y, 0.3, zeta=0.3, times=times)
    x = states(law, sde, times)
    torch.testing.assert_close(score(x, times.float()), score(x, times), rtol=1e-3, atol=1e-4)


def test_dps_without_zeta_is_theorem_1():
    """The gradient of log N(y; A(x̂_0), σ_y² I); with both, the smaller guidance of each sample."""
    sde, law, operator = VESDE(), images(), Downsample((1, 8, 8), 2)
    y, _ = measured(law, operator, 0.5)
    t = torch.tensor([0.1, 0.4, 0.8], **DOUBLE)
    x = states(law, sde, t).requires_grad_()
    x_0 = law.denoiser(sde)(x, t)
    log_likelihood = -(y - operator(x_0)).square().flatten(1).sum(1) / (2 * 0.25)
    (expected,) = torch.autograd.grad(log_likelihood.sum(), x)
    prior = law.score(sde)(x.detach(), t)
    theory = DPS(law.score(sde), sde, operator, y, 0.5, zeta=None)(x.detach(), t) - prior
    torch.testing.assert_close(theory, expected, rtol=1e-7, atol=1e-9)
    steps = DPS(law.score(sde), sde, operator, y, zeta=0.01)(x.detach(), t) - prior
    both = DPS(law.score(sde), sde, operator, y, 0.5, zeta=0.01)(x.detach(), t) - prior
    norms = [g.flatten(1).norm(dim=1) for g in (theory, steps, both)]
    torch.testing.assert_close(norms[2], torch.minimum(norms[0], norms[1]))


def test_pigdm_takes_a_decoder_for_the_pseudo_inverse():
    """r_t⁻² Jᵀ (h⁺(y) - h⁺(h(x̂_0))) with JPEG's decoder and the dense Jacobian."""
    sde, law, operator = VPSDE(), images(), JPEGQuantization((1, 8, 8), 20)
    y = operator(law.sample(1, 4))[0]
    t = torch.tensor([0.2, 0.7], **DOUBLE)
    x = states(law, sde, t)
    guidance = PiGDM(law.score(sde), sde, operator, y, data_std=0.6)(x, t) - law.score(sde)(x, t)
    x_0 = law.denoiser(sde)(x, t)
    difference = (operator.pseudo_inverse(y[None]) - operator.pseudo_inverse(operator(x_0))).flatten(1)
    r2 = isotropic_variance(sde.alpha(t), sde.sigma(t), 0.6)
    expected = (dense_jacobian(law, sde, x, t).mT @ (difference / r2[:, None])[..., None])[..., 0]
    torch.testing.assert_close(guidance.flatten(1), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
def test_diffpir_corrects_to_the_minimum(sigma_y):
    """x̂_0' has Aᵀ(A x̂_0' - y) + ρ (x̂_0' - x̂_0) = 0, and fits y exactly without noise."""
    sde, law, operator = VPSDE(), images(), Blur((1, 8, 8), uniform_kernel(3))
    y = operator.measure(law.sample(1, 4), sigma_y)[0]
    t = torch.tensor([0.2, 0.7], **DOUBLE)
    x = states(law, sde, t)
    score = DiffPIR(law.score(sde), sde, operator, y, sigma_y, regularization=3.0)(x, t)
    a, s = expand(sde.alpha(t), x), expand(sde.sigma(t), x)
    corrected, x_0 = (x + s.square() * score) / a, law.denoiser(sde)(x, t)
    rho = 3.0 * (sigma_y * a / s).square()
    slope = operator.adjoint(operator(corrected) - y) + rho * (corrected - x_0)
    assert slope.abs().max() < 1e-9
    if sigma_y == 0:
        torch.testing.assert_close(operator(corrected), y.expand(2, 1, 8, 8), rtol=1e-8, atol=1e-8)


SPECIFIC = {
    "inpainting": Mask(torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5, (3, 4, 4)),
    "colorization": ToGrey((3, 4, 4)),
    "super-resolution": Downsample((3, 4, 4), 2),
}


def colour_images():
    generator = torch.Generator().manual_seed(4)
    means = torch.rand(4, 3, 4, 4, generator=generator, **DOUBLE) * 2 - 1
    return GaussianMixture(means, random_covariances(4, 48, 0.3, seed=4))


@pytest.mark.parametrize("operator", SPECIFIC.values(), ids=SPECIFIC.keys())
@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
@pytest.mark.parametrize("name", ["eabm", "dpmpp_2m_sde", "ancestral", "pc"])
def test_what_is_measured_comes_out_exact(operator, sde, name):
    """Replacement without noise, in float32, with a predictor-corrector and others: A x = y to rounding."""
    law = colour_images()
    y = operator(law.sample(1, 2).float())[0]
    score = Replacement(law.score(sde), sde, operator, y)
    samples = make_sampler(name, sde, 20, denoise=True)(score, (2, 3, 4, 4), seed=1).samples
    assert (operator(samples) - y).abs().max() < 5e-6


def test_known_pixels_start_noised_and_end_denoised_everywhere():
    """At T the known part has the noise of T, and the final denoising changes the unknown part, too."""
    sde, law, operator = VESDE(), colour_images(), SPECIFIC["inpainting"]
    y = operator(law.sample(1, 2).float())[0]
    score = Replacement(law.score(sde), sde, operator, y)
    grid = clock_grid(sde, 30, eps=0.3)
    noisy, clean = (
        PCSampler(sde, grid, denoise=denoise)(score, (200, 3, 4, 4), seed=1, trajectory=True)
        for denoise in (False, True)
    )
    start = operator(noisy.trajectory[0]) - y
    assert abs(start.std().item() / sde.prior_std - 1) < 0.03
    unknown = ~operator.known
    assert ((noisy.samples - clean.samples)[:, unknown].abs() > 0).float().mean() > 0.99


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
def test_replacement_is_exact_where_parts_are_independent(sde):
    """Unknown elements keep the prior's law if known ones say nothing of them; known ones take their
    values.
    """
    means, variances = torch.linspace(-1, 1, 4).double(), torch.tensor([0.5, 1.0, 0.2, 0.8], **DOUBLE)
    law = Gaussian(means, variances.diag())
    operator = Mask(torch.tensor([True, False, True, False]))
    y = torch.tensor([0.3, -0.4], **DOUBLE)
    score = Replacement(law.score(sde), sde, operator, y)
    times = clock_grid(sde, 100, eps=1e-4 if sde.prior_std == 1 else 1e-5)
    mean, covariance = exact_moments(make_sampler("eabm", sde, grid=times), law, score)
    known = operator.known
    torch.testing.assert_close(mean[known], y, rtol=0.01, atol=0.01)
    torch.testing.assert_close(mean[~known], means[~known], rtol=0.02, atol=0.02)
    torch.testing.assert_close(covariance.diagonal()[~known], variances[~known], rtol=0.02, atol=0.001)
    assert covariance[known].abs().max() < 0.002


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
def test_replacement_denoises_exactly(sde):
    """For A = I it follows the reverse SDE from the noise level of y: the law is the exact posterior's."""
    law, operator = line(), MatrixOperator(torch.eye(1))
    y, sigma_y, n = torch.tensor([0.6]), 0.6, 2000
    posterior = law.posterior(operator.matrix(), y, sigma_y)
    score = Replacement(law.score(sde), sde, operator, y, sigma_y)
    samples = ancestral(sde, clock_grid(sde, 200), denoise=True)(score, (n, 1), seed=2).samples
    assert sliced_wasserstein(samples, posterior.sample(n, 5)) < 1.6 * sampling_floor(posterior, n)


def test_strength_mixes_the_scores_of_the_measured_part():
    sde, law, operator = VPSDE(), gaussian(6), OPERATORS["mask"]
    y, _ = measured(law, operator, 0.0)
    t = times_of(sde, 3)
    x = states(law, sde, t)
    prior = law.score(sde)(x, t)
    half, full = (Replacement(law.score(sde), sde, operator, y, strength=s)(x, t) for s in (0.5, 1.0))
    torch.testing.assert_close(half, (prior + full) / 2)


def posterior_scores(score, sde, operator, y, sigma_y):
    return [
        DPS(score, sde, operator, y, sigma_y),
        PiGDM(score, sde, operator, y, sigma_y),
        MomentMatching(score, sde, operator, y, sigma_y),
        Replacement(score, sde, operator, y, sigma_y),
        DiffPIR(score, sde, operator, y, sigma_y),
    ]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_takes_posterior_scores(name):
    """Finite samples whose spread in the measured direction is the posterior's, not the prior's; one
    evaluation of the prior's score a call.
    """
    sde, law, operator = VPSDE(), gaussian(2), MatrixOperator(torch.tensor([[0.8, -0.6]]))
    y, posterior = measured(law, operator, 0.1)
    calls = 0

    def counted(x, t):
        nonlocal calls
        calls += 1
        return law.score(sde)(x, t)

    score = MomentMatching(counted, sde, operator, y, 0.1, iterations=1)
    nfe = None if SAMPLERS[name].nfe_per_step is None else max(60, SAMPLERS[name].cost_with({}).extra + 41)
    result = make_sampler(name, sde, nfe, denoise=True)(score, (64, 2), seed=0)
    along, exact = operator(result.samples), operator(posterior.sample(5000).float())
    assert along.std() < 3 * exact.std() and (along - exact.mean()).abs().mean() < 0.5
    assert calls >= result.nfe
    if nfe is not None:
        assert calls == result.nfe <= nfe


def test_each_sample_may_have_its_own_measurement():
    """One y for each sample is the same as one call for each."""
    sde, law, operator = VPSDE(), images(), Downsample((1, 8, 8), 2)
    y = operator.measure(law.sample(3, 1), 0.1)
    t = torch.tensor([0.1, 0.4, 0.8], **DOUBLE)
    x = states(law, sde, t)
    for k, together in enumerate(posterior_scores(law.score(sde), sde, operator, y, 0.1)):
        for j in range(3):
            single = posterior_scores(law.score(sde), sde, operator, y[j], 0.1)[k]
            torch.testing.assert_close(single(x[j : j + 1], t[j : j + 1])[0], together(x, t)[j])
        with pytest.raises(ValueError, match="y holds the measurements of 3 samples"):
            together(x[:2], t[:2])


def test_learned_variances_pass_through():
    """The fraction of a learned variance is the network's; gradients reach neither it nor the parameters."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 8)

        def forward(self, x, noise, cond=None):
            return self.layer(x)

    model, operator = ScoreModel(Net(), VPSDE(), learned_variance=True), Mask(torch.tensor([1, 0, 1, 0]))
    x, t = torch.randn(3, 4), torch.full((3,), 0.4)
    for score in posterior_scores(model, model.sde, operator, torch.zeros(2), 0.1):
        guided, fraction = score.score_and_fraction(x, t)
        torch.testing.assert_close(fraction, model.score_and_fraction(x, t)[1])
        torch.testing.assert_close(guided, score(x, t))
        assert score.device == model.device
    assert all(p.grad is None for p in model.parameters())


def test_conjugate_gradients_solve_each_sample_by_itself():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 6, 6, generator=generator, **DOUBLE)
    M = a @ a.mT + 0.1 * torch.eye(6)
    b = torch.randn(4, 6, generator=generator, **DOUBLE)
    b[2] = 0

    def matrix(v):
        return (M @ v[..., None])[..., 0]

    expected = torch.linalg.solve(M, b)
    torch.testing.assert_close(conjugate_gradients(matrix, b, 30), expected, rtol=1e-6, atol=1e-8)
    inverse = torch.linalg.inv(M + 0.01 * torch.eye(6))
    close = conjugate_gradients(matrix, b, 5, lambda v: (inverse @ v[..., None])[..., 0])
    torch.testing.assert_close(close, expected, rtol=1e-5, atol=1e-7)
    indefinite = conjugate_gradients(lambda v: -v, b, 3)
    assert torch.equal(indefinite, torch.zeros_like(b))


MASK = Mask(torch.tensor([True, False]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, d: DPS(s, d, MASK, torch.zeros(2)), r"y must have the shape of this Mask's measurements"),
        (lambda s, d: DPS(s, d, MASK, torch.zeros(1), -0.1), "sigma_y must be >= 0"),
        (lambda s, d: DPS(s, d, MASK, torch.zeros(1), zeta=None), "needs sigma_y > 0"),
        (lambda s, d: DPS(s, d, MASK, torch.zeros(1), zeta=-1.0), "zeta must be positive"),
        (lambda s, d: PiGDM(s, d, MASK, torch.zeros(1), data_std=0.0), "data_std must be positive"),
        (lambda s, d: PiGDM(s, d, PhaseRetrieval((1, 2)), torch.zeros(1, 4)), "has no pseudo-inverse"),
        (
            lambda s, d: PiGDM(s, d, JPEGQuantization((1, 8, 8)), torch.zeros(1, 8, 8), 0.1),
            "non-linear operator needs sigma_y = 0",
        ),
        (
            lambda s, d: MomentMatching(s, d, PhaseRetrieval((1, 2)), torch.zeros(1, 4)),
            "moment matching needs a linear operator",
        ),
        (
            lambda s, d: MomentMatching(s, d, MASK, torch.zeros(1), iterations=0),
            "iterations must be a positive integer",
        ),
        (
            lambda s, d: Replacement(s, d, MASK, torch.zeros(1), strength=1.5),
            r"strength must lie in \(0, 1\]",
        ),
        (
            lambda s, d: Replacement(s, d, OPERATORS["without decomposition"], torch.zeros(3)),
            "no fast singular value decomposition",
        ),
        (
            lambda s, d: DiffPIR(s, d, MASK, torch.zeros(1), regularization=0),
            "regularization must be positive",
        ),
        (
            lambda s, d: DiffPIR(s, d, PhaseRetrieval((1, 2)), torch.zeros(1, 4)),
            "DiffPIR needs a linear operator",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(ring().score(VPSDE()), VPSDE())
    assert "\n" not in str(caught.value)
