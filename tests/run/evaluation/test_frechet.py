from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.frechet import Moments, distance_of_fits, frechet_distance
from tests.run.evaluation.gaussians import RNG, closed_form, random_covariance, with_moments


def test_frechet_distance_of_gaussians_is_the_closed_form():
    mean_a, mean_b, cov_a, cov_b = (
        RNG.normal(size=4),
        RNG.normal(size=4),
        random_covariance(4),
        random_covariance(4),
    )
    measured = frechet_distance(with_moments(mean_a, cov_a), with_moments(mean_b, cov_b, n=70))
    assert measured == pytest.approx(closed_form(mean_a, cov_a, mean_b, cov_b), rel=1e-9)


def test_moments_of_chunks_are_those_of_the_whole():
    x, y = RNG.normal(size=(70, 5)) + 100, RNG.normal(size=(60, 5)) * 3
    moments = Moments()
    for chunk in np.split(x, [1, 4, 40]):
        moments.add(chunk)
    np.testing.assert_allclose(moments.fit().mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.fit().covariance, np.cov(x.T), rtol=1e-10)
    others = Moments()
    others.add(y)
    assert distance_of_fits(moments.fit(), others.fit()) == pytest.approx(frechet_distance(x, y), rel=1e-10)


def test_frechet_distance_is_that_of_torchmetrics():
    torch = pytest.importorskip("torch")
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Same(torch.nn.Module):
        num_features = 6

        def forward(self, x):
            return x

    peer = fid.FrechetInceptionDistance(feature=Same()).set_dtype(torch.float64)
    a, b = RNG.normal(size=(300, 6)) @ random_covariance(6), RNG.normal(size=(200, 6)) + 0.3
    peer.update(torch.from_numpy(a), real=False)
    peer.update(torch.from_numpy(b), real=True)
    assert frechet_distance(a, b) == pytest.approx(peer.compute().item(), rel=1e-4)


def test_frechet_distance_of_commuting_and_singular_covariances():
    mean = np.zeros(3)
    a, b = with_moments(mean, np.diag([1.0, 4.0, 1.0])), with_moments(mean, np.diag([9.0, 1.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (2 - 1) ** 2, rel=1e-9)
    a[:, 2] = b[:, 2] = 0.5  # a pixel that never changes
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (2 - 1) ** 2, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match="one size"):
        frechet_distance(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(UserError, match="at least 2"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)))


def embedded(x: np.ndarray, dimension: int) -> np.ndarray:
    """The same set in more dimensions, turned by a reflection: all distances stay."""
    padded = np.concatenate([x, np.zeros((len(x), dimension - x.shape[1]))], axis=1)
    normal = np.random.default_rng(1).normal(size=dimension)
    return padded - 2 * np.outer(padded @ normal, normal) / (normal @ normal)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (30, 9), (600, 1300), (5, 1200)])
def test_frechet_distance_of_few_samples_of_many_dimensions(n: int, m: int):
    """From n x m matrices as from D x D ones: in 12 dimensions, and in 1500 that hold the same sets."""
    a, b = RNG.normal(size=(n, 12)) @ random_covariance(12), RNG.normal(size=(m, 12)) + 0.3
    expected = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) + ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected -= 2 * np.sqrt(np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real.clip(0)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(embedded(a, 1500), embedded(b, 1500)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_frechet_distance_of_large_images_needs_little_memory():
    """Of 256x256 colour images a D x D matrix takes 288 GiB."""
    a, b = (RNG.integers(0, 256, (count, 3, 256, 256), dtype=np.uint8) for count in (6, 8))
    tracemalloc.start()
    distance = frechet_distance(a, b)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    flat = [x.reshape(len(x), -1).astype(float) for x in (a, b)]
    centred = [x - x.mean(0) for x in flat]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / np.sqrt(5 * 7)
    traces = (centred[0] ** 2).sum() / 5 + (centred[1] ** 2).sum() / 7
    expected = ((flat[0].mean(0) - flat[1].mean(0)) ** 2).sum() + traces - 2 * cross
    assert distance == pytest.approx(expected, rel=1e-9)
    assert peak < 10 * (a.nbytes + b.nbytes) * 8
