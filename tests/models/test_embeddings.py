"""Noise embeddings against their formulas, in the dtypes and over the range in which they are used."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from score_diffusion.models import FourierEmbedding, SinusoidalEmbedding
from score_diffusion.models.embeddings import NoiseEmbedding

NOISE = torch.linspace(-14, 12, 53, dtype=torch.float64)


@pytest.mark.parametrize("dim", [4, 10, 64])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_sinusoidal_formula(dim: int, scale: float) -> None:
    half = dim // 2
    angles = scale * NOISE.numpy()[:, None] / 10_000.0 ** (np.arange(half) / (half - 1))
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(SinusoidalEmbedding(dim, scale)(NOISE).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("dim", [4, 64])
def test_adm_formula(dim: int) -> None:
    """The Transformer's frequencies, 10000^(-2i/dim) (Vaswani et al., 2017, Section 3.5)."""
    steps = np.arange(0, 1000, 37.0)
    angles = steps[:, None] / 10_000.0 ** (2 * np.arange(dim // 2) / dim)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    embedding = SinusoidalEmbedding(dim, scale=1.0, endpoint=False)
    np.testing.assert_allclose(embedding(torch.from_numpy(steps)).numpy(), expected, atol=1e-10)


def test_fourier_formula() -> None:
    embedding = FourierEmbedding(32)
    angles = 2 * np.pi * NOISE.numpy()[:, None] * embedding.frequencies.double().numpy()
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(embedding(NOISE).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("d", [0.1, 0.6, 1.5])
def test_fourier_features_correlate_as_documented(d: float) -> None:
    scale = 0.25
    a, b = FourierEmbedding(20_000, scale)(torch.tensor([1.0, 1.0 + d]))
    correlation = (a @ b / 10_000).item()  # sin² + cos² = 1 per frequency
    assert correlation == pytest.approx(math.exp(-((2 * math.pi * scale * d) ** 2) / 2), abs=0.03)


def test_fourier_frequencies_are_saved_but_not_trained() -> None:
    embedding = FourierEmbedding(32)
    assert not list(embedding.parameters())
    assert set(embedding.state_dict()) == {"frequencies"}
    assert not torch.equal(embedding.frequencies, FourierEmbedding(32).frequencies)


@pytest.mark.parametrize("cls", [SinusoidalEmbedding, FourierEmbedding])
def test_precision(cls: type) -> None:
    embedding = cls(32, scale=100.0)
    exact = embedding(NOISE)
    assert exact.dtype == torch.float64
    # Angles reach thousands of radians, of which float32 keeps seven digits.
    assert torch.allclose(embedding(NOISE.float()).double(), exact, atol=3e-3)
    # Half precision may round the input, but must not be used for the angles.
    rounded = NOISE.bfloat16()
    assert embedding(rounded).dtype == torch.float32
    assert torch.allclose(embedding(rounded).double(), embedding(rounded.double()), atol=3e-3)


def test_sinusoidal_survives_half_precision_weights() -> None:
    embedding = SinusoidalEmbedding(32)
    before = embedding(NOISE.float())
    assert torch.equal(embedding.half()(NOISE.float()), before)


@pytest.mark.parametrize("embedding", ["sinusoidal", "fourier"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_embedding_shape_and_dtype(embedding: str, dtype: torch.dtype) -> None:
    out = NoiseEmbedding(embedding, 16, 24).to(dtype)(NOISE.float())
    assert out.shape == (53, 24)
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_errors() -> None:
    with pytest.raises(ValueError, match="must be even and at least 4, got 7"):
        SinusoidalEmbedding(7)
    with pytest.raises(ValueError, match="must be even and at least 4, got 2"):
        SinusoidalEmbedding(2)
    with pytest.raises(ValueError, match="must be even and at least 2, got 0"):
        FourierEmbedding(0)
    with pytest.raises(ValueError, match="must be even and at least 2, got 5"):
        FourierEmbedding(5)
    for cls in (SinusoidalEmbedding, FourierEmbedding):
        for scale in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match="scale .* must be positive"):
                cls(8, scale)
    with pytest.raises(ValueError, match="one of sinusoidal, sinusoidal_adm, fourier, got 'rotary'"):
        NoiseEmbedding("rotary", 8, 8)
