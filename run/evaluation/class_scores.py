"""Scores that use classes: an Inception-style score, and the accuracy of a classifier of samples, both ways.

    classifier score        exp E KL(p(y|x) ‖ p(y)): high where each sample is clearly of one class and all
                            classes occur; the Inception score where the classifier is the Inception network
    accuracy on samples     of a classifier that learned from real data: do samples show their class?
    accuracy from samples   of a classifier that learned from samples, on real data: do they teach it?

References:
    Improved Techniques for Training GANs (Salimans et al., 2016),
        https://arxiv.org/abs/1606.03498: the score.
    Classification Accuracy Score for Conditional Generative Models (Ravuri & Vinyals, 2019),
        https://arxiv.org/abs/1905.10887: accuracy from samples.
    How good is my GAN? (Shmelkov et al., 2018), https://arxiv.org/abs/1807.09499: both accuracies.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.special import xlogy

MOST_FITTED = 2000  # samples that a classifier learns from at most
MOST_DISTANCE = 0.1  # in total variation, of shares of classes that count as the same


def differing_class(labels: np.ndarray, reference: np.ndarray) -> tuple[int, float, float] | None:
    """The class whose share differs most, and its shares among samples and reference; None where all shares
    together differ by no more than chance explains.

    Args:
        labels: Of samples, whole numbers (n,).
        reference: Of reference samples, (m,).
    """
    count = 1 + int(max(labels.max(), reference.max()))
    shares, wanted = (np.bincount(x[x >= 0], minlength=count) / len(x) for x in (labels, reference))
    distance = np.abs(shares - wanted).sum() / 2
    if distance < MOST_DISTANCE + 0.5 * np.sqrt(count / min(len(labels), len(reference))):
        return None
    k = int(np.abs(shares - wanted).argmax())
    return k, float(shares[k]), float(wanted[k])


def classifier_score(probabilities: np.ndarray) -> float:
    """exp of the mean KL divergence of p(y|x), shape (n, K), from their mean; between 1 and K."""
    p = probabilities.astype(np.float64)
    mean = p.mean(0)
    divergence = xlogy(p, p).sum(1).mean() - xlogy(mean, mean).sum()
    return float(np.exp(divergence))


def transferred_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> float:
    """Accuracy on a test set of a logistic regression on standardized features.

    Args:
        train: Features that it learns from, shape (n, F), of which the first 2,000 are used.
        train_labels: Their classes, shape (n,), at least two different ones.
        test: Features that it is tested on, shape (m, F).
        test_labels: Their classes, shape (m,).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=100))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its accuracy has settled long before
        classifier.fit(train[:MOST_FITTED], train_labels[:MOST_FITTED])
    return float((classifier.predict(test) == test_labels).mean())
