"""Restarts of unused codes: what counts as use, which codes restart, and where they are then."""

from __future__ import annotations

import torch
from torch import Tensor

from score_diffusion.models import AutoencoderVQ
from score_diffusion.run.training.autoencoding import Autoencoding
from score_diffusion.run.training.batches import Batch
from score_diffusion.run.training.codebook import DECAY, LEAST_USE, NEW_USE, Restarts


def latents_of(vectors: Tensor) -> Tensor:
    """Vectors (N, D) as the latents (1, D, N, 1) of one image."""
    return vectors.T[None, :, :, None]


def test_use_is_the_averaged_share_of_the_vectors_in_units_of_equal_use():
    restarts = Restarts(4)
    restarts.usage.fill_(1.0)
    codes = torch.tensor([0, 0, 0, 1, 1, 2, 0, 0]).reshape(2, 2, 2)
    restarts.update([torch.zeros(4, 3)], torch.randn(2, 3, 2, 2), codes, None)
    use = 4 * torch.tensor([5, 2, 1, 0]) / 8
    torch.testing.assert_close(restarts.usage, DECAY + (1 - DECAY) * use)


def test_only_unused_codes_become_vectors_of_the_batch_in_the_averages_too():
    restarts, book, average = Restarts(5), torch.randn(5, 2), torch.randn(5, 2)
    restarts.usage.copy_(torch.tensor([1, 0.5, LEAST_USE / 2, 0.0, 2]))
    kept, kept_average, vectors = book[[0, 1, 4]].clone(), average[[0, 1, 4]].clone(), torch.randn(30, 2)
    restarts.update([book, average], latents_of(vectors), torch.zeros(1, 30, 1, dtype=torch.int64), None)
    assert torch.equal(book[[0, 1, 4]], kept) and torch.equal(average[[0, 1, 4]], kept_average)
    assert torch.equal(book[2:4], average[2:4])
    assert ((book[2:4, None] - vectors).abs().sum(-1).min(1).values == 0).all()
    torch.testing.assert_close(restarts.usage[2:4], torch.full((2,), NEW_USE))


def test_the_first_batch_sets_all_codes_and_an_unused_one_stays_for_a_hundred_steps():
    restarts, book = Restarts(3), torch.zeros(3, 2)
    codes = torch.zeros(1, 9, 1, dtype=torch.int64)
    restarts.update([book], latents_of(torch.ones(9, 2)), codes, None)
    assert torch.equal(book, torch.ones(3, 2))
    steps = 0
    while (book == 1).all():
        restarts.update([book], latents_of(torch.full((9, 2), 2.0)), codes, None)
        steps += 1
    assert 95 <= steps <= 105 and torch.equal(book, torch.tensor([[1.0, 1], [2, 2], [2, 2]]))


def test_vectors_that_are_not_finite_restart_nothing():
    restarts, book = Restarts(3), torch.zeros(3, 2)
    nan = torch.full((9, 2), float("nan"))
    restarts.update([book], latents_of(nan), torch.zeros(1, 9, 1, dtype=torch.int64), None)
    assert (book == 0).all()


def test_a_codebook_that_would_collapse_is_used():
    """Latents far from the initial codes: without restarts few codes are ever the nearest."""
    used = {}
    for codes in (0, 64):
        torch.manual_seed(0)
        model = AutoencoderVQ(1, 2, codebook_size=64, channels=8, multipliers=(1, 2))
        objective = Autoencoding(1.0, codes=codes)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        batch = Batch(torch.rand(16, 1, 8, 8) * 2 - 1, {}, None, None)
        for _ in range(40):
            optimizer.zero_grad()
            objective(model, batch).mean().backward()
            optimizer.step()
            objective.after_step([model], None)
        used[codes] = objective.figures(model, [batch])["codes_used"]
    assert used[0] < 0.3 and used[64] > 0.6, used
