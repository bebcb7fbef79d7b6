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
score is fitted only where data are: benchmarks/low_density.py shows the consequences.

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

from score_diffusion.sde_lib.divergence import draw_probes, score_and_divergence
from score_diffusion.sde_lib.errors import InputError, check_name
from score_diffusion.sde_lib.losses import Weighting, find_weighting
from score_diffusion.sde_lib.sde import SDE

OBJECTIVES = ("implicit", "sliced", "sliced_vr")

Score = Callable[..., Tensor]  # score(x), or score(x, t) at a time


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
    _check_points(x)
    s, trace = score_and_divergence(score, x, t, None, create_graph=torch.is_grad_enabled())
    return trace[0] + s.flatten(1).square().sum(1) / 2


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
    _check_points(x)
    s, traces = score_and_divergence(score, x, t, probes, create_graph=torch.is_grad_enabled())
    trace = traces.mean(0)
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
    """2 λ(t) J(x_t)/D at x_t = α x_0 + σ ε: `denoising_score_matching` up to a term without the score.

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
    check_name("objective", objective, OBJECTIVES)
    weighting = find_weighting(weighting)
    x_t = sde.perturb(x_0, t, noise)
    if objective == "implicit":
        J = implicit_score_matching(score, x_t, t)
    else:
        probes = draw_probes(x_t) if probes is None else probes
        J = sliced_score_matching(score, x_t, probes, t, variance_reduction=objective == "sliced_vr")
    weight = weighting(sde, t) * sde.sigma(t).square()
    return weight.to(J) * 2 / x_0[0].numel() * J


def _check_points(x: Tensor) -> None:
    if x.ndim < 2 or not x.is_floating_point():
        raise InputError(
            f"x must be a floating-point tensor of shape (B, *shape), got {tuple(x.shape)} of {x.dtype}"
        )
