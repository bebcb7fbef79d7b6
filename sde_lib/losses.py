"""Training objectives, one value per sample.

Denoising score matching (Vincent, 2011) over all noise levels of an SDE (Song et al., 2021, eq. 7): with x_t
= α x_0 + σ ε,

    L(t) = λ(t) ‖score(x_t, t) - ∇ log p(x_t | x_0)‖² / D = λ(t)/σ(t)² ‖σ(t) score(x_t, t) + ε‖² / D.

    weighting     λ(t)      what it is
    plain         σ(t)²     every noise level counts alike; for a network that predicts ε, DDPM's L_simple
    likelihood    g(t)²     D/2 times its integral over t bounds the negative log-likelihood up to a constant

References:
    A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011),
        https://doi.org/10.1162/NECO_a_00142.
    Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021),
        https://arxiv.org/abs/2101.09258: eq. 7, Theorem 1.
    Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630: Appendix I.1,
        low-discrepancy times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_lib.sde import SDE, ScoreFunction, expand

WEIGHTINGS = ("plain", "likelihood")


def sample_times(
    sde: SDE, batch_size: int, generator: torch.Generator | None = None, eps: float = 1e-5
) -> Tensor:
    """Stratified times, one in each of `batch_size` equal cells of [eps, T], each uniform on its own.

    All cells share one offset (Kingma et al., 2021, Appendix I.1), so that the mean loss over a batch varies
    less than with independent times.

    Args:
        sde: The SDE, for its end time T.
        batch_size: Number of times.
        generator: Source of the randomness; the times are made on its device.
        eps: The smallest time; at t = 0 the score of VP and sub-VP is not defined.

    Returns:
        Times, ascending, shape (batch_size,), float32.
    """
    device = generator.device if generator is not None else None
    offset = torch.rand(1, generator=generator, device=device)
    u = (torch.arange(batch_size, device=device) + offset) / batch_size
    return eps + (sde.T - eps) * u


def denoising_score_matching(
    sde: SDE, score: ScoreFunction, x_0: Tensor, t: Tensor, noise: Tensor, weighting: str = "plain"
) -> Tensor:
    """The denoising score matching loss of each sample (Song et al., 2021, eq. 7).

    Args:
        sde: The SDE that perturbs the data.
        score: The score function to fit.
        x_0: Data, shape (B, *shape).
        t: Times in (0, T], shape (B,).
        noise: Standard normal noise ε, shape (B, *shape).
        weighting: "plain" for λ = σ², "likelihood" for λ = g².

    Returns:
        Losses, shape (B,), averaged over the data dimensions.

    Raises:
        ValueError: If the weighting is unknown, or t or noise do not have the shape that x_0 asks for.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    if noise.shape != x_0.shape:
        raise ValueError(f"noise must have the shape of x_0, {tuple(x_0.shape)}, got {tuple(noise.shape)}")
    mean, std = sde.marginal_prob(x_0, t)
    std = expand(std, x_0)
    residual = std * score(mean + std * noise, t) + noise
    loss = residual.square().flatten(1).mean(1)
    return loss * (sde.g2(t) / sde.sigma(t).square()).to(loss) if weighting == "likelihood" else loss
