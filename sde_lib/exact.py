"""Data laws whose score is known in closed form at every noise level: the oracle of the tests and of the
benchmarks.

A mixture Σ_k w_k N(m_k, Σ_k) pushed along x_t = α x_0 + σ ε stays a mixture, with means α m_k and covariances
C_k = α² Σ_k + σ² I. With Σ_k = U_k Λ_k U_kᵀ its inverse at every t is U_k (α² Λ_k + σ²)⁻¹ U_kᵀ, and

    r_k(x)          = softmax_k(log w_k + log N(x; α m_k, C_k))           responsibilities, in log-space
    ∇ log p_t(x)    = -Σ_k r_k C_k⁻¹ (x - α m_k)
    E[x_0 | x_t=x]  =  Σ_k r_k (m_k + α Σ_k C_k⁻¹ (x - α m_k))

Everything is computed in float64 and returned in the dtype of x.

Reference:
    Pattern Recognition and Machine Learning (Bishop, 2006), Section 2.3: conditional and marginal Gaussians,
    mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError
from score_diffusion.sde_lib.random_streams import generator_for
from score_diffusion.sde_lib.sde import SDE, ScoreFunction, each_time


class GaussianMixture:
    """A mixture of K Gaussians over tensors of any shape.

    Args:
        means: Means m_k, shape (K, *shape).
        covariances: Shape (K,) for isotropic variances, (K, *shape) for variances per element, or (K, D, D)
            for full covariances over the D flattened elements. Zero variances are allowed (point masses)
            wherever σ(t) > 0. Where shape is (D, D) itself, a tensor of shape (K, D, D) is read as variances
            per element.
        weights: Positive weights w_k, shape (K,), normalized here; None for equal ones.

    Raises:
        InputError: If shapes disagree, a weight is not positive, or a covariance is not symmetric positive
            semi-definite.
    """

    def __init__(self, means: Tensor, covariances: Tensor, weights: Tensor | None = None) -> None:
        means = torch.as_tensor(means).double()
        covariances = torch.as_tensor(covariances).double()
        if means.ndim < 2:
            raise InputError(f"means must have shape (K, *shape), got {tuple(means.shape)}")
        K, self.shape = len(means), means.shape[1:]
        weights = torch.ones(K) if weights is None else torch.as_tensor(weights)
        if weights.shape != (K,) or not (weights > 0).all():
            raise InputError(f"weights must be {K} positive numbers, one per mean, got {weights.tolist()}")
        self._log_weights = (weights.double() / weights.double().sum()).log()  # (K,)
        self._means = means.flatten(1)  # (K, D)
        # Λ, shape (K, D), and U, shape (K, D, D), or None for the identity
        self._variances, self._bases = self._decompose(covariances)
        if not (self._variances >= 0).all():
            raise InputError(
                f"covariances must be positive semi-definite, got a variance of {self._variances.min():.3g}"
            )

    def _decompose(self, covariances: Tensor) -> tuple[Tensor, Tensor | None]:
        K, D = self._means.shape
        if covariances.shape == (K,):
            return covariances[:, None].expand(K, D), None
        if covariances.shape == (K, *self.shape):
            return covariances.flatten(1), None
        if covariances.shape != (K, D, D):
            raise InputError(
                f"covariances must have shape ({K},), {(K, *self.shape)} or {(K, D, D)} for means of shape "
                f"{(K, *self.shape)}, got {tuple(covariances.shape)}"
            )
        if not torch.allclose(covariances, covariances.mT):
            raise InputError("covariances must be symmetric, got a matrix that differs from its transpose")
        variances, bases = torch.linalg.eigh(covariances)
        # eigh returns tiny negative values for singular matrices
        rounding = 1e-12 * variances.amax(-1, keepdim=True)
        return torch.where(variances.abs() <= rounding, 0.0, variances), bases

    # Coordinates in which every component is diagonal: (B, D) -> (B, K, D) and back.

    def _to_bases(self, deviations: Tensor) -> Tensor:
        if self._bases is None:
            return deviations
        return torch.einsum("kij,bki->bkj", self._bases.to(deviations.device), deviations)

    def _from_bases(self, coordinates: Tensor) -> Tensor:
        if self._bases is None:
            return coordinates
        return torch.einsum("kij,bkj->bki", self._bases.to(coordinates.device), coordinates)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log joint density (B, K), and deviations y (B, K, D) and variances (B, K, D) in the components'
        bases.
        """
        if x.shape[1:] != self.shape:
            raise InputError(
                f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )
        alpha, sigma = (c.to(x.device, torch.float64)[:, None, None] for c in (alpha, sigma))  # (B, 1, 1)
        flat = x.double().flatten(1)[:, None]  # (B, 1, D)
        y = self._to_bases(flat - alpha * self._means.to(x.device))  # (B, K, D)
        variances = alpha.square() * self._variances.to(x.device) + sigma.square()  # (B, K, D)
        log_density = -0.5 * (y.square() / variances + variances.log() + math.log(2 * math.pi)).sum(-1)
        return self._log_weights.to(x.device) + log_density, y, variances

    # The law itself.

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n independent samples, shape (n, *shape), float64."""
        generator = generator_for(seed, "GaussianMixture")
        k = torch.multinomial(self._log_weights.exp(), n, replacement=True, generator=generator)  # (n,)
        z = torch.randn(n, self._means.shape[1], dtype=torch.float64, generator=generator)
        z = z * self._variances[k].sqrt()
        if self._bases is not None:
            z = torch.einsum("nij,nj->ni", self._bases[k], z)
        return (self._means[k] + z).reshape(n, *self.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p_0(x) in nats, shape (B,), for x of shape (B, *shape)."""
        one = x.new_ones(len(x))
        return self._components(x, one, 0 * one)[0].logsumexp(1).to(x.dtype)

    def marginal(self, sde: SDE, t: float) -> GaussianMixture:
        """The law p_t of x_t, a mixture again."""
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = sde.alpha(time), sde.sigma(time)
        variances = alpha.square() * self._variances + sigma.square()
        return self._like(self._log_weights, alpha * self._means, variances, self._bases)

    def posterior(self, A: Tensor, y: Tensor, sigma_y: float) -> GaussianMixture:
        """The law of x_0 given a measurement y = A x_0 + σ_y z, z ~ N(0, I): a mixture again.

        With S_k = A Σ_k Aᵀ + σ_y² I and the gain G_k = Σ_k Aᵀ S_k⁻¹ (Bishop, 2006, eqs. 2.116-2.117):

            weights ∝ w_k N(y; A m_k, S_k),    means m_k + G_k (y - A m_k),
            covariances (I - G_k A) Σ_k (I - G_k A)ᵀ + σ_y² G_k G_kᵀ

        Args:
            A: Matrix over the flattened x_0, shape (M, D).
            y: The measurement, M numbers in any shape.
            sigma_y: Standard deviation of the noise, at least 0.

        Returns:
            The posterior, a mixture of as many components.

        Raises:
            InputError: If shapes disagree, sigma_y is negative, or a noiseless measurement is certain before
                it is made, so that it has no density.
        """
        A, y = A.double(), y.double().flatten()
        M, D = len(y), self._means.shape[1]
        if A.shape != (M, D) or not sigma_y >= 0:
            raise InputError(
                f"A must be a matrix of shape {(M, D)} for {M} measured numbers, and sigma_y >= 0, got "
                f"{tuple(A.shape)} and {sigma_y}"
            )
        bases = torch.eye(D, dtype=torch.float64) if self._bases is None else self._bases
        covariances = (bases * self._variances[:, None]) @ bases.mT  # (K, D, D)
        S = A @ covariances @ A.T + sigma_y**2 * torch.eye(M, dtype=torch.float64)  # (K, M, M)
        factors, failed = torch.linalg.cholesky_ex(S)
        if failed.any():
            raise InputError(
                "A x_0 has a singular covariance, part of the measurement is certain before it is made: set "
                "sigma_y > 0"
            )
        residual = y - self._means @ A.T  # (K, M)
        gain = torch.cholesky_solve(A @ covariances, factors).mT  # (K, D, M)
        predicted = torch.distributions.MultivariateNormal(0 * residual, scale_tril=factors)
        keep = torch.eye(D, dtype=torch.float64) - gain @ A  # (K, D, D)
        covariances = keep @ covariances @ keep.mT + sigma_y**2 * gain @ gain.mT
        variances, bases = torch.linalg.eigh(covariances)
        means = self._means + (gain @ residual[..., None])[..., 0]
        log_weights = (self._log_weights + predicted.log_prob(residual)).log_softmax(0)
        return self._like(log_weights, means, variances.clamp_min(0.0), bases)

    def _like(
        self, log_weights: Tensor, means: Tensor, variances: Tensor, bases: Tensor | None
    ) -> GaussianMixture:
        """Another mixture over the same shape, by its components."""
        law = object.__new__(GaussianMixture)
        law.shape, law._log_weights, law._means = self.shape, log_weights, means
        law._variances, law._bases = variances, bases
        return law

    # Functions of (x, t), t of shape (B,), a time of its own for every sample.

    def log_prob_t(self, sde: SDE) -> FunctionOfTime:
        """log p_t(x) in nats as a function of x (B, *shape) and t (B,), shape (B,)."""
        return FunctionOfTime(sde, lambda *at: self._components(*at)[0].logsumexp(1))

    def score(self, sde: SDE) -> ScoreFunction:
        """The score ∇ log p_t(x) as a function of x (B, *shape) and t (B,)."""
        return FunctionOfTime(sde, self._score)

    def denoiser(self, sde: SDE) -> FunctionOfTime:
        """The posterior mean E[x_0 | x_t = x] as a function of x (B, *shape) and t (B,)."""
        return FunctionOfTime(sde, self._denoised)

    def _score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        log_joint, y, variances = self._components(x, alpha, sigma)
        r = log_joint.softmax(1)[..., None]  # (B, K, 1)
        return -(r * self._from_bases(y / variances)).sum(1).reshape(x.shape)

    def _denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        log_joint, y, variances = self._components(x, alpha, sigma)
        r = log_joint.softmax(1)[..., None]  # (B, K, 1)
        gain = alpha.to(x.device)[:, None, None] * self._variances.to(x.device) / variances  # (B, K, D)
        means = self._means.to(x.device) + self._from_bases(gain * y)
        return (r * means).sum(1).reshape(x.shape)


class FunctionOfTime:
    """A function of (x, α(t), σ(t)) as a function of (x, t): computed in float64, returned in the dtype of x.

    Args:
        sde: The SDE.
        value: The function, of x (B, *shape), α and σ (B,), float64.
    """

    any_dtype = True

    def __init__(self, sde: SDE, value: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self._sde, self._value = sde, value

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        t = each_time(t, x).double()
        return self._value(x, self._sde.alpha(t), self._sde.sigma(t)).to(x.dtype)


class Gaussian(GaussianMixture):
    """One Gaussian N(mean, covariance): the mixture with a single component.

    Args:
        mean: Shape (*shape).
        covariance: A variance (), variances (*shape), or a full covariance (D, D).

    Raises:
        InputError: As for GaussianMixture.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(torch.as_tensor(mean)[None], torch.as_tensor(covariance)[None])
