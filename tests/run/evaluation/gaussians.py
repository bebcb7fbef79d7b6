"""Gaussian samples whose distances are known."""

from __future__ import annotations

import numpy as np
import scipy.linalg

RNG = np.random.default_rng(0)


def with_moments(mean: np.ndarray, covariance: np.ndarray, n: int = 50) -> np.ndarray:
    """Samples whose empirical mean and covariance are exactly these."""
    x = RNG.normal(size=(n, len(mean)))
    x -= x.mean(0)
    whiten = scipy.linalg.inv(scipy.linalg.sqrtm(np.cov(x.T)).real)
    return x @ whiten @ scipy.linalg.sqrtm(covariance).real + mean


def random_covariance(dimension: int) -> np.ndarray:
    root = RNG.normal(size=(dimension, dimension))
    return root @ root.T + 0.1 * np.eye(dimension)


def closed_form(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """The squared Fréchet distance of two Gaussians."""
    cross = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * cross))
