from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from score_diffusion.run.evaluation.class_scores import (
    classifier_score,
    differing_class,
    transferred_accuracy,
)
from tests.run.evaluation.gaussians import RNG


def test_the_classifier_score_is_the_number_of_classes_at_best():
    assert classifier_score(np.eye(4).repeat(5, axis=0)) == pytest.approx(4)
    assert classifier_score(np.full((20, 4), 0.25)) == pytest.approx(1)
    assert classifier_score(np.eye(4)[[0] * 20]) == pytest.approx(1)


def test_classes_in_other_shares_than_those_of_the_data():
    even, uneven = np.arange(200) % 2, (np.arange(200) % 10 == 0).astype(np.int64)
    assert differing_class(even, uneven) == (0, 0.5, 0.9)
    assert differing_class(even, 1 - even) is None and differing_class(uneven, uneven[:20]) is None
    assert differing_class(even[:4], uneven[:5]) is None  # too few to know


@pytest.mark.filterwarnings("ignore")  # of torchmetrics, that it will keep all features
@pytest.mark.slow
def test_the_classifier_score_is_that_of_torchmetrics():
    inception = pytest.importorskip("torchmetrics.image.inception")

    class Same(torch.nn.Module):
        num_features = 6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    logits = torch.from_numpy(3 * RNG.normal(size=(50, 6)))
    peer = inception.InceptionScore(feature=Same(), splits=1)
    peer.update(logits)
    assert classifier_score(logits.softmax(1).numpy()) == pytest.approx(peer.compute()[0].item(), rel=1e-4)


def test_the_accuracy_of_two_gaussians_is_that_of_the_best_classifier():
    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = RNG.integers(0, 2, n)
        return RNG.normal(size=(n, 3)) + labels[:, None] * np.array([2.0, 0, 0]), labels

    accuracy = transferred_accuracy(*draw(1000), *draw(4000))
    assert accuracy == pytest.approx(norm.cdf(1), abs=0.02)


def test_classes_that_do_not_show_in_the_samples_are_found_by_chance_only():
    labels = np.arange(600) % 3
    real = RNG.normal(size=(600, 2)) + 5 * np.eye(3)[labels][:, :2]
    assert transferred_accuracy(real, labels, real[::-1], labels[::-1]) > 0.97
    assert transferred_accuracy(real, labels, real, RNG.permutation(labels)) == pytest.approx(1 / 3, abs=0.06)
