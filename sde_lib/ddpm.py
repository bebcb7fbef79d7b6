"""DDPM as an SDE: the chain x_k = √(1 - β_k) x_{k-1} + √β_k z, k = 0..N-1, as points of a path x_t.

The path passes through the chain at the times t_k = (k + 1)/N, with the data at t = 0:

    log α(t_k) = ½ log ᾱ_k = ½ Σ_{j<=k} log(1 - β_j),      β(t) = -d log ᾱ/dt.

In between log ᾱ is a monotonic cubic polynomial, so that β(t) is continuous: where it jumped, no ODE solver
would see its error. The transition from t_{k-1} to t_k is exactly N(√(1 - β_k) x, β_k I), and from t_j to t_k
it has β = 1 - ᾱ_k/ᾱ_j, Improved DDPM's respaced chain: a subsequence of the times respaces the chain.
Samplers, likelihoods and exact laws take it like any other SDE.

A reverse step uses the estimate x̂_0 = (x_t + σ_t² score)/α_t (Ho et al., 2020, eqs. 6-7 and 15):

    p(x_s | x_t) = N(mean of q(x_s | x_t, x̂_0), Σ)
    Σ = β̃ = σ²_{t|s} σ_s²/σ_t²               "small": exact for data that are a point
    Σ = β = σ²_{t|s}                           "large": exact for data from N(0, I)
    Σ = exp(v log β + (1 - v) log β̃)          "learned": v by the network (Nichol & Dhariwal, 2021, eq. 15)

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239.
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021),
        https://arxiv.org/abs/2102.09672.
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: Appendix B, the limit N → ∞.
    A Method for Constructing Local Monotone Piecewise Cubic Interpolants (Fritsch & Butland, 1984).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError, check_name
from score_diffusion.sde_lib.score import denoised_from
from score_diffusion.sde_lib.score_wrapper import score_and_fraction
from score_diffusion.sde_lib.sde import SDE, ScoreFunction, expand
from score_diffusion.sde_lib.vp_ve import VariancePreserving

VARIANCES = ("small", "large", "learned")


class DDPM(VariancePreserving):
    """The SDE through the chain of a β table; `sde_lib.beta_tables` has the tables of the papers.

    Args:
        betas: β_k, shape (N,), each in (0, 1); kept in float64.

    Raises:
        InputError: If betas is not a table of numbers in (0, 1).
    """

    def __init__(self, betas: Tensor | Sequence[float]) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64).detach().cpu()
        if betas.ndim != 1 or len(betas) == 0 or not ((betas > 0) & (betas < 1)).all():
            raise InputError(
                "betas must be a table of shape (N,) with numbers in (0, 1), got shape "
                f"{tuple(betas.shape)}"
                + (f" with numbers in [{betas.min():.3g}, {betas.max():.3g}]" if betas.numel() else "")
            )
        super().__init__(len(betas))
        self.sampling_eps = self.T / self.N  # a network that trains on the chain sees no earlier time
        log_alpha_bar = torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])  # (N + 1,), from t = 0
        self._tables = {torch.device("cpu"): (betas, log_alpha_bar, _monotonic_slopes(log_alpha_bar.diff()))}

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """β_k, and log ᾱ and its slopes per step at the ends of all steps, copied to a device once."""
        if device not in self._tables:
            betas, log_alpha_bar, slopes = self._tables[torch.device("cpu")]
            self._tables[device] = betas.to(device), log_alpha_bar.to(device), slopes.to(device)
        return self._tables[device]

    def _within_step(self, t: Tensor) -> tuple[Tensor, ...]:
        """Where t lies in its step, from 0 to 1, and there log ᾱ and its slopes at the two ends, float64."""
        u = t.double() * self.N
        k = u.floor().long().clamp(0, self.N - 1)
        _, log_alpha_bar, slopes = self._tables_on(t.device)
        return u - k, log_alpha_bar[k], log_alpha_bar[k + 1], slopes[k], slopes[k + 1]

    def discrete_times(self) -> Tensor:
        """t_k = (k + 1)/N: ascending, shape (N,), float64, on the CPU."""
        return torch.arange(1, self.N + 1, dtype=torch.float64) / self.N

    def chain_position(self, t: Tensor) -> Tensor:
        return t * (self.N / self.T) - 1

    def step_index(self, t: Tensor) -> Tensor:
        """Index k of the step with t in (t_{k-1}, t_k]; tolerates float32 rounding of times on the grid."""
        return ((t.double() - 2e-7) * self.N).ceil().long().sub(1).clamp(0, self.N - 1)

    def _discrete_beta(self, k: Tensor) -> Tensor:
        return self._tables_on(k.device)[0][k]

    def beta(self, t: Tensor) -> Tensor:
        """β(t) = -d log ᾱ/dt, continuous."""
        s, first, last, slope, next_slope = self._within_step(t)
        bend = 6 * s * (1 - s) * (last - first)
        derivative = bend + (1 - s) * (1 - 3 * s) * slope + s * (3 * s - 2) * next_slope
        return (-self.N * derivative).to(_floating(t))

    def log_alpha(self, t: Tensor) -> Tensor:
        s, first, last, slope, next_slope = self._within_step(t)
        straight = first + s.square() * (3 - 2 * s) * (last - first)
        bend = s * (1 - s) * ((1 - s) * slope - s * next_slope)
        return (0.5 * (straight + bend)).to(_floating(t))

    def __repr__(self) -> str:
        betas = self._discrete_beta(torch.arange(self.N))
        return f"DDPM(N={self.N}, betas={betas[0]:.3g}..{betas[-1]:.3g})"


def _monotonic_slopes(steps: Tensor) -> Tensor:
    """Slopes at the N + 1 ends of N unit steps with these negative changes, with which a cubic polynomial in
    each step is monotonic: harmonic means of both sides (Fritsch & Butland, 1984), and at either end that of
    the parabola, as far as it descends.
    """
    if len(steps) == 1:
        return steps.repeat(2)
    outer = (3 * steps[[0, -1]] - steps[[1, -2]]) / 2
    first, last = outer.maximum(3 * steps[[0, -1]]).clamp_max(0.0).split(1)
    return torch.cat([first, 2 * steps[1:] * steps[:-1] / (steps[1:] + steps[:-1]), last])


def _floating(t: Tensor) -> torch.dtype:
    """The dtype of what is computed from times: theirs, or the default one for whole numbers."""
    return t.dtype if t.is_floating_point() else torch.get_default_dtype()


def chain_times(sde: SDE) -> Tensor:
    """All times of an SDE's chain and t = 0, decreasing: the grid of its steps, float64, on the CPU."""
    times = sde.discrete_times()
    return torch.cat([times.new_zeros(1), times]).unique().flip(0)


def check_variance(variance: str) -> None:
    """Raises an InputError unless the name is one of `VARIANCES`."""
    check_name("variance", variance, VARIANCES)


def reverse_transition(
    sde: SDE,
    score: ScoreFunction,
    x_t: Tensor,
    s: Tensor,
    t: Tensor,
    variance: str = "small",
    clip: tuple[float, float] | None = None,
    last_variance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The reverse step p(x_s | x_t) = N(mean, Σ), one evaluation of the score.

    Args:
        sde: The SDE.
        score: The score function; for a learned variance one with `score_and_fraction`.
        x_t: States at t, shape (B, *shape).
        s: Times to reach, shape (B,).
        t: Later times, shape (B,).
        variance: "small", "large" or "learned".
        clip: Bounds of x̂_0, as (-1, 1) for images; None for none.
        last_variance: Variance that replaces β̃ where σ_s = 0 makes it 0, as a decoder p(x_0 | x_1) needs,
            shape (B,); None for 0.

    Returns:
        Mean, shape (B, *shape), and variance, shape (B, 1, ..., 1) or, if learned, (B, *shape); dtype of x_t.
    """
    if variance == "learned":
        value, fraction = score_and_fraction(score, x_t, t)
    else:
        value, fraction = score(x_t, t), None
    x_0 = denoised_from(sde, value, x_t, t)
    if clip is not None:
        x_0 = x_0.clamp(*clip)
    mean, small = sde.posterior(x_t, x_0, s, t)
    large = sde.transition(s, t)[1]
    if last_variance is not None:
        small = torch.where(sde.sigma(s) == 0, last_variance, small)
    if fraction is None:
        return mean, expand(large if variance == "large" else small, x_t)
    log_small, log_large = (expand(v.clamp_min(1e-30).log(), x_t) for v in (small, large))
    return mean, (fraction * log_large + (1 - fraction) * log_small).exp()
