"""Stochastic differential equations whose marginals are Gaussian perturbations of the data.

Every SDE here is described by the path it induces,

    x_t = α(t) x_0 + σ(t) ε,    ε ~ N(0, I),    t ∈ [0, T],  data at t = 0,

that is, by log α(t), σ(t) and the derivatives d log α/dt and dσ²/dt. The rest follows once, in the base
class:

    forward SDE          dx = f(t) x dt + g(t) dw,      f = d log α/dt,   g² = dσ²/dt - 2 f σ²
    transition           p(x_t | x_s) = N(α_{t|s} x_s, σ²_{t|s} I),
                         α_{t|s} = α_t/α_s,  σ²_{t|s} = σ_t² - α²_{t|s} σ_s²
    signal-to-noise      log SNR(t) = 2 log(α_t/σ_t)
    reverse SDE          dx = [f x - (1 + η²)/2 g² ∇log p_t(x)] dt + η g dw̄,   any stochasticity η ≥ 0
                         (η = 1: the reverse-time SDE; η = 0: the probability-flow ODE)

Method names, argument orders and return shapes are those of score_sde_pytorch's `sde_lib`, for any number of
data dimensions.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: eqs. 5-13, Sections 3.4 and 4.3, Appendices B-E.
    Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630: p(x_t | x_s).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
"""`score(x, t) -> ∇ log p_t(x)`: x of shape (B, *shape), t of shape (B,), the result like x."""


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Gives one number per sample the rank of the samples, in their dtype and on their device.

    Args:
        t: One number per sample, shape (B,).
        x: The samples, shape (B, *shape), floating point.

    Returns:
        t with shape (B, 1, ..., 1), ready to multiply x.

    Raises:
        InputError: If x is not a floating-point tensor with a batch dimension, or t is not of shape (B,).
    """
    if x.ndim < 1 or not x.is_floating_point():
        raise InputError(
            f"x must be a floating-point tensor of shape (B, *shape), got {tuple(x.shape)} of {x.dtype}; "
            "convert it with x.float()"
        )
    if t.shape != x.shape[:1]:
        raise InputError(
            f"t must have shape (B,) = ({len(x)},), one number per sample of x, got {tuple(t.shape)}; "
            "use t.expand(B) for a time that all samples share"
        )
    return t.to(x).reshape(-1, *(1,) * (x.ndim - 1))


class SDE(ABC):
    """A diffusion with Gaussian perturbation kernel N(α(t) x_0, σ(t)² I).

    A new SDE defines `log_alpha`, `sigma`, `dlog_alpha` and `dsigma2`; see docs/extending.md. These four, and
    all that is derived from them, take times of any shape and return tensors of that shape and dtype.

    Args:
        N: Number of discretization steps, at least 1.

    Raises:
        InputError: If N is not a positive integer.
    """

    T: float = 1.0
    """End time; t = 0 is data, t = T is the prior."""

    sampling_eps: float = 1e-3
    """The time at which samplers stop: below it the score's 1/σ makes steps stiff and changes no visible
    digit.
    """

    def __init__(self, N: int = 1000) -> None:
        if not isinstance(N, int) or N < 1:
            raise InputError(f"N must be a positive integer (a number of steps), got {N!r}")
        self.N = N

    # The path: what a subclass defines.

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log α(t), the logarithm of the signal's scale."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """σ(t), the standard deviation of the noise."""

    @abstractmethod
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """d log α/dt."""

    @abstractmethod
    def dsigma2(self, t: Tensor) -> Tensor:
        """dσ²/dt. The square is differentiated because dσ/dt is infinite at t = 0 for VP."""

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior p_T ≈ N(0, prior_std² I)."""
        return 1.0

    # What follows from the path.

    def alpha(self, t: Tensor) -> Tensor:
        """α(t), the scale of the signal."""
        return self.log_alpha(t).exp()

    def g2(self, t: Tensor) -> Tensor:
        """g(t)², the squared diffusion coefficient."""
        return self.dsigma2(t) - 2 * self.dlog_alpha(t) * self.sigma(t).square()

    def noise_level(self, t: Tensor) -> Tensor:
        """log(σ(t)/α(t)): the logarithm of the noise's standard deviation, the signal rescaled to 1."""
        return self.sigma(t).log() - self.log_alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """log SNR(t) = 2 log(α(t)/σ(t)), decreasing in t."""
        return -2 * self.noise_level(t)

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time t ∈ [0, T] at which log SNR(t) has the given value; values beyond the ends give the ends.

        Args:
            log_snr: Values of log SNR, any shape.

        Returns:
            Times in float64, same shape. By bisection, so that no SDE needs an inverse of its own.
        """
        target = log_snr.double()
        low, high = torch.zeros_like(target), torch.full_like(target, self.T)
        for _ in range(80):  # 2^-80 is below the spacing of float64 at any time of interest
            middle = (low + high) / 2
            too_early = self.log_snr(middle) > target
            low, high = torch.where(too_early, middle, low), torch.where(too_early, high, middle)
        return (low + high) / 2

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel p(x_t | x_s) = N(α_{t|s} x_s, σ²_{t|s} I) for s <= t.

        Args:
            s: Earlier times, any shape.
            t: Later times, same shape.

        Returns:
            (α_{t|s}, σ²_{t|s}) in float64: σ²_{t|s} is a small difference of two nearly equal numbers.
        """
        s, t = s.double(), t.double()
        alpha_ts = (self.log_alpha(t) - self.log_alpha(s)).exp()
        var_ts = self.sigma(t).square() - (alpha_ts * self.sigma(s)).square()
        return alpha_ts, var_ts.clamp_min(0.0)

    def posterior(self, x_t: Tensor, x_0: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """q(x_s | x_t, x_0), Bayes' rule on x_s ~ N(α_s x_0, σ_s² I) and x_t ~ N(α_{t|s} x_s, σ²_{t|s} I).

        DDPM's posterior (Ho et al., 2020, eqs. 6-7), for every SDE:

            mean = (α_{t|s} σ_s² x_t + α_s σ²_{t|s} x_0)/σ_t²,    variance = σ²_{t|s} σ_s²/σ_t².

        Args:
            x_t: States at t, shape (B, *shape).
            x_0: Data, or an estimate of them, shape (B, *shape).
            s: Times to reach, shape (B,).
            t: Later times, σ(t) > 0, shape (B,).

        Returns:
            The mean, shape (B, *shape), and the variance per dimension, shape (B,), float64.
        """
        s, t = s.double(), t.double()
        alpha_ts, var_ts = self.transition(s, t)
        var_s, var_t = self.sigma(s).square(), self.sigma(t).square()
        mean = expand(alpha_ts * var_s / var_t, x_t) * x_t + expand(self.alpha(s) * var_ts / var_t, x_t) * x_0
        return mean, var_ts * var_s / var_t

    # score_sde_pytorch's vocabulary.

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift f(t) x of shape (B, *shape) and diffusion g(t) of shape (B,), for x (B, *shape) and t (B,).

        Raises:
            InputError: If t does not have shape (B,).
        """
        drift = expand(self.dlog_alpha(t), x) * x
        return drift, self.g2(t).clamp_min(0.0).sqrt().to(x)

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean α(t) x of shape (B, *shape) and standard deviation σ(t) of shape (B,) of p(x_t | x_0 = x).

        Raises:
            InputError: If t does not have shape (B,).
        """
        return expand(self.alpha(t), x) * x, self.sigma(t).to(x)

    def prior_sampling(self, shape: Sequence[int]) -> Tensor:
        """Draws from the prior N(0, prior_std² I) with the global generator: float32, on the CPU."""
        return self.prior_std * torch.randn(*shape)

    def prior_logp(self, z: Tensor) -> Tensor:
        """log N(z; 0, prior_std² I) in nats, summed over the data dimensions: shape (B,)."""
        dimensions = z[0].numel()
        log_normalizer = dimensions * (math.log(self.prior_std) + 0.5 * math.log(2 * math.pi))
        return -0.5 * (z / self.prior_std).square().flatten(1).sum(1) - log_normalizer

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """One step of x_{i+1} = x_i + f_i(x_i) + G_i z_i: f of shape (B, *shape) and G of shape (B,).

        The base class takes the Euler-Maruyama step of length T/N.
        """
        dt = self.T / self.N
        drift, diffusion = self.sde(x, t)
        return drift * dt, diffusion * math.sqrt(dt)

    def discrete_times(self) -> Tensor:
        """The times of the discrete chain, k T/(N - 1) for k = 0..N-1: ascending, shape (N,), float64, on the
        CPU.
        """
        return self.T * torch.arange(self.N, dtype=torch.float64) / max(self.N - 1, 1)

    def chain_position(self, t: Tensor) -> Tensor:
        """Where t lies on the chain: k at the time t_k of `discrete_times`, linear in between, t's dtype."""
        return t * (max(self.N - 1, 1) / self.T)

    def step_index(self, t: Tensor) -> Tensor:
        """Index ⌊t (N - 1)/T⌋ of the discrete step at time t, forgiving the float32 rounding of times on the
        grid.
        """
        return (t * ((self.N - 1) / self.T) + 2e-7 * self.N).long().clamp(0, self.N - 1)

    def reverse(
        self, score_fn: ScoreFunction, probability_flow: bool = False, *, stochasticity: float = 1.0
    ) -> ReverseSDE:
        """The reverse-time SDE that the score drives.

        Args:
            score_fn: The score function `score(x, t)`.
            probability_flow: True for the probability-flow ODE; it is the same as `stochasticity=0`.
            stochasticity: η ≥ 0 in dx = [f x - (1 + η²)/2 g² score] dt + η g dw̄.

        Returns:
            An object with `N`, `T`, `sde(x, t)` and `discretize(x, t)`.

        Raises:
            InputError: If the stochasticity is negative.
        """
        return ReverseSDE(self, score_fn, 0.0 if probability_flow else stochasticity)

    def __repr__(self) -> str:
        numbers = ", ".join(f"{k}={v}" for k, v in vars(self).items())
        return f"{type(self).__name__}({numbers})"


class ReverseSDE:
    """dx = [f x - (1 + η²)/2 g² score(x, t)] dt + η g dw̄, run from t = T to t = 0.

    Marginals are those of the forward SDE for every η (Song et al., 2021, Appendix D.1, extended to a free
    noise level).

    Args:
        forward: The SDE to reverse.
        score_fn: The score function `score(x, t)`.
        stochasticity: η ≥ 0.

    Raises:
        InputError: If the stochasticity is negative.
    """

    def __init__(self, forward: SDE, score_fn: ScoreFunction, stochasticity: float = 1.0) -> None:
        if not stochasticity >= 0:
            raise InputError(
                f"stochasticity must be >= 0 (0: probability flow, 1: reverse SDE), got {stochasticity}"
            )
        self.forward = forward
        self.score_fn = score_fn
        self.stochasticity = float(stochasticity)
        self.N, self.T = forward.N, forward.T

    @property
    def probability_flow(self) -> bool:
        """True where no noise is added."""
        return self.stochasticity == 0

    def _reverse(self, x: Tensor, t: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        weight = (1 + self.stochasticity**2) / 2
        return f - weight * expand(g.square(), x) * self.score_fn(x, t), self.stochasticity * g

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift (B, *shape) and diffusion (B,) of the reverse SDE; the diffusion is zeros under probability
        flow.
        """
        return self._reverse(x, t, *self.forward.sde(x, t))

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """f (B, *shape) and G (B,) of the reversed discrete step x_i = x_{i+1} - f + G z (Song et al., 2021,
        eq. 46).
        """
        return self._reverse(x, t, *self.forward.discretize(x, t))


class VariancePreserving(SDE):
    """A path with α² + σ² = 1, dx = -½ β(t) x dt + √β(t) dw, and its chain x_k = √(1 - β_k) x_{k-1} + √β_k z.

    A subclass defines `beta`, `log_alpha` (= -½ ∫β) and `_discrete_beta`. The tables of the chain are
    float32, on the CPU.
    """

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """β(t), the rate at which variance is replaced."""

    @abstractmethod
    def _discrete_beta(self, k: Tensor) -> Tensor:
        """β_k in float64 for indices k of the chain, any shape."""

    def sigma(self, t: Tensor) -> Tensor:
        # 1 - exp(.) would lose every digit at small t in float32
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def dsigma2(self, t: Tensor) -> Tensor:
        return self.beta(t) * (2 * self.log_alpha(t)).exp()

    def _beta_table(self) -> Tensor:
        return self._discrete_beta(torch.arange(self.N))

    @property
    def discrete_betas(self) -> Tensor:
        """β_k, shape (N,)."""
        return self._beta_table().float()

    @property
    def alphas(self) -> Tensor:
        """1 - β_k, shape (N,)."""
        return (1 - self._beta_table()).float()

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ_k = Π_{j<=k} (1 - β_j), shape (N,)."""
        return (1 - self._beta_table()).cumprod(0).float()

    @property
    def sqrt_alphas_cumprod(self) -> Tensor:
        """√ᾱ_k, the mean's scale in DDPM, shape (N,)."""
        return (1 - self._beta_table()).cumprod(0).sqrt().float()

    @property
    def sqrt_1m_alphas_cumprod(self) -> Tensor:
        """√(1 - ᾱ_k), the standard deviation in DDPM, shape (N,)."""
        return (-torch.expm1(torch.log1p(-self._beta_table()).cumsum(0))).sqrt().float()

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """DDPM's step: f = √(1 - β_k) x - x and G = √β_k (Song et al., 2021, eq. 10).

        Raises:
            InputError: If t does not have shape (B,), or the SDE has no chain of N steps.
        """
        beta_k = self._discrete_beta(self.step_index(t))
        return expand(torch.sqrt(1 - beta_k) - 1, x) * x, beta_k.sqrt().to(x)


class VPSDE(VariancePreserving):
    """Variance-preserving SDE, dx = -½ β(t) x dt + √β(t) dw with β(t) = β_0 + t (β_1 - β_0) (Song et al.,
    2021, eq. 11).

    The continuous limit of DDPM: its chain has β_k = β(k/(N - 1))/N for k = 0..N-1 (Appendix C).

    Args:
        beta_min: β(0), at least 0.
        beta_max: β(1), above 0 and not below beta_min.
        N: Number of discretization steps.

    Raises:
        InputError: If 0 <= beta_min <= beta_max, 0 < beta_max does not hold.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, N: int = 1000) -> None:
        super().__init__(N)
        if not (0 <= beta_min <= beta_max and beta_max > 0):
            raise InputError(
                "VPSDE and SubVPSDE need 0 <= beta_min <= beta_max and beta_max > 0, "
                f"got beta_min={beta_min} and beta_max={beta_max}"
            )
        self.beta_0, self.beta_1 = float(beta_min), float(beta_max)

    def beta(self, t: Tensor) -> Tensor:
        """β(t), the rate at which variance is replaced."""
        return self.beta_0 + t * (self.beta_1 - self.beta_0)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t.square() * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def _discrete_beta(self, k: Tensor) -> Tensor:
        if self.beta_1 >= self.N:
            raise InputError(
                f"the discrete chain of VPSDE has betas of up to beta_max/N = {self.beta_1 / self.N:.3g}, "
                f"which must stay below 1: use N > {self.beta_1:g}, or a sampler, which discretizes with the "
                "exact transition at any number of steps"
            )
        return self.beta(k.double() / max(self.N - 1, 1)) / self.N


class SubVPSDE(VPSDE):
    """Sub-VP SDE, dx = -½ β(t) x dt + √(β(t) (1 - exp(-2∫β))) dw (Song et al., 2021, eq. 12).

    The mean of VP with σ = 1 - α², which never exceeds VP's. As in the paper it has no discrete chain of its
    own: `discretize` is the Euler-Maruyama step. The tables of DDPM's chain (`alphas`, ...) are those of its
    mean coefficient.

    Args:
        beta_min: β(0), at least 0.
        beta_max: β(1), above 0 and not below beta_min.
        N: Number of discretization steps.

    Raises:
        InputError: If 0 <= beta_min <= beta_max, 0 < beta_max does not hold.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def dsigma2(self, t: Tensor) -> Tensor:
        return 2 * self.sigma(t) * self.beta(t) * (2 * self.log_alpha(t)).exp()

    discretize = SDE.discretize


class VESDE(SDE):
    """Variance-exploding SDE, dx = σ(t) √(2 log(σ_max/σ_min)) dw, σ(t) = σ_min (σ_max/σ_min)^t (Song et al.,
    2021, eq. 9).

    The continuous limit of NCSN's geometric noise levels. As in the reference implementation σ(0) = σ_min,
    not 0.

    Args:
        sigma_min: σ(0), above 0.
        sigma_max: σ(1), above sigma_min.
        N: Number of discretization steps.

    Raises:
        InputError: If 0 < sigma_min < sigma_max does not hold.
    """

    sampling_eps = 1e-5

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, N: int = 1000) -> None:
        super().__init__(N)
        if not 0 < sigma_min < sigma_max:
            raise InputError(
                f"VESDE needs 0 < sigma_min < sigma_max, got sigma_min={sigma_min} and sigma_max={sigma_max}"
            )
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (t * self._log_ratio).exp()

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def dsigma2(self, t: Tensor) -> Tensor:
        return 2 * self._log_ratio * self.sigma(t).square()

    def _discrete_sigma(self, k: Tensor) -> Tensor:
        return self.sigma(self.T * k.double() / max(self.N - 1, 1))

    @property
    def discrete_sigmas(self) -> Tensor:
        """The N geometric noise levels, ascending, shape (N,), float32, on the CPU."""
        return self._discrete_sigma(torch.arange(self.N)).float()

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """NCSN's step: f = 0 and G = √(σ_k² - σ_{k-1}²) with σ_{-1} = 0 (Song et al., 2021, eq. 8).

        Raises:
            InputError: If t does not have shape (B,).
        """
        k = self.step_index(t)
        previous = torch.where(k > 0, self._discrete_sigma(k - 1), 0.0)
        G = (self._discrete_sigma(k).square() - previous.square()).sqrt()
        return expand(torch.zeros_like(G), x) * x, G.to(x)


subVPSDE = SubVPSDE  # the spelling of score_sde_pytorch
