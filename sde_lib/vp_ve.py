"""The three SDEs of Song et al. (2021), as score_sde_pytorch has them, and the discrete chains behind them.

    VPSDE       dx = -½ β(t) x dt + √β(t) dw                        α² + σ² = 1             DDPM's limit
    subVPSDE    dx = -½ β(t) x dt + √(β(t) (1 - exp(-2∫β))) dw      σ = 1 - α²
    VESDE       dx = σ(t) √(2 log(σ_max/σ_min)) dw                  α = 1, σ geometric      NCSN's limit

Reference:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: eqs. 8-12, Appendices B-D.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError
from score_diffusion.sde_lib.sde import SDE, as_times, expand, real_like


class Table:
    """An attribute of an SDE: a table of its chain, float32, on the CPU, computed when it is read.

    It can be assigned, as in `sde.alphas = sde.alphas.to(device)`; a table with other values then takes the
    place of the SDE's own in `discretize`.

    Args:
        compute: The table of an SDE, shape (N,), float64.
    """

    def __init__(self, compute: Callable[[Any], Tensor]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, sde: SDE | None, owner: type | None = None) -> Any:  # noqa: ANN401
        if sde is None:
            return self
        assigned = vars(sde).get(self._name)
        return self._compute(sde).float() if assigned is None else assigned[0]

    def __set__(self, sde: SDE, value: Tensor) -> None:
        try:
            own = self._compute(sde).float()
            is_own = torch.equal(torch.as_tensor(value).to(own), own)
        except InputError:  # an SDE without a chain of N steps
            is_own = False
        vars(sde)[self._name] = (value, is_own)

    def replacement(self, sde: SDE) -> Tensor | None:
        """The table that was assigned, if its values are not the SDE's own."""
        value, is_own = vars(sde).get(self._name, (None, True))
        return None if is_own else torch.as_tensor(value)


def _entries(table: Tensor, k: Tensor) -> Tensor:
    return table.to(k.device, torch.float64)[k]


class DecayingSDE(SDE, ABC):
    """An SDE with the drift -½ β(t) x, and the tables of the chain x_k = √(1 - β_k) x_{k-1} + √β_k z.

    A subclass defines `beta`, `log_alpha` (= -½ ∫β), `_discrete_beta`, `sigma` and `dsigma2`.
    """

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """β(t), twice the rate at which the signal decays."""

    @abstractmethod
    def _discrete_beta(self, k: Tensor) -> Tensor:
        """β_k in float64 for indices k of the chain, any shape."""

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def _betas(self) -> Tensor:
        return self._discrete_beta(torch.arange(self.N))

    @Table
    def discrete_betas(self) -> Tensor:
        """β_k, shape (N,)."""
        return self._betas()

    @Table
    def alphas(self) -> Tensor:
        """1 - β_k, shape (N,)."""
        return 1 - self._betas()

    @Table
    def alphas_cumprod(self) -> Tensor:
        """ᾱ_k = Π_{j<=k} (1 - β_j), shape (N,)."""
        return (1 - self._betas()).cumprod(0)

    @Table
    def sqrt_alphas_cumprod(self) -> Tensor:
        """√ᾱ_k, the mean's scale in DDPM, shape (N,)."""
        return (1 - self._betas()).cumprod(0).sqrt()

    @Table
    def sqrt_1m_alphas_cumprod(self) -> Tensor:
        """√(1 - ᾱ_k), the standard deviation in DDPM, shape (N,)."""
        return (-torch.expm1(torch.log1p(-self._betas()).cumsum(0))).sqrt()


class VariancePreserving(DecayingSDE):
    """An SDE with α² + σ² = 1: dx = -½ β(t) x dt + √β(t) dw."""

    def sigma(self, t: Tensor) -> Tensor:
        # 1 - exp(.) would lose every digit at small t in float32
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def dsigma2(self, t: Tensor) -> Tensor:
        return self.beta(t) * (2 * self.log_alpha(t)).exp()

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """DDPM's step: f = √(1 - β_k) x - x and G = √β_k (Song et al., 2021, eq. 10).

        Raises:
            InputError: If t has the wrong shape, or the SDE has no chain of N steps.
        """
        k = self.step_index(as_times(t, x))
        betas, alphas = (
            table.replacement(self) for table in (DecayingSDE.discrete_betas, DecayingSDE.alphas)
        )
        beta_k = self._discrete_beta(k) if betas is None else _entries(betas, k)
        alpha_k = 1 - beta_k if alphas is None else _entries(alphas, k)
        return expand(torch.sqrt(alpha_k) - 1, x) * x, real_like(beta_k.sqrt(), x)


class LinearBetaSDE(DecayingSDE):
    """β(t) = β_0 + t (β_1 - β_0), and the chain β_k = β(k T/(N - 1)) T/N for k = 0..N-1 (Song et al., 2021,
    Appendix C), which VP and sub-VP share.

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
                "VPSDE and subVPSDE need 0 <= beta_min <= beta_max and beta_max > 0, "
                f"got beta_min={beta_min} and beta_max={beta_max}"
            )
        self.beta_0, self.beta_1 = float(beta_min), float(beta_max)

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_0 + t * (self.beta_1 - self.beta_0)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t.square() * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def _discrete_beta(self, k: Tensor) -> Tensor:
        largest = self.beta(torch.tensor(self.T, dtype=torch.float64)).item() * self.T
        if largest >= self.N:
            raise InputError(
                f"the discrete chain has betas of up to β(T) T/N = {largest / self.N:.3g}, which must "
                f"stay below 1: use N > {largest:g}, or a sampler, which discretizes with the exact "
                "transition at any number of steps"
            )
        return self.beta(k.double() * (self.T / max(self.N - 1, 1))) * (self.T / self.N)


class VPSDE(LinearBetaSDE, VariancePreserving):
    """Variance-preserving SDE, dx = -½ β(t) x dt + √β(t) dw with β(t) = β_0 + t (β_1 - β_0) (Song et al.,
    2021, eq. 11). The continuous limit of DDPM. Arguments and errors are those of `LinearBetaSDE`.
    """


class subVPSDE(LinearBetaSDE):  # noqa: N801 - the name that code for score_sde_pytorch asks for
    """Sub-VP SDE, dx = -½ β(t) x dt + √(β(t) (1 - exp(-2∫β))) dw (Song et al., 2021, eq. 12).

    The mean of VP with σ = 1 - α², which never exceeds VP's; it is no `VPSDE`. As in the paper it has no
    discrete chain of its own: `discretize` is the Euler-Maruyama step. The tables of DDPM's chain (`alphas`,
    ...) are those of its mean coefficient.

    Arguments and errors are those of `LinearBetaSDE`.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def dsigma2(self, t: Tensor) -> Tensor:
        return 2 * self.sigma(t) * self.beta(t) * (2 * self.log_alpha(t)).exp()


SubVPSDE = subVPSDE


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

    @Table
    def discrete_sigmas(self) -> Tensor:
        """The N geometric noise levels, ascending, shape (N,)."""
        return self._discrete_sigma(torch.arange(self.N))

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """NCSN's step: f = 0 and G = √(σ_k² - σ_{k-1}²) with σ_{-1} = 0 (Song et al., 2021, eq. 8).

        Raises:
            InputError: If t has the wrong shape.
        """
        k = self.step_index(as_times(t, x))
        sigmas = VESDE.discrete_sigmas.replacement(self)
        level, before = (
            self._discrete_sigma(i) if sigmas is None else _entries(sigmas, i) for i in (k, k - 1)
        )
        G = (level.square() - torch.where(k > 0, before, 0.0).square()).sqrt()
        return expand(torch.zeros_like(G), x) * x, real_like(G, x)
