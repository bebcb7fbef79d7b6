"""Coverage of central intervals: right for any law whose samples and truth are alike."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers.inverse import central_interval, interval_coverage


def draws(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).exp()


@pytest.mark.parametrize("n", [19, 50, 199])
def test_coverage_is_the_level_for_samples_of_the_truths_own_law(n):
    """For a skewed law, with as few samples as the level allows."""
    coverage = interval_coverage(draws(n, 20_000, seed=1), draws(20_000, seed=2), [0.5, 0.9])
    assert (coverage - torch.tensor([0.5, 0.9], dtype=torch.float64)).abs().max() < 0.012


def test_over_confident_and_over_dispersed_samples_show():
    samples, truth = draws(99, 5000, seed=1).log(), draws(5000, seed=2).log()
    narrow = interval_coverage(0.5 * samples, truth, [0.9])
    wide = interval_coverage(2 * samples, truth, [0.9])
    assert narrow < 0.65 and wide > 0.98


def test_nineteen_samples_span_ninety_percent():
    samples = draws(19, 7, seed=3)
    low, high = central_interval(samples, 0.9)
    torch.testing.assert_close(low, samples.amin(0))
    torch.testing.assert_close(high, samples.amax(0))


def test_known_pixels_are_inside_and_can_be_left_out():
    truth = torch.tensor([[1.0, 5.0], [2.0, 0.5]])
    samples = truth.expand(30, 2, 2).clone()
    samples[:, :, 1] = torch.linspace(0, 1, 30)[:, None]
    assert interval_coverage(samples, truth, [0.5]).item() == 0.75
    assert interval_coverage(samples, truth, [0.5], where=torch.tensor([False, True])).item() == 0.5


@pytest.mark.parametrize(
    ("samples", "truth", "options", "message"),
    [
        ((30, 4), (5,), {}, r"samples must have shape \(n, 5\)"),
        ((18, 4), (4,), {"levels": [0.9]}, "needs 19 samples or more, got 18"),
        ((30, 4), (4,), {"levels": [1.0]}, r"level must lie in \(0, 1\)"),
        ((30, 4), (4,), {"where": torch.zeros(4, dtype=torch.bool)}, "no element is counted"),
    ],
)
def test_what_does_not_fit_is_refused(samples, truth, options, message):
    with pytest.raises(ValueError, match=message):
        interval_coverage(torch.zeros(samples), torch.zeros(truth), **options)
