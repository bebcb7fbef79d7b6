"""Streams of random numbers: their law, and what they are a function of."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
import torch
from scipy import stats

from score_diffusion.samplers import make_sampler, uniform_grid
from score_diffusion.sde_lib import VPSDE, Gaussian, InputError, SampleNoise, generator_for


def draw(seed, *keys):
    return torch.rand(4, generator=generator_for(seed, *keys))


def test_the_stream_is_defined_by_a_hash_of_seed_and_keys():
    """A fixed rule: a run that is resumed by a later version draws the same numbers."""
    digest = blake2b(b"(3, 'step', 5)", digest_size=8).digest()
    expected = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    assert torch.equal(draw(3, "step", 5), torch.rand(4, generator=expected))
    base = int.from_bytes(blake2b(b"(3, 'sample')", digest_size=4).digest(), "big")
    for k in range(3):
        one = torch.Generator().manual_seed((base + 7 + k) % 2**32)
        expected = torch.randn(170, 3, generator=one)[:2]
        streams = SampleNoise(3, 7, (3, 3))
        assert torch.equal(torch.stack([streams.normal()[k], streams.normal()[k]]), expected)


@pytest.mark.parametrize("three", [np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)])
def test_integers_of_any_type_are_one_seed(three):
    assert torch.equal(draw(three, "epoch", three), draw(3, "epoch", 3))
    ours, theirs = SampleNoise(three, three, (2, 5)).normal(), SampleNoise(3, 3, (2, 5)).normal()
    assert torch.equal(ours, theirs)
    law, sampler = Gaussian(torch.zeros(2), torch.tensor(1.0)), make_sampler("pc", VPSDE(), 8)
    score = law.score(VPSDE())
    assert torch.equal(sampler(score, (2, 2), seed=three).samples, sampler(score, (2, 2), seed=3).samples)
    assert torch.equal(law.sample(3, seed=three), law.sample(3, seed=3))
    assert len(uniform_grid(VPSDE(), np.int64(3))) == 4
    assert sampler(score, np.array([2, 2]), seed=3).samples.shape == (2, 2)


def test_every_integer_has_its_own_stream():
    """Negative ones, and those from 2^64 on, which no generator takes as its seed, too."""
    seeds = [0, 1, -1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 2**64 + 1, -(2**64), 10**40]
    assert len({tuple(draw(seed).tolist()) for seed in seeds}) == len(seeds)
    noise = [SampleNoise(seed, 0, (1, 4)).normal() for seed in seeds]
    assert len({tuple(z[0].tolist()) for z in noise}) == len(seeds)
    assert torch.equal(draw(2**64), draw(2**64))


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (torch.Generator(), "must be an integer, got a torch.Generator: take generator.initial_seed"),
        (3.0, "must be an integer, got 3.0 of type float"),
        (np.float64(3), "must be an integer, got .*3.0.* of type float64"),
        (torch.tensor(3.0), "must be an integer"),
        ("3", "must be an integer, got '3' of type str"),
        (None, "must be an integer, got None"),
    ],
)
def test_other_seeds_are_refused(seed, message):
    calls = [lambda: SampleNoise(seed, 0, (1, 2)), lambda: SampleNoise(0, seed, (1, 2))]
    if not isinstance(seed, str):
        calls.append(lambda: generator_for(0, seed))
    for call in [*calls, lambda: generator_for(seed)]:
        with pytest.raises(InputError, match=message):
            call()


def test_noise_streams_are_normal_and_independent():
    streams = SampleNoise(0, 0, (400, 3))
    draws = torch.stack([streams.normal() for _ in range(20)])  # (20, 400, 3)
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(draws.permute(1, 0, 2).reshape(400, -1)[:40])
    assert (correlation - torch.eye(40)).abs().max() < 0.6


def test_a_sample_has_its_stream_in_every_batch():
    whole = SampleNoise(5, 0, (6, 3), purpose="probes")
    parts = [SampleNoise(5, first, (2, 3), purpose="probes") for first in (0, 2, 4)]
    for _ in range(200):  # beyond the block that is drawn at once
        assert torch.equal(whole.normal(), torch.cat([part.normal() for part in parts]))
    assert not torch.equal(
        SampleNoise(5, 0, (6, 3)).normal(), SampleNoise(5, 0, (6, 3), purpose="x").normal()
    )
