"""The zoo of laws on which samplers are compared: exact mixtures, broad and narrow, isotropic and thin, near
and far, of 1 to 200 dimensions, some fitted to real images. No sampler is fitted to them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn import mixture as sklearn_mixture
from sklearn.datasets import load_digits, load_sample_images, make_moons
from torch import Tensor

from score_diffusion.sde_lib import GaussianMixture
from tests.problems import images, line, random_covariances, ring


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture() -> GaussianMixture:
    """64-D, 10 components: means from N(0, I), standard deviations 0.2 to 0.5."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(10, 64, generator=generator, dtype=torch.float64)
    deviations = 0.2 + 0.3 * torch.rand(10, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, deviations.square())


def _fitted(data: np.ndarray, components: int, shape: tuple[int, ...], floor: float) -> GaussianMixture:
    """A mixture with full covariances, fitted by EM to data of shape (n, D)."""
    model = sklearn_mixture.GaussianMixture(components, reg_covar=floor, random_state=0, max_iter=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stopping early is meant
        model.fit(data)
    means = torch.as_tensor(model.means_).reshape(components, *shape)
    return GaussianMixture(means, torch.as_tensor(model.covariances_), torch.as_tensor(model.weights_))


def _digit_images() -> np.ndarray:
    return load_digits().data / 8 - 1


def digits() -> GaussianMixture:
    """20 Gaussians fitted to the 8x8 digits."""
    return _fitted(_digit_images(), 20, (1, 8, 8), floor=1e-3)


def photographs() -> GaussianMixture:
    """10 Gaussians fitted to 3x8x8 patches of two photographs."""
    rows = np.random.default_rng(0)
    patches = []
    for image in load_sample_images().images:
        tops = rows.integers(0, image.shape[0] - 8, 2500)
        lefts = rows.integers(0, image.shape[1] - 8, 2500)
        patches += [
            image[i : i + 8, j : j + 8].transpose(2, 0, 1).ravel() for i, j in zip(tops, lefts, strict=True)
        ]
    return _fitted(np.stack(patches) / 127.5 - 1, 10, (3, 8, 8), floor=1e-4)


def stored_digits() -> GaussianMixture:
    """200 digits, each with noise of 0.05: what a network that has learned its data by heart draws."""
    kept = torch.as_tensor(_digit_images()[:200]).reshape(200, 1, 8, 8)
    return GaussianMixture(kept, torch.full((200,), 0.05**2))


def sheet() -> GaussianMixture:
    """48-D, 6 thin sheets: standard deviation 0.8 along 5 directions, 0.02 across."""
    variances = torch.full((6, 48), 0.02**2, dtype=torch.float64)
    variances[:, :5] = 0.8**2
    bases = torch.linalg.qr(_normal(1, 6, 48, 48))[0]
    return GaussianMixture(0.6 * _normal(2, 6, 48), bases @ torch.diag_embed(variances) @ bases.mT)


def far() -> GaussianMixture:
    """8-D, 12 narrow modes far apart: distances of about 12, standard deviation 0.05."""
    return GaussianMixture(3 * _normal(3, 12, 8), torch.full((12,), 0.05**2))


def far_plane() -> GaussianMixture:
    """2-D, 25 narrow modes on a lattice of spacing 2, standard deviation 0.03."""
    ticks = torch.arange(-2.0, 3.0)
    return GaussianMixture(2 * torch.cartesian_prod(ticks, ticks), torch.full((25,), 0.03**2))


def moons() -> GaussianMixture:
    """2-D, two half circles as 100 points with a standard deviation of 0.06."""
    points = torch.as_tensor(make_moons(100, noise=None)[0]) - torch.tensor([0.5, 0.25])
    return GaussianMixture(points, torch.full((100,), 0.06**2))


def spectrum() -> GaussianMixture:
    """200-D, 4 modes whose variances fall like 1/k², as those of images do."""
    variances = 4.0 / torch.arange(1.0, 201.0).square()
    return GaussianMixture(0.3 * _normal(4, 4, 200), variances.expand(4, 200))


def wide() -> GaussianMixture:
    """16-D, 3 modes of data that nobody scaled: standard deviations of about 2, means of about 4."""
    return GaussianMixture(4 * _normal(5, 3, 16), random_covariances(3, 16, 2.0, seed=6))


def small() -> GaussianMixture:
    """10-D, 5 modes of data in [0, 0.3]: standard deviation 0.03."""
    return GaussianMixture(0.3 * _uniform(7, 5, 10), torch.full((5,), 0.03**2))


def scales() -> GaussianMixture:
    """30-D, 8 modes, each with its own standard deviation from 0.02 to 1."""
    return GaussianMixture(1.2 * _normal(8, 8, 30), torch.logspace(-1.7, 0, 8).square())


def near() -> GaussianMixture:
    """100-D, 20 modes that overlap: means of 0.1, standard deviations of 0.1 to 0.6 per element."""
    return GaussianMixture(0.1 * _normal(9, 20, 100), (0.1 + 0.5 * _uniform(10, 20, 100)).square())


LAWS: dict[str, Callable[[], GaussianMixture]] = {
    "mixture": mixture,
    "ring": ring,
    "images": images,
    "digits": digits,
    "photographs": photographs,
    "stored digits": stored_digits,
    "sheet": sheet,
    "far": far,
    "far plane": far_plane,
    "moons": moons,
    "spectrum": spectrum,
    "wide": wide,
    "small": small,
    "scales": scales,
    "near": near,
    "line": line,
}
