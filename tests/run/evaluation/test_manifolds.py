from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.manifolds import expected_coverage, manifold_scores
from tests.run.evaluation.gaussians import RNG


def radius(x: np.ndarray, k: int) -> np.ndarray:
    return NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, k]


def test_scores_are_their_definitions():
    a, b = RNG.normal(size=(700, 3)), RNG.normal(size=(520, 3)) * 0.7 + 0.4
    apart = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    balls = apart < radius(b, 5)
    expected = {
        "precision": (apart <= radius(b, 3)).any(1).mean(),
        "recall": (apart <= radius(a, 3)[:, None]).any(0).mean(),
        "density": balls.sum(1).mean() / 5,
        "coverage": balls.any(0).mean(),
    }
    assert manifold_scores(a, b) == pytest.approx(expected, rel=1e-12)


def test_precision_and_recall_are_those_of_torch_fidelity():
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    torch = pytest.importorskip("torch")
    a, b = RNG.normal(size=(300, 4)), RNG.normal(size=(300, 4)) * 0.8
    peer = prc.prc_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), verbose=False)
    scores = manifold_scores(a, b)
    assert scores["precision"] == pytest.approx(peer["precision"], abs=1e-4)
    assert scores["recall"] == pytest.approx(peer["recall"], abs=1e-4)


@pytest.mark.parametrize(("n", "m"), [(100, 100), (60, 120)])
def test_the_density_of_the_same_law_is_1_and_its_coverage_as_expected(n: int, m: int):
    rng = np.random.default_rng(0)
    scores = [manifold_scores(rng.normal(size=(n, 2)), rng.normal(size=(m, 2))) for _ in range(200)]
    for name, expected in {"density": 1.0, "coverage": expected_coverage(n, m)}.items():
        values = [score[name] for score in scores]
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 3 * error < 0.02


def test_modes_that_are_missing_lower_recall_and_coverage_only():
    modes = np.array([[0.0, 0], [100, 0]])
    real = np.concatenate([mode + RNG.normal(size=(100, 2)) for mode in modes])
    scores = manifold_scores(RNG.normal(size=(200, 2)), real)
    assert scores["precision"] > 0.9 and scores["density"] > 0.8
    assert scores["recall"] < 0.55 and scores["coverage"] < 0.55


def test_sets_that_are_too_small_are_refused():
    with pytest.raises(UserError, match="more than 5"):
        manifold_scores(np.zeros((5, 2)), np.zeros((9, 2)))
