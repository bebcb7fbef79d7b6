"""Smaller images and conditioning augmentation against closed forms and SciPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.low_resolution import Augmentation, blurred, shrink, shrunk, with_noise
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.errors import UserError


def test_a_smaller_image_has_the_means_of_blocks():
    images = torch.randn(3, 2, 6, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shrink(images, 3), F.avg_pool2d(images, 3))
    levels = torch.tensor([[[[0, 1], [2, 4]]]], dtype=torch.uint8)  # of mean 1.75
    assert shrink(levels, 2).tolist() == [[[[2]]]] and shrink(levels, 2).dtype == torch.uint8
    volume = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(shrink(volume, 2), F.avg_pool3d(volume, 2))


def test_all_parts_of_a_data_set_are_made_smaller_streamed_or_not():
    whole = load_dataset(DataOptions(name="shapes", num_images=6))
    small = load_dataset(DataOptions(name="shapes", num_images=6, shrink=2))
    streamed = load_dataset(DataOptions(name="shapes", num_images=6, shrink=2, memory_gib=0))
    assert small.shape == streamed.shape == (3, 8, 8) and not isinstance(streamed.train, torch.Tensor)
    for part in ("train", "test"):
        rows = slice(0, 5)
        expected = shrink(getattr(whole, part)[rows], 2)
        assert torch.equal(getattr(small, part)[rows], expected)
        assert torch.equal(getattr(streamed, part)[rows], expected)


def test_sides_that_are_no_multiples_are_refused():
    digits = load_dataset(DataOptions())
    points = replace(digits, train=torch.zeros(4, 2), test=torch.zeros(4, 2))
    for dataset, factor in ((digits, 3), (points, 2)):
        with pytest.raises(UserError, match=f"data.shrink={factor} must divide the sides of images"):
            shrunk(dataset, factor)
    assert isinstance(shrunk(points, 1), Dataset)


def test_the_noise_of_augmentation_has_its_closed_form():
    """x_low = cos(πs/2) z + sin(πs/2) ε with ε independent between samples."""
    z = torch.randn(4, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([0.0, 1 / 3, 1 / 2, 1.0])
    noise = torch.randn(4, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    root = 0.5**0.5
    scales = torch.tensor([[1, 0], [0.75**0.5, 0.5], [root, root], [0, 1]])
    expected = scales[:, 0, None, None, None] * z + scales[:, 1, None, None, None] * noise
    torch.testing.assert_close(with_noise(z, level, noise), expected, rtol=0, atol=1e-6)
    given = {"low_resolution": torch.ones(500, 1, 4, 4)}
    made = Augmentation(1 / 3, 7)(given, range(500))
    values = made["low_resolution"].flatten(1).double()
    assert torch.equal(made["augmentation"], torch.full((500,), 1 / 3))
    assert abs(values.mean() - 0.75**0.5) < 5 * 0.5 / values.numel() ** 0.5
    deviation = (values.T.cov() - 0.25 * torch.eye(16)).abs().max()
    assert deviation < 5 * 0.25 * (2 / 500) ** 0.5


def test_the_noise_of_a_sample_is_its_own():
    given = {"low_resolution": torch.zeros(6, 1, 4, 4), "label": torch.arange(6)}
    whole = Augmentation(0.5, 3)(given, range(6))
    part = Augmentation(0.5, 3)({kind: rows[2:5] for kind, rows in given.items()}, range(2, 5))
    for kind in whole:
        assert torch.equal(whole[kind][2:5], part[kind])
    other = Augmentation(0.5, 4)(given, range(6))
    assert not torch.equal(other["low_resolution"], whole["low_resolution"])
    none = Augmentation(0.0, 3)(given, range(6))
    assert torch.equal(none["low_resolution"], given["low_resolution"])


def test_blur_is_that_of_scipy():
    images = torch.randn(3, 2, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    width = torch.tensor([0.0, 0.7, 1.0], dtype=torch.float64)
    out = blurred(images, width, 1.0)
    torch.testing.assert_close(out[0], images[0])
    for k in (1, 2):
        sigma = float(width[k])
        expected = gaussian_filter(images[k].numpy(), sigma, axes=(1, 2), mode="nearest", radius=3)
        np.testing.assert_allclose(out[k].numpy(), expected, atol=1e-12)
