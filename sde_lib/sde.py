"""Stochastic differential equations whose marginals are Gaussian perturbations of the data.

Every SDE here is described by the path it induces,

    x_t = α(t) x_0 + σ(t) ε,    ε ~ N(0, I),    t ∈ [0, T],  data at t = 0,

that is, by log α(t), σ(t) and the derivatives d log α/dt and dσ²/dt. The rest follows once, in the base
class:

    forward SDE          dx = f(t) x dt + g(t) dw,      f = d log α/dt,   g² = dσ²/dt - 2 f σ²
    transition           p(x_t | x_s) = N(α_{t|s} x_s, σ²_{t|s} I),
                         α_{t|s} = α_t/α_s,  σ²_{t|s} = σ_t² - α²_{t|s} σ_s²
    noise level          σ_t/α_t, the noise's standard deviation where the signal has scale 1 (EDM's σ);
                         log SNR(t) = -2 log(σ_t/α_t)
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
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
"""`score(x, t) -> ∇ log p_t(x)`: x of shape (B, *shape), t of shape (B,), the result like x."""

PATH = ("log_alpha", "sigma", "dlog_alpha", "dsigma2")


def as_times(t: Tensor | float, x: Tensor | None = None) -> Tensor:
    """Times as a tensor: a number becomes one of shape (), float64, on the device of x."""
    if isinstance(t, Tensor):
        return t
    return torch.as_tensor(t, dtype=torch.float64, device=None if x is None else x.device)


def each_time(t: Tensor | float, x: Tensor) -> Tensor:
    """Times of shape (B,), one per sample of x, from such times, from one for all, or from a number.

    Raises:
        InputError: If t has another shape.
    """
    t = as_times(t, x)
    _check_per_sample(t, x)
    return t.expand(len(x)) if t.numel() == 1 else t


def real_like(value: Tensor, x: Tensor) -> Tensor:
    """A real tensor on the device of x and in its dtype, or in that of its real part if x is complex."""
    return value.to(x.device, x.dtype.to_real())


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Gives one number per sample the rank of the samples, in their (real) dtype and on their device.

    Args:
        t: One number per sample, shape (B,), or one for all, shape () or (1,).
        x: The samples, shape (B, *shape), floating point or complex.

    Returns:
        t with shape (B, 1, ..., 1) or (1, 1, ..., 1), ready to multiply x.

    Raises:
        InputError: If x is not such a tensor with a batch dimension, or t has another shape.
    """
    if x.ndim < 1 or not (x.is_floating_point() or x.is_complex()):
        raise InputError(
            f"x must be a floating-point tensor of shape (B, *shape), got {tuple(x.shape)} of {x.dtype}; "
            "convert it with x.float()"
        )
    _check_per_sample(t, x)
    return real_like(t, x).reshape(-1, *(1,) * (x.ndim - 1))


def _check_per_sample(t: Tensor, x: Tensor) -> None:
    if t.ndim > 1 or t.numel() not in (1, len(x)):
        raise InputError(
            f"t must have shape (B,) = ({len(x)},), one number per sample of x, or shape () or (1,) for one "
            f"number that all share, got {tuple(t.shape)}"
        )


class SDE:
    """A diffusion with Gaussian perturbation kernel N(α(t) x_0, σ(t)² I).

    A new SDE defines `log_alpha`, `sigma`, `dlog_alpha` and `dsigma2`; see docs/extending.md. These four, and
    all that is derived from them, take times of any shape and return tensors of that shape and dtype.

    A subclass written for score_sde_pytorch, which defines `sde`, `marginal_prob` and the prior's two
    functions, is complete as well: the path is then read off these, at x = 1 (its drift must be linear).

    Args:
        N: Number of discretization steps, at least 1.

    Raises:
        InputError: If N is not a positive integer.
        TypeError: If a subclass defines neither its path nor `sde` and `marginal_prob`.
    """

    T: float = 1.0
    """End time; t = 0 is data, t = T is the prior."""

    sampling_eps: float = 1e-3
    """The time at which samplers stop: below it the score's 1/σ makes steps stiff and changes no visible
    digit.
    """

    def __init__(self, N: int = 1000) -> None:
        self._check_complete()
        try:
            self.N = operator.index(N)  # a Python integer of a NumPy one, too
        except TypeError:
            self.N = 0
        if self.N < 1 or isinstance(N, bool):
            raise InputError(f"N must be a positive integer (a number of steps), got {N!r}")

    def _check_complete(self) -> None:
        def defines(*names: str) -> bool:
            return all(getattr(type(self), name) is not getattr(SDE, name) for name in names)

        if not (defines(*PATH) or defines("sde", "marginal_prob")):
            raise TypeError(
                f"{type(self).__name__} must define {', '.join(PATH)}, or sde and marginal_prob as in "
                "score_sde_pytorch"
            )

    def __init_subclass__(cls) -> None:
        """A class that overrides `sde` and `marginal_prob` only must not inherit another path than theirs."""
        if {"sde", "marginal_prob"} <= vars(cls).keys() and not set(PATH) & vars(cls).keys():
            for name in PATH:
                setattr(cls, name, getattr(SDE, name))

    # The path: what a subclass defines, else what its `sde` and `marginal_prob` say.

    def log_alpha(self, t: Tensor) -> Tensor:
        """log α(t), the logarithm of the signal's scale."""
        return self._at_one(self.marginal_prob, t)[0].log()

    def sigma(self, t: Tensor) -> Tensor:
        """σ(t), the standard deviation of the noise."""
        return self._at_one(self.marginal_prob, t)[1]

    def dlog_alpha(self, t: Tensor) -> Tensor:
        """d log α/dt."""
        return self._at_one(self.sde, t)[0]

    def dsigma2(self, t: Tensor) -> Tensor:
        """dσ²/dt. The square is differentiated because dσ/dt is infinite at t = 0 for VP."""
        f, g = self._at_one(self.sde, t)
        return g.square() + 2 * f * self.sigma(t).square()

    @staticmethod
    def _at_one(
        method: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `sde` or `marginal_prob` returns at x = 1, each in the shape of t."""
        times = t.flatten()
        # Code for images expands times by [:, None, None, None], code for points by [:, None].
        for rank in (3, 1):
            x = torch.ones(len(times), *(1,) * rank, dtype=times.dtype, device=times.device)
            value, scale = method(x, times)
            if value.shape == x.shape:
                scale = torch.as_tensor(scale).to(times).expand(times.shape)
                return value.reshape(t.shape), scale.reshape(t.shape)
        raise InputError(f"{method.__qualname__} must return a tensor like x and one number per sample")

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior p_T ≈ N(0, prior_std² I)."""
        if type(self).prior_logp is SDE.prior_logp:
            return 1.0
        log_density = self.prior_logp(torch.zeros(1, 1, 1, 1, dtype=torch.float64)).item()
        return math.exp(-log_density) / math.sqrt(2 * math.pi)

    # What follows from the path.

    def alpha(self, t: Tensor) -> Tensor:
        """α(t), the scale of the signal."""
        return self.log_alpha(t).exp()

    def g2(self, t: Tensor) -> Tensor:
        """g(t)², the squared diffusion coefficient."""
        return self.dsigma2(t) - 2 * self.dlog_alpha(t) * self.sigma(t).square()

    def log_noise_level(self, t: Tensor) -> Tensor:
        """log(σ(t)/α(t)), the logarithm of the noise level, increasing in t."""
        return self.sigma(t).log() - self.log_alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """log SNR(t) = log(α(t)²/σ(t)²), decreasing in t."""
        return -2 * self.log_noise_level(t)

    def time_at_log_noise_level(self, log_noise_level: Tensor) -> Tensor:
        """The time t ∈ [0, T] at which log(σ(t)/α(t)) has a value; values beyond the ends give the ends.

        Args:
            log_noise_level: Values of log(σ/α), any shape.

        Returns:
            Times in float64, same shape. By bisection, so that no SDE needs its own inverse.
        """
        target = log_noise_level.double()
        low, high = torch.zeros_like(target), torch.full_like(target, self.T)
        for _ in range(80):  # 2^-80 is below the spacing of float64 at any time of interest
            middle = (low + high) / 2
            too_early = self.log_noise_level(middle) < target
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

    # score_sde_pytorch's vocabulary. Times are of shape (B,), (), (1,), or a number.

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift f(t) x of shape (B, *shape) and diffusion g(t) in the shape of t, for x (B, *shape).

        Raises:
            InputError: If t has another shape.
        """
        t = as_times(t, x)
        drift = expand(self.dlog_alpha(t), x) * x
        return drift, real_like(self.g2(t).clamp_min(0.0).sqrt(), x)

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean α(t) x of shape (B, *shape) and standard deviation σ(t) in the shape of t of p(x_t | x_0 = x).

        Where x is None, so is the mean.

        Raises:
            InputError: If t has another shape.
        """
        t = as_times(t, x)
        if x is None:
            return x, self.sigma(t)
        return expand(self.alpha(t), x) * x, real_like(self.sigma(t), x)

    def perturb(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = α(t) x_0 + σ(t) ε, shape (B, *shape), for x_0 and ε (B, *shape).

        Raises:
            InputError: If t has another shape than `marginal_prob` takes, or the noise than x_0.
        """
        if noise.shape != x_0.shape:
            raise InputError(
                f"noise must have the shape of x_0, {tuple(x_0.shape)}, got {tuple(noise.shape)}"
            )
        mean, std = self.marginal_prob(x_0, t)
        return mean + expand(std, x_0) * noise

    def prior_sampling(self, shape: Sequence[int]) -> Tensor:
        """Draws from the prior N(0, prior_std² I) with the global generator: float32, on the CPU."""
        return self.prior_std * torch.randn(*shape)

    def prior_logp(self, z: Tensor) -> Tensor:
        """log N(z; 0, prior_std² I) in nats, summed over the data dimensions: shape (B,).

        Raises:
            InputError: If z is complex.
        """
        if z.is_complex():
            raise InputError("the prior is a density of real numbers: give prior_logp torch.view_as_real(z)")
        dimensions = z[0].numel()
        log_normalizer = dimensions * (math.log(self.prior_std) + 0.5 * math.log(2 * math.pi))
        return -0.5 * (z / self.prior_std).square().flatten(1).sum(1) - log_normalizer

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """One step of x_{i+1} = x_i + f_i(x_i) + G_i z_i: f of shape (B, *shape) and G in the shape of t.

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
        """Index ⌊t (N - 1)/T⌋ of the discrete step at time t; tolerates the float32 rounding of times on the
        grid.
        """
        return (t * ((self.N - 1) / self.T) + 2e-7 * self.N).long().clamp(0, self.N - 1)

    def reverse(
        self, score_fn: ScoreFunction, probability_flow: bool = False, *, stochasticity: float = 1.0
    ) -> ReverseSDE:
        """The reverse-time SDE for a score.

        Args:
            score_fn: The score function `score(x, t)`.
            probability_flow: True for the probability-flow ODE; it is the same as `stochasticity=0`.
            stochasticity: η ≥ 0 in dx = [f x - (1 + η²)/2 g² score] dt + η g dw̄.

        Returns:
            An SDE of the same class, whose `sde(x, t)` and `discretize(x, t)` are those of the reverse.

        Raises:
            InputError: If the stochasticity is negative.
        """
        return ReverseSDE(self, score_fn, 0.0 if probability_flow else stochasticity)

    def __repr__(self) -> str:
        numbers = ((k, v) for k, v in vars(self).items() if isinstance(v, (int, float)))
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in numbers)})"


class ReverseSDE(SDE):
    """dx = [f x - (1 + η²)/2 g² score(x, t)] dt + η g dw̄, run from t = T to t = 0.

    Marginals are those of the forward SDE for every η (Song et al., 2021, Appendix D.1, extended to a free
    noise level). The object is an instance of the forward SDE's class too, with its attributes: all but `sde`
    and `discretize` is the forward SDE's.

    Args:
        forward: The SDE to reverse.
        score_fn: The score function `score(x, t)`.
        stochasticity: η ≥ 0.

    Raises:
        InputError: If the stochasticity is negative, or the SDE is a reverse SDE itself.
    """

    def __new__(cls, forward: SDE, score_fn: ScoreFunction, stochasticity: float = 1.0) -> ReverseSDE:
        if isinstance(forward, ReverseSDE):
            raise InputError("this SDE runs backwards already: reverse its attribute `forward`")
        return object.__new__(_reverse_class(type(forward)))

    def __init__(self, forward: SDE, score_fn: ScoreFunction, stochasticity: float = 1.0) -> None:
        if not stochasticity >= 0:
            raise InputError(
                f"stochasticity must be >= 0 (0: probability flow, 1: reverse SDE), got {stochasticity}"
            )
        vars(self).update(vars(forward))
        self.forward = forward
        self.score_fn = score_fn
        self.stochasticity = float(stochasticity)

    @property
    def probability_flow(self) -> bool:
        """True where no noise is added."""
        return self.stochasticity == 0

    def _reverse(self, x: Tensor, t: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        weight = (1 + self.stochasticity**2) / 2
        return f - weight * expand(g.square(), x) * self.score_fn(x, t), self.stochasticity * g

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift (B, *shape) and diffusion of the reverse SDE, which is zeros under probability flow."""
        return self._reverse(x, t, *self.forward.sde(x, t))

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """f (B, *shape) and G of the reversed discrete step x_i = x_{i+1} - f + G z (Song et al., 2021,
        eq. 46).
        """
        return self._reverse(x, t, *self.forward.discretize(x, t))

    # The path, which the base class may read off `sde`.

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return self.forward.dlog_alpha(t)

    def dsigma2(self, t: Tensor) -> Tensor:
        return self.forward.dsigma2(t)

    def __reduce__(self) -> tuple[object, ...]:
        return ReverseSDE, (self.forward, self.score_fn, self.stochasticity)

    def __repr__(self) -> str:
        return f"ReverseSDE({self.forward!r}, stochasticity={self.stochasticity})"


_REVERSE_CLASSES: dict[type, type[ReverseSDE]] = {}


def _reverse_class(forward: type[SDE]) -> type[ReverseSDE]:
    """The class of the reverse of an SDE, made once for each class of SDEs."""
    if forward not in _REVERSE_CLASSES:
        made = type(f"Reverse{forward.__name__}", (ReverseSDE, forward), {"__module__": __name__})
        _REVERSE_CLASSES[forward] = made
    return _REVERSE_CLASSES[forward]
