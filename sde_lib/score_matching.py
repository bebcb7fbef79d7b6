"""Score matching without denoising: objectives that need samples of a law p, not the noise that made them.

The Fisher divergence of a score s from p's is, after integration by parts (Hyvärinen, 2005, Theorem 1),

    ½ E_p ‖s - ∇log p‖² = E_p J + ½ E_p ‖∇log p‖²,        J(x) = tr ∇s(x) + ½ ‖s(x)‖²,

where the last term does not depend on s. Sliced score matching (Song et al., 2019) replaces the trace, which
costs D backward passes, by projections on random v with E v vᵀ = I, at one backward pass each:

    implicit     J = tr ∇s + ½ ‖s‖²          exact
    sliced       J = vᵀ ∇s v + ½ (vᵀ s)²     eq. 7
    sliced_vr    J = vᵀ ∇s v + ½ ‖s‖²        eq. 8, variance reduction: the second term's mean is known

All three have the same expectation. `score` is score(x) where no time is given, and score(x, t) at a time;
x then follows p_t. `perturbed_score_matching` brings them to all noise levels of an SDE, on the scale of
`denoising_score_matching`, from which their expectation differs by a constant. On data without noise the
score is fitted only where data are: benchmarks/low_density.py shows what comes of it.

References:
    Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005),
        https://jmlr.org/papers/v6/hyvarinen05a.html.
    Sliced Score Matching: A Scalable Approach to Density and Score Estimation (Song et al., 2019),
        https://arxiv.org/abs/1905.07088.
    Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019),
        https://arxiv.org/abs/1907.05600: Sections 2.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError
from score_diffusion.sde_lib.losses import Weighting, find_weighting
from score_diffusion.sde_lib.sde import SDE, expand

OBJECTIVES = ("implicit", "sliced", "sliced_vr")
PROBE_LAWS = ("rademacher", "gaussian", "sphere")

Score = Callable[..., Tensor]  # score(x), or score(x, t) at a time


def draw_probes(
    x: Tensor, n_probes: int = 1, law: str = "rademacher", generator: torch.Generator | None = None
) -> Tensor:
    """Random projections v with E v vᵀ = I for sliced score matching.

    Args:
        x: Points, shape (B, *shape), for shape, dtype and device.
        n_probes: Number of projections M of each point.
        law: "rademacher" (signs), "gaussian", or "sphere" (uniform of length √D).
        generator: Source of the randomness.

    Returns:
        Projections, shape (M, B, *shape).

    Raises:
        InputError: If the law is unknown or n_probes is below 1.
    """
    if law not in PROBE_LAWS:
        raise InputError(f"law must be one of {', '.join(PROBE_LAWS)}, got {law!r}")
    if n_probes < 1:
        raise InputError(f"n_probes must be at least 1, got {n_probes}")
    v = torch.randn(n_probes, *x.shape, generator=generator, dtype=x.dtype, device=x.device)
    if law == "rademacher":
        return torch.where(v < 0, -1.0, 1.0).to(v)
    if law == "sphere":
        rows = v.flatten(2)
        return (rows * (rows.shape[2] ** 0.5 / rows.norm(dim=2, keepdim=True))).reshape(v.shape)
    return v


def implicit_score_matching(score: Score, x: Tensor, t: Tensor | None = None) -> Tensor:
    """J = tr ∇s + ½ ‖s‖² with the exact trace (Hyvärinen, 2005, eq. 4), by D backward passes.

    Args:
        score: The score function to fit, which treats samples one by one.
        x: Samples of the law, shape (B, *shape).
        t: Times for score(x, t), shape (B,); None for score(x).

    Returns:
        J of each sample, shape (B,), summed over the data dimensions; differentiable in the score's
        parameters where gradients are enabled.

    Raises:
        InputError: If the score is not differentiable in x or does not have its shape.
    """
    s, derivative = _score_and_derivative(score, x, t)
    flat = s.flatten(1)
    trace = torch.zeros_like(flat[:, 0])
    for i in range(flat.shape[1]):
        basis = torch.zeros_like(flat)
        basis[:, i] = 1
        trace = trace + derivative(basis.reshape(x.shape)).flatten(1)[:, i]
    return trace + flat.square().sum(1) / 2


def sliced_score_matching(
    score: Score, x: Tensor, probes: Tensor, t: Tensor | None = None, variance_reduction: bool = True
) -> Tensor:
    """J = vᵀ ∇s v + ½ ‖s‖², or ½ (vᵀ s)², averaged over the probes (Song et al., 2019, eqs. 8 and 7).

    Args:
        score: The score function to fit, which treats samples one by one.
        x: Samples of the law, shape (B, *shape).
        probes: Projections v, shape (M, B, *shape), as `draw_probes` makes them.
        t: Times for score(x, t), shape (B,); None for score(x).
        variance_reduction: Whether ½ ‖s‖² takes the place of ½ (vᵀ s)², which is right where E v vᵀ = I.

    Returns:
        J of each sample, shape (B,), summed over the data dimensions; differentiable in the score's
        parameters where gradients are enabled.

    Raises:
        InputError: If the probes do not fit x, the score is not differentiable in x or has another shape.
    """
    if probes.ndim != x.ndim + 1 or probes.shape[1:] != x.shape or len(probes) == 0:
        wanted = f"(M, {', '.join(map(str, x.shape))})"
        raise InputError(f"probes must have shape {wanted} with M >= 1, got {tuple(probes.shape)}")
    s, derivative = _score_and_derivative(score, x, t)
    trace = torch.stack([(derivative(v) * v).flatten(1).sum(1) for v in probes]).mean(0)
    if variance_reduction:
        return trace + s.flatten(1).square().sum(1) / 2
    return trace + (probes * s).flatten(2).sum(2).square().mean(0) / 2


def perturbed_score_matching(
    sde: SDE,
    score: Score,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    objective: str = "sliced_vr",
    weighting: str | Weighting = "plain",
    probes: Tensor | None = None,
) -> Tensor:
    """2 λ(t) J(x_t)/D at x_t = α x_0 + σ ε: `denoising_score_matching` but for a term without the score.

    Args:
        sde: The SDE that perturbs the data.
        score: The score function to fit, score(x, t).
        x_0: Data, shape (B, *shape).
        t: Times in (0, T], shape (B,).
        noise: Standard normal noise ε, shape (B, *shape).
        objective: "implicit", "sliced" or "sliced_vr".
        weighting: λ/σ², as for `denoising_score_matching`; "plain", λ = σ², is NCSN's.
        probes: Projections for the sliced objectives, shape (M, B, *shape); None for one `draw_probes(x_t)`.

    Returns:
        Losses, shape (B,), averaged over the data dimensions.

    Raises:
        InputError: If the objective or the weighting is unknown, or a shape does not fit.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    weighting = find_weighting(weighting)
    if noise.shape != x_0.shape:
        raise InputError(f"noise must have the shape of x_0, {tuple(x_0.shape)}, got {tuple(noise.shape)}")
    mean, std = sde.marginal_prob(x_0, t)
    x_t = mean + expand(std, x_0) * noise
    if objective == "implicit":
        J = implicit_score_matching(score, x_t, t)
    else:
        probes = draw_probes(x_t) if probes is None else probes
        J = sliced_score_matching(score, x_t, probes, t, variance_reduction=objective == "sliced_vr")
    weight = weighting(sde, t) * sde.sigma(t).square()
    return weight.to(J) * 2 / x_0[0].numel() * J


def _score_and_derivative(
    score: Score, x: Tensor, t: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """s(x), and the map v -> (∇s)ᵀ v, both with a graph to the parameters where gradients are enabled."""
    if x.ndim < 2 or not x.is_floating_point():
        raise InputError(
            f"x must be a floating-point tensor of shape (B, *shape), got {tuple(x.shape)} of {x.dtype}"
        )
    training = torch.is_grad_enabled()
    with torch.enable_grad():  # a validation loss under no_grad needs derivatives in x too
        x = x.detach().requires_grad_()
        s = score(x) if t is None else score(x, t)
    if s.shape != x.shape:
        raise InputError(f"the score must have the shape of x, {tuple(x.shape)}, it has {tuple(s.shape)}")
    if not s.requires_grad:
        raise InputError(
            "the score must be differentiable in x; it came back detached (is it wrapped in torch.no_grad?)"
        )

    def derivative(v: Tensor) -> Tensor:
        with torch.enable_grad():
            options = dict(retain_graph=True, create_graph=training, materialize_grads=True)
            return torch.autograd.grad(s, x, v, **options)[0]

    return (s if training else s.detach()), derivative
