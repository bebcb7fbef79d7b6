"""The divergence of a score function, tr ∇s(x), by derivatives in x.

    exact         Σ_i e_iᵀ ∇s e_i             D vector-Jacobian products
    Hutchinson    E[vᵀ ∇s v]                  one vector-Jacobian product for each random v with E v vᵀ = I
    Hutch++       tr(Qᵀ ∇s Q) + E[vᵀ P ∇s P v]    Q a basis of ∇sᵀ applied to random vectors, P = I - Q Qᵀ

(Hutchinson, 1990; Skilling, 1989; Meyer et al., 2021). Hutch++ has less variance where few directions make up
most of the trace. It is unbiased given Q, because v is independent of it. Likelihoods and score matching are
made of divergences.

References:
    A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines (Hutchinson,
        1990), https://doi.org/10.1080/03610919008812866.
    Hutch++: Optimal Stochastic Trace Estimation (Meyer et al., 2021), https://arxiv.org/abs/2010.09649:
        Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError, check_name

PROBES = ("rademacher", "gaussian", "sphere")


def check_probe(probe: str) -> None:
    """Raises an InputError unless the name is one of `PROBES`."""
    check_name("probe", probe, PROBES)


def probes_of(normal: Tensor, probe: str) -> Tensor:
    """Random v with E v vᵀ = I, made of standard normal noise.

    Args:
        normal: Standard normal noise, shape (M, B, *shape).
        probe: "rademacher" (its signs), "gaussian" (itself), or "sphere" (scaled to length √D).

    Returns:
        Probes, shape (M, B, *shape).

    Raises:
        InputError: If the name is unknown.
    """
    check_probe(probe)
    if probe == "rademacher":
        return torch.where(normal < 0, -1.0, 1.0).to(normal)
    if probe == "sphere":
        rows = normal.flatten(2)
        return (rows * (rows.shape[2] ** 0.5 / rows.norm(dim=2, keepdim=True))).reshape(normal.shape)
    return normal


def draw_probes(
    x: Tensor, n_probes: int = 1, probe: str = "rademacher", generator: torch.Generator | None = None
) -> Tensor:
    """Random v with E v vᵀ = I for points x.

    Args:
        x: Points, shape (B, *shape), for shape, dtype and device.
        n_probes: Number of probes M of each point.
        probe: "rademacher" (signs), "gaussian", or "sphere" (uniform of length √D).
        generator: Source of the randomness.

    Returns:
        Probes, shape (M, B, *shape).

    Raises:
        InputError: If the name is unknown or n_probes is below 1.
    """
    check_probe(probe)
    if n_probes < 1:
        raise InputError(f"n_probes must be at least 1, got {n_probes}")
    normal = torch.randn(n_probes, *x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return probes_of(normal, probe)


def score_and_divergence(
    score: Callable[..., Tensor],
    x: Tensor,
    t: Tensor | None,
    probes: Tensor | None,
    create_graph: bool = False,
    sketch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The score and its divergence at x, from one evaluation.

    Args:
        score: The score function, which treats samples one by one; its derivatives are taken even under
            `torch.no_grad`.
        x: Points, shape (B, *shape).
        t: Times for score(x, t), shape (B,); None for score(x).
        probes: Probes v, shape (M, B, *shape), for M estimates; None for the exact divergence.
        create_graph: Whether the results are to be differentiable in the score's parameters.
        sketch: Random vectors, shape (K, B, *shape), independent of the probes, for Hutch++ with a basis of K
            vectors, 2K further products; None for Hutchinson's estimator.

    Returns:
        The score, shape (B, *shape), and the divergence, shape (M, B), or (1, B) if it is exact.

    Raises:
        InputError: If the score is not differentiable in x or does not have its shape.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        s = score(x) if t is None else score(x, t)
        _check_score(s, x)

        def vjp(v: Tensor) -> Tensor:
            return torch.autograd.grad(
                s, x, v, retain_graph=True, create_graph=create_graph, materialize_grads=True
            )[0]

        if probes is None:
            divergence = _exact(vjp, x)[None]
        elif sketch is not None:
            divergence = _hutch_plus_plus(vjp, probes, sketch)
        else:
            divergence = torch.stack([(vjp(v) * v).flatten(1).sum(1) for v in probes])
    return (s, divergence) if create_graph else (s.detach(), divergence)


def _exact(vjp: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    trace = x.new_zeros(len(x))
    for i in range(x[0].numel()):
        basis = torch.zeros_like(x).flatten(1)  # a new one for each product: its graph may keep it
        basis[:, i] = 1
        trace = trace + vjp(basis.reshape(x.shape)).flatten(1)[:, i]
    return trace


def _hutch_plus_plus(vjp: Callable[[Tensor], Tensor], probes: Tensor, sketch: Tensor) -> Tensor:
    """Estimates of the trace for the probes, shape (M, B).

    A score is -x/σ² and a remainder of low rank. Of a multiple of I Hutchinson's estimator with signs has no
    error, but that of a projection has: c I is taken off first, where c, from the sketch, is about the mean
    eigenvalue.
    """

    shape, dimensions = probes.shape[1:], probes[0, 0].numel()
    vectors = sketch.flatten(2)  # (K, B, D)
    image = torch.stack([vjp(v).flatten(1) for v in sketch])
    c = (vectors * image).sum(2).mean(0) / dimensions  # (B,)
    basis = torch.linalg.qr((image - c[:, None] * vectors).permute(1, 2, 0)).Q  # (B, D, min(D, K))

    def quadratic_forms(rows: Tensor) -> Tensor:
        """vᵀ (∇s - c I) v for vectors (M, B, D), shape (M, B)."""
        products = torch.stack([vjp(v.reshape(shape)).flatten(1) for v in rows])
        return (rows * (products - c[:, None] * rows)).sum(2)

    v = probes.flatten(2)  # (M, B, D)
    rest = v - torch.einsum("bdk,bek,mbe->mbd", basis, basis, v)
    return c * dimensions + quadratic_forms(basis.permute(2, 0, 1)).sum(0) + quadratic_forms(rest)


def _check_score(s: Tensor, x: Tensor) -> None:
    if s.shape != x.shape:
        raise InputError(f"the score must have the shape of x, {tuple(x.shape)}, it has {tuple(s.shape)}")
    if not s.requires_grad:
        raise InputError(
            "the score must be differentiable in x; it came back detached (is it wrapped in torch.no_grad?)"
        )
