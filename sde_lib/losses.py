"""Training objectives, one value per sample.

Denoising score matching (Vincent, 2011) over all noise levels of an SDE (Song et al., 2021, eq. 7): with x_t
= α x_0 + σ ε,

    L(t) = λ(t) ‖score(x_t, t) - ∇ log p(x_t | x_0)‖² / D = w(t) ‖σ(t) score(x_t, t) + ε‖² / D,   w = λ/σ²,

where σ score = -ε̂, the noise estimate. With SNR = (α/σ)² and σ̃ = σ/α, the noise of the rescaled x_t/α, the
denoiser's error is x̂_0 - x_0 = -σ̃ (ε̂ - ε): a weight of ‖x̂_0 - x_0‖² times σ̃² is that of the noise's error.

    weighting     w(t)                    what it is
    plain         1                       every noise level counts equally; for a network that predicts ε,
                                          DDPM's L_simple
    likelihood    g²/σ²                   D/2 times its integral over t bounds the negative log-likelihood
                                          up to a constant
    x0            1/SNR                   ‖x̂_0 - x_0‖² itself: for a network that predicts x_0, the plain
                                          error of its output
    min_snr       min(SNR, γ)/SNR         min(SNR, γ) of ‖x̂_0 - x_0‖² (Hang et al., 2023): times with
                                          little noise do not outweigh the rest
    edm           1 + (σ̃/σ_data)²         (σ̃² + σ_data²)/(σ̃ σ_data)² of ‖x̂_0 - x_0‖² (Karras et al., 2022):
                                          the plain error of the output of a network with EDM's
                                          preconditioning, which starts at 1 at every noise level

A weighting is a function of (sde, t): one of these, or any other.

References:
    A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011),
        https://doi.org/10.1162/NECO_a_00142.
    Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021),
        https://arxiv.org/abs/2101.09258: eq. 7, Theorem 1.
    Efficient Diffusion Training via Min-SNR Weighting Strategy (Hang et al., 2023),
        https://arxiv.org/abs/2303.09556: Section 3.4.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        https://arxiv.org/abs/2206.00364: Section 5 and Table 1, the weighting.
    Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics (Kendall et al.,
        2018), https://arxiv.org/abs/1705.07115.
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024),
        https://arxiv.org/abs/2312.02696: eq. 21, uncertainty as a function of the noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from score_diffusion.sde_lib.errors import check_name
from score_diffusion.sde_lib.sde import SDE, ScoreFunction, expand

Weighting = Callable[[SDE, Tensor], Tensor]
"""`weighting(sde, t) -> w(t)`: the weights of the noise's error at times t, like t."""


def plain_weighting(sde: SDE, t: Tensor) -> Tensor:
    """w = 1."""
    return torch.ones_like(t)


def likelihood_weighting(sde: SDE, t: Tensor) -> Tensor:
    """w = g²/σ² (Song et al., 2021, Theorem 1)."""
    return sde.g2(t) / sde.sigma(t).square()


def x0_weighting(sde: SDE, t: Tensor) -> Tensor:
    """w = 1/SNR."""
    return (-sde.log_snr(t)).exp()


@dataclass(frozen=True)
class MinSNRWeighting:
    """w = min(SNR, γ)/SNR (Hang et al., 2023)."""

    gamma: float = 5.0

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        # min(1, γ/SNR) by logarithms: SNR itself overflows where there is next to no noise
        return (math.log(self.gamma) - sde.log_snr(t)).clamp_max(0).exp()


@dataclass(frozen=True)
class EDMWeighting:
    """w = 1 + (σ̃/σ_data)² (Karras et al., 2022, Table 1), for data of standard deviation σ_data."""

    sigma_data: float = 0.5

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return 1 + (2 * (sde.log_noise_level(t) - math.log(self.sigma_data))).exp()


WEIGHTINGS: dict[str, Weighting] = {
    "plain": plain_weighting,
    "likelihood": likelihood_weighting,
    "x0": x0_weighting,
    "min_snr": MinSNRWeighting(),
    "edm": EDMWeighting(),
}


def find_weighting(weighting: str | Weighting) -> Weighting:
    """The weighting of a name, with the settings of its paper; a function is returned as it is.

    Raises:
        InputError: If the name is unknown.
    """
    if callable(weighting):
        return weighting
    check_name("weighting", weighting, WEIGHTINGS)
    return WEIGHTINGS[weighting]


class LearnedUncertainty(nn.Module):
    """L/exp(u(σ̃)) + u(σ̃) with a learned u (Kendall et al., 2018; Karras et al., 2024, eq. 21).

    At its minimum exp(u) is the mean of L at each noise level, so that all levels contribute equally to the
    gradient, at every stage of training. u is a linear map of random Fourier features of log σ̃, initially 0.

    Args:
        sde: The SDE.
        features: Number of features.
        scale: Standard deviation of their frequencies, in cycles per unit of log σ̃. EDM2's is 1 per unit of
            log(σ̃)/4.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, sde: SDE, features: int = 128, scale: float = 0.25) -> None:
        super().__init__()
        self.sde = sde
        self.register_buffer("frequencies", 2 * math.pi * scale * torch.randn(features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features))
        self.weight = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(()))

    def log_mean(self, t: Tensor) -> Tensor:
        """u at times t, shape (B,): the logarithm of the mean loss there, once it is learned."""
        angles = self.sde.log_noise_level(t)[:, None] * self.frequencies + self.phases  # (B, features)
        features = (math.sqrt(2) * angles.cos()).to(self.weight)
        return (features * self.weight).sum(1) + self.bias  # autocast would make a matrix product bfloat16

    def forward(self, losses: Tensor, t: Tensor) -> Tensor:
        """L/exp(u) + u of losses L (B,) at times t (B,)."""
        u = self.log_mean(t)
        return losses * (-u).exp() + u


def denoising_score_matching(
    sde: SDE,
    score: ScoreFunction,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    weighting: str | Weighting = "plain",
) -> Tensor:
    """The denoising score matching loss of each sample (Song et al., 2021, eq. 7).

    Args:
        sde: The SDE that perturbs the data.
        score: The score function to fit.
        x_0: Data, shape (B, *shape).
        t: Times in (0, T], shape (B,).
        noise: Standard normal noise ε, shape (B, *shape).
        weighting: "plain", "likelihood", "x0", "min_snr" or "edm", or a function of (sde, t) such as
            `MinSNRWeighting(gamma=1.0)`.

    Returns:
        Losses, shape (B,), averaged over the data dimensions.

    Raises:
        InputError: If the weighting is unknown, or t or noise do not fit the shape of x_0.
    """
    weighting = find_weighting(weighting)
    residual = expand(sde.sigma(t), x_0) * score(sde.perturb(x_0, t, noise), t) + noise
    loss = residual.square().flatten(1).mean(1)
    return loss * weighting(sde, t).to(loss)
