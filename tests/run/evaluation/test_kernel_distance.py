from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch

from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.kernel_distance import kernel_distance
from tests.run.evaluation.gaussians import RNG


def test_kernel_distance_is_the_mean_over_pairs_of_different_samples():
    a, b = RNG.normal(size=(7, 2, 3)), RNG.normal(size=(5, 2, 3)) + 0.5

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x * y).sum() / 6 + 1) ** 3

    def within(s: np.ndarray) -> float:
        return np.mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])

    between = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(within(a) + within(b) - 2 * between, rel=1e-12)


def mmd_of_normals(mean_a: float, mean_b: float) -> float:
    """The squared MMD of N(m, 1) and N(m', 1): E (xy + 1)³ is a sum of products of moments."""
    moments = [np.array([1, m, m**2 + 1, m**3 + 3 * m]) for m in (mean_a, mean_b)]
    return float(sum(comb(3, k) * (moments[0][k] - moments[1][k]) ** 2 for k in range(4)))


@pytest.mark.parametrize("n", [4, 100])
def test_kernel_distance_is_unbiased_for_any_number_of_samples(n: int):
    rng = np.random.default_rng(0)
    measured = [
        kernel_distance(rng.normal(size=(n, 1)), rng.normal(0.5, size=(n, 1))) for _ in range(4000 // n * 10)
    ]
    error = np.std(measured) / np.sqrt(len(measured))
    assert abs(np.mean(measured) - mmd_of_normals(0, 0.5)) < 3 * error
    assert 3 * error < (3 if n == 4 else 0.5)


@pytest.mark.filterwarnings("ignore")  # of torchmetrics, that it will keep all features
def test_kernel_distance_is_that_of_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")

    class Same(torch.nn.Module):
        num_features = 6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    a, b = RNG.normal(size=(50, 6)), RNG.normal(size=(50, 6)) * 1.3
    peer = kid.KernelInceptionDistance(feature=Same(), subsets=1, subset_size=50).set_dtype(torch.float64)
    peer.update(torch.from_numpy(a), real=False)
    peer.update(torch.from_numpy(b), real=True)
    assert kernel_distance(a, b) == pytest.approx(peer.compute()[0].item(), rel=1e-4)


def test_one_sample_has_no_kernel_distance():
    with pytest.raises(UserError, match="at least 2"):
        kernel_distance(np.zeros((1, 2)), np.zeros((3, 2)))
