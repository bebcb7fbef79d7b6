"""PSNR and SSIM against their definitions and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from score_diffusion.run.inference.image_quality import psnr, ssim


def pair(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images in [-1, 1] and noisy copies, float32."""
    rng = np.random.default_rng(0)
    x = np.cumsum(np.cumsum(rng.normal(size=shape), -1), -2)
    x = x / np.abs(x).max()
    y = (x + 0.1 * rng.normal(size=shape)).clip(-1, 1)
    return x.astype(np.float32), y.astype(np.float32)


def test_psnr_is_its_definition():
    x, y = pair(3, 1, 5, 6)
    for k, value in enumerate(psnr(x, y, 2.0)):
        error = sum((float(a) - float(b)) ** 2 for a, b in zip(x[k].flat, y[k].flat, strict=True)) / 30
        assert value == pytest.approx(10 * math.log10(4 / error), rel=1e-6)
    assert np.isinf(psnr(x, x, 2.0)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_torchmetrics(channels: int):
    peer = pytest.importorskip("torchmetrics.functional.image").structural_similarity_index_measure
    x, y = pair(4, channels, 24, 31)
    images = (torch.from_numpy(z).double() for z in (x, y))
    _, whole = peer(*images, data_range=2.0, reduction="none", return_full_image=True)
    inside = whole[..., 5:-5, 5:-5]  # its mean has windows beyond the border, too
    np.testing.assert_allclose(ssim(x, y, 2.0), inside.flatten(1).mean(1).numpy(), rtol=1e-6)


def test_ssim_of_small_images_is_that_of_the_largest_window():
    """8x8 pixels hold four windows of 7x7, each with its own weighted moments."""
    x, y = pair(2, 1, 8, 8)
    weights = np.exp(-0.5 * (np.arange(-3, 4) / 1.5) ** 2)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    for k in range(2):
        values = []
        for i in range(2):
            for j in range(2):
                a, b = (z[k, 0, i : i + 7, j : j + 7].astype(np.float64) for z in (x, y))
                m_a, m_b = (weights * a).sum(), (weights * b).sum()
                v_a, v_b = (weights * (a - m_a) ** 2).sum(), (weights * (b - m_b) ** 2).sum()
                c = (weights * (a - m_a) * (b - m_b)).sum()
                values.append(
                    (2 * m_a * m_b + 0.0004) * (2 * c + 0.0036)
                    / ((m_a**2 + m_b**2 + 0.0004) * (v_a + v_b + 0.0036))
                )  # fmt: skip
        assert ssim(x, y, 2.0)[k] == pytest.approx(np.mean(values), rel=1e-6)


def test_equal_images_have_ssim_one():
    x, _ = pair(2, 3, 12, 12)
    np.testing.assert_allclose(ssim(x, x, 2.0), 1, rtol=1e-12)
