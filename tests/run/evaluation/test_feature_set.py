from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation import feature_set
from score_diffusion.run.evaluation.feature_set import (
    array_chunks,
    cached,
    collect,
    read_statistics,
    user_chunks,
)
from tests.run.evaluation.gaussians import RNG


class Doubled:
    words, digest, is_standard = "doubled values", "", False

    def __call__(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = 2 * samples.reshape(len(samples), -1)
        return values, values[:, :2]


def test_one_pass_keeps_moments_of_all_and_a_random_part_of_the_samples():
    samples, labels = RNG.normal(size=(500, 2, 3)), np.arange(500)
    seen: list[int] = []
    found = collect(np.split(samples, [1, 3, 300]), 500, Doubled(), 40, labels, seen.append)
    assert found.count == 500 and len(found) == 40 and seen == [1, 2, 297, 200]
    flat = 2 * samples.reshape(500, -1)
    np.testing.assert_allclose(found.fit.mean, flat.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.fit.covariance, np.cov(flat.T), rtol=1e-10)
    np.testing.assert_allclose(found.rows, flat[found.labels], rtol=1e-6)
    np.testing.assert_allclose(found.probabilities, flat[found.labels, :2], rtol=1e-6)
    assert len(set(found.labels)) == 40 and found.labels.max() > 300
    half = found.subset(np.arange(40) < 20)
    assert half.count == 20 and half.fit is None and (half.labels == found.labels[:20]).all()


def test_chunk_size_and_features_of_a_high_dimension_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    samples = RNG.normal(size=(30, 6)).astype(np.float32)
    whole = collect([samples], 30, Doubled(), 10)
    monkeypatch.setattr(feature_set, "CHUNK_BYTES", 100)
    monkeypatch.setattr(feature_set, "MOST_DIMENSIONS", 5)
    parts = collect(array_chunks(samples), 30, Doubled(), 10)
    np.testing.assert_array_equal(parts.rows, whole.rows)
    assert whole.fit is not None and parts.fit is None


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="by doubled values are not finite"):
        collect([np.full((2, 3), np.inf)], 2, Doubled(), 2)


def test_a_stream_gives_the_chunks_of_the_samples_in_memory(tmp_path: Path):
    np.save(tmp_path / "x.npy", RNG.integers(0, 256, (2500, 4, 6), np.uint8))
    parts = {}
    for memory_gib in (0, 1):
        dataset = load_dataset(DataOptions(path=str(tmp_path / "x.npy"), memory_gib=memory_gib, workers=3))
        assert isinstance(dataset.train, torch.Tensor) == bool(memory_gib)
        parts[memory_gib] = list(user_chunks(dataset.train, dataset.scaling))
    assert len(parts[0]) > 1
    np.testing.assert_array_equal(*(np.concatenate(part) for part in parts.values()))
    assert parts[0][0].shape[1:] == (1, 4, 6) and abs(parts[0][0]).max() <= 1


def test_a_cached_set_is_computed_once_and_again_if_the_file_is_damaged(tmp_path: Path):
    path, made = tmp_path / "folder" / "digest.npz", []

    def make() -> feature_set.FeatureSet:
        made.append(1)
        return collect([np.arange(12.0).reshape(4, 3)], 4, Doubled(), 3, np.arange(4))

    first, second = cached(path, make), cached(path, make)
    assert len(made) == 1
    for name in ("rows", "labels", "probabilities"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(first.fit.covariance, second.fit.covariance)
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(cached(path, make).rows, first.rows)
    assert len(made) == 2


def test_the_usual_file_of_fid_statistics_is_read(tmp_path: Path):
    mean, covariance = RNG.normal(size=4), np.eye(4)
    np.savez(tmp_path / "fid.npz", mu=mean, sigma=covariance)
    found = read_statistics(tmp_path / "fid.npz")
    assert not len(found) and found.rows.shape[1] == 4
    np.testing.assert_array_equal(found.fit.mean, mean)
    for arrays, message in (
        ({"mu": mean}, "sigma"),
        ({"mu": mean, "sigma": np.eye(3)}, "must hold finite"),
        ({"mu": mean * np.nan, "sigma": covariance}, "must hold finite"),
    ):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(UserError, match=message):
            read_statistics(tmp_path / "bad.npz")
    with pytest.raises(UserError, match="does not exist"):
        read_statistics(tmp_path / "none.npz")


def test_numbers_are_in_the_units_of_the_user():
    stored = torch.tensor([[0.0, 1.0]])
    (chunk,) = user_chunks(stored, Scaling(None, (1.0, 2.0), (1.0, 100.0)))
    np.testing.assert_allclose(chunk, [[1.0, 102.0]])
