"""The zoo of exact problems: data laws with known score, the SDEs to push them along, and distances between
sample sets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from score_diffusion import sde_lib
from score_diffusion.samplers import Sampler
from score_diffusion.samplers.base import CountedScore
from score_diffusion.sde_lib import (
    DDPM,
    SDE,
    VESDE,
    VPSDE,
    DensitySolver,
    Gaussian,
    GaussianMixture,
    ReverseSDE,
    SubVPSDE,
    log_likelihood,
)

SDES: dict[str, SDE] = {
    "vp": VPSDE(),
    "sub-vp": SubVPSDE(),
    "ve": VESDE(),
}  # of the score SDE paper
ALL_SDES: dict[str, SDE] = SDES | {  # and every other one that sde_lib exports
    cls.__name__: cls()
    for cls in (getattr(sde_lib, name) for name in sde_lib.__all__)
    if isinstance(cls, type)
    and issubclass(cls, SDE)
    and cls not in (SDE, DDPM, ReverseSDE, *map(type, SDES.values()))
}


def random_covariances(count: int, dimensions: int, scale: float, seed: int) -> Tensor:
    """Full covariance matrices (count, D, D) with eigenvalues of about scale²."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, dimensions, dimensions, generator=generator, dtype=torch.float64)
    return scale**2 * (a @ a.mT / dimensions + 0.1 * torch.eye(dimensions, dtype=torch.float64))


def ring(radius: float = 4.0, std: float = 0.3) -> GaussianMixture:
    """Eight isotropic modes on a circle, in two dimensions."""
    angles = torch.arange(8) * (2 * math.pi / 8)
    return GaussianMixture(radius * torch.stack([angles.cos(), angles.sin()], 1), torch.full((8,), std**2))


def images() -> GaussianMixture:
    """1x8x8 images: ten components with full covariances and unequal weights."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(10, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    return GaussianMixture(means, random_covariances(10, 64, 0.3, seed=1), torch.arange(1.0, 11.0))


def line() -> GaussianMixture:
    """Three unequal modes in one dimension."""
    return GaussianMixture(
        torch.tensor([[-2.0], [0.5], [1.5]]), torch.tensor([0.2, 0.05, 0.5]), torch.tensor([0.2, 0.5, 0.3])
    )


def gaussian(dimensions: int = 2) -> Gaussian:
    """One Gaussian with a full covariance and a mean off the origin."""
    return Gaussian(torch.linspace(-1, 1, dimensions), random_covariances(1, dimensions, 0.7, seed=2)[0])


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 500) -> float:
    """Sliced 2-Wasserstein distance between two sample sets of one size, (n, *shape)."""
    generator = torch.Generator().manual_seed(0)
    a, b = a.double().flatten(1), b.double().flatten(1)
    v = torch.randn(a.shape[1], directions, generator=generator, dtype=torch.float64)
    v = v / v.norm(dim=0)
    return ((a @ v).sort(0).values - (b @ v).sort(0).values).square().mean().sqrt().item()


def sampling_floor(law: GaussianMixture, n: int, repeats: int = 5) -> float:
    """The mean distance between two true sample sets of size n."""
    pairs = [(law.sample(n, 2 * i), law.sample(n, 2 * i + 1)) for i in range(1, repeats + 1)]
    return sum(sliced_wasserstein(a, b) for a, b in pairs) / repeats


def distance_to_floor(samples: Tensor, law: GaussianMixture, sets: int = 30) -> float:
    """The sliced distance of samples to a law, in units of that of true samples: 1 for the law itself.

    Both are means over sets, because the floor of separate modes is mostly that of their counts.
    """
    parts = samples.chunk(sets)
    distances = [sliced_wasserstein(part, law.sample(len(part), 50 + i)) for i, part in enumerate(parts)]
    return sum(distances) / sets / sampling_floor(law, len(parts[0]), sets)


def density_errors(
    law: GaussianMixture, sde: SDE, x: Tensor, solver: DensitySolver, **options
) -> tuple[Tensor, Tensor]:
    """The error of a solver's log density of each sample, and its own estimate of it, in nats per
    dimension.

    The score is that of the law, the divergence exact unless the options say otherwise.
    """
    options = {"divergence": "exact", "prior_logp": law.marginal(sde, sde.T).log_prob} | options
    result = log_likelihood(sde, law.score(sde), x, solver=solver, eps=1e-5, **options)
    exact = law.log_prob_t(sde)(x, torch.full((len(x),), 1e-5, dtype=torch.float64))
    D = x[0].numel()
    return (result.log_prob - exact).abs() / D, result.solver_error / D


class GivenNoise:
    """Stands in for the samples' noise: hands out given tensors in turn."""

    def __init__(self, values):
        self.values = iter(values)

    def normal(self):
        return next(self.values)


def carry(sampler: Sampler, score, x: Tensor, noise=()) -> list[Tensor]:
    """The states at all times of a sampler's grid, from x at the first, with given noise and without final
    denoising.
    """
    states = [x]
    sampler.integrate(CountedScore(score, len(x)), x, GivenNoise(noise), states.append, lambda i, n: None)
    return states


class _Zeros:
    def __init__(self):
        self.draws = 0

    def normal(self):
        self.draws += 1
        return torch.zeros(1, 1)


def exact_moments(sampler: Sampler, law: Gaussian, score=None) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of a sampler's law at its last time from x_T ~ p_T, for Gaussian
    data, whose score makes it an affine map of x_T and its noise: read off by impulses, without Monte-Carlo
    noise. The score may be another affine function of x.
    """
    score, D = law.score(sampler.sde) if score is None else score, law.shape[0]
    count = _Zeros()
    sampler.integrate(CountedScore(score, 1), torch.zeros(1, D).double(), count, None, lambda i, n: None)
    mean, cov = moments(law.marginal(sampler.sde, sampler.times[0].item()))
    inputs = torch.zeros(1 + D * (1 + count.draws), 1 + count.draws, D, dtype=torch.float64)
    for j in range(1 + count.draws):
        inputs[1 + D * j : 1 + D * (j + 1), j] = torch.eye(D, dtype=torch.float64)
    out = carry(sampler, score, inputs[:, 0], inputs.unbind(1)[1:])[-1]
    responses = (out[1:] - out[0]).unflatten(0, (1 + count.draws, D)).mT  # (1 + draws, D, D)
    A, noise = responses[0], responses[1:]
    return A @ mean + out[0], A @ cov @ A.mT + torch.einsum("nij,nkj->ik", noise, noise)


def moments(law: Gaussian) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D)."""
    return law._means[0], law._bases[0] @ law._variances[0].diag() @ law._bases[0].mT


def observed_orders(errors: list[float]) -> list[float]:
    """log₂ of the ratio of each error to the next: the order of convergence where steps double."""
    return [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]


def _cumulative(law: GaussianMixture, x: Tensor) -> Tensor:
    """The cumulative distribution function of a law on the line."""
    z = (x - law._means[:, 0]) / law._variances[:, 0].sqrt()
    return (law._log_weights.exp() * torch.special.ndtr(z)).sum(-1, keepdim=True)


def flow(sde: SDE, law: GaussianMixture, x: Tensor, t: float, s: float) -> Tensor:
    """The probability flow from t to s: on the line it carries every quantile to the same quantile."""
    share, end = _cumulative(law.marginal(sde, t), x), law.marginal(sde, s)
    low, high = torch.full_like(x, -200.0), torch.full_like(x, 200.0)
    for _ in range(90):
        middle = (low + high) / 2
        below = _cumulative(end, middle) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


class Labelled:
    """A mixture whose components have classes: its exact score with and without a class.

    Args:
        law: The mixture.
        classes: The class of each component; each class has at least one.
    """

    def __init__(self, law: GaussianMixture, classes: list[int]) -> None:
        self.law, classes = law, torch.tensor(classes)
        rows = [torch.nonzero(classes == k)[:, 0] for k in range(int(classes.max()) + 1)]
        self.of_class = [
            law._like(
                law._log_weights[k].log_softmax(0),
                law._means[k],
                law._variances[k],
                None if law._bases is None else law._bases[k],
            )
            for k in rows
        ]
        self.log_shares = torch.stack([law._log_weights[k].logsumexp(0) for k in rows])

    def score(self, sde: SDE):
        """score(x, t, cond=None) with labels (B,) as a condition or under the name label; -1 for none."""
        return _LabelledScore([self.law.score(sde), *(law.score(sde) for law in self.of_class)])

    def logits(self, sde: SDE):
        """log p(y = k, x_t = x) as a function of x and t, (B, K)."""
        laws = [law.log_prob_t(sde) for law in self.of_class]
        return lambda x, t: torch.stack([law(x, t) for law in laws], 1) + self.log_shares.to(x)


class _LabelledScore:
    any_dtype = True

    def __init__(self, scores) -> None:
        self.scores, self.sizes = scores, []

    def __call__(self, x, t, cond=None):
        self.sizes.append(len(x))
        label = cond["label"] if isinstance(cond, dict) else cond
        label = torch.full((len(x),), -1) if label is None else label
        every = torch.stack([score(x, t) for score in self.scores])  # (1 + K, B, *shape)
        return every[label + 1, torch.arange(len(x))]


def labelled_ring() -> Labelled:
    """Eight modes on a circle: each class two neighbours."""
    return Labelled(ring(2.0), [0, 0, 1, 1, 2, 2, 3, 3])


def labelled_vectors() -> Labelled:
    """64 dimensions: six components with full covariances in two classes."""
    means = torch.randn(6, 64, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return Labelled(GaussianMixture(means, random_covariances(6, 64, 0.5, seed=5)), [0, 1] * 3)


def labelled_images() -> Labelled:
    """1x8x8 images: ten components in three classes."""
    return Labelled(images(), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
