"""Which samples a step takes, and everything random about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from score_diffusion.run.build import data_options
from score_diffusion.run.builders.training import build_trainer
from score_diffusion.run.config import apply_overrides, load_config
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.training.batches import Batch, BatchOrder, BatchSource, weighted_mean
from score_diffusion.run.training.loaders import make_loader
from score_diffusion.sde_lib import VPSDE, DrawnTimes, TrainingTimes, UniformTimes

CPU = torch.device("cpu")


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (10, 5), (3, 7)])
def test_every_epoch_holds_every_sample_once(n: int, batch_size: int):
    order = BatchOrder(n, batch_size, 0, CPU)
    drawn = torch.cat([order.indices(order.positions(step)) for step in range(3 * n)])
    epochs = drawn[: len(drawn) // n * n].reshape(-1, n)
    assert (epochs.sort(1).values == torch.arange(n)).all()
    assert not torch.equal(epochs[0], epochs[1])
    other = BatchOrder(n, batch_size, 0, CPU)  # a step without the steps before it
    assert torch.equal(other.indices(other.positions(5)), order.indices(order.positions(5)))


def source(mirror: bool = False, times: TrainingTimes | None = None, dropout: float = 0.0) -> BatchSource:
    """12 samples a step of 30 images, whose first pixel is their number and their label its last digit; they
    come with themselves as image conditions.
    """
    images = torch.arange(30)[:, None, None, None] + torch.arange(6).view(1, 1, 2, 3) / 10
    labels = torch.arange(30) % 10
    loader = make_loader(images, 12, 0, CPU)
    conditions = {"label": labels, "image": images}
    return BatchSource(loader, conditions, lambda x, u: x, times, (1, 2, 3), 0, CPU, mirror, dropout)


@pytest.mark.parametrize("times", [None, UniformTimes(VPSDE())], ids=["without times", "with times"])
def test_shares_of_a_draw_are_the_whole(times: TrainingTimes | None):
    batches = source(mirror=True, times=times, dropout=0.3)
    draw = batches.draw(5)
    whole, parts = batches.read(draw), [batches.read(draw.share(r, 4)) for r in range(4)]
    assert [len(part) for part in parts] == [3, 3, 3, 3]

    def check(get: Callable[[Batch], torch.Tensor]) -> None:
        assert torch.equal(torch.cat([get(part) for part in parts]), get(whole))

    check(lambda batch: batch.x_0)
    check(lambda batch: batch.conditions["label"])
    if times is None:
        assert whole.times is whole.noise is None and parts[0].times is parts[0].noise is None
    else:
        check(lambda batch: batch.noise)
        check(lambda batch: batch.times.t)
        assert parts[0].times.k is None


def test_every_sample_comes_with_its_label():
    batches = source(mirror=True)
    for step in range(6):
        batch = batches.read(batches.draw(step))
        number = batch.x_0.amin((1, 2, 3)).round().long()  # whether it is mirrored or not
        assert torch.equal(batch.conditions["label"], number % 10)
        assert torch.equal(batch.conditions["image"], batch.x_0)  # mirrored together
    held_out = batches.held_out(torch.zeros(4, 1, 2, 3), {"label": torch.tensor([3, 1, 4, 1, 5, 9])})
    assert held_out.conditions["label"].tolist() == [3, 1, 4, 1]


def test_a_share_of_the_samples_is_not_conditioned():
    """Of all kinds of conditions together, as often as asked, a function of the step."""
    batches, plain = source(dropout=0.3), source()
    steps, dropped = 300, 0
    for step in range(steps):
        batch, whole = batches.read(batches.draw(step)), plain.read(plain.draw(step))
        null = batch.conditions["label"] < 0
        assert torch.equal((batch.conditions["image"] == 0).all((1, 2, 3)), null)
        assert torch.equal(batch.conditions["label"][~null], whole.conditions["label"][~null])
        assert torch.equal(batch.x_0, whole.x_0)
        dropped += int(null.sum())
    n = 12 * steps
    assert abs(dropped - 0.3 * n) < 4 * (n * 0.3 * 0.7) ** 0.5
    again = source(dropout=0.3)
    assert torch.equal(again.draw(7).dropped, batches.draw(7).dropped)
    assert not torch.equal(again.draw(7).dropped, again.draw(8).dropped)


def test_data_without_labels_have_no_conditions():
    loader = make_loader(torch.zeros(30, 2), 12, 0, CPU)
    batches = BatchSource(loader, {}, lambda x, u: x, None, (2,), 0, CPU, dropout=0.5)
    assert (
        batches.read(batches.draw(0)).conditions == {} == batches.held_out(torch.zeros(3, 2), {}).conditions
    )


def test_held_out_times_and_noise_are_always_the_same():
    batches = source(times=UniformTimes(VPSDE()))
    first = batches.held_out(torch.zeros(5, 1, 2, 3), {})
    batches.draw(3)
    again = batches.held_out(torch.zeros(5, 1, 2, 3), {})
    assert torch.equal(first.noise, again.noise) and torch.equal(first.times.t, again.times.t)


def test_the_mean_of_losses_has_the_weights_of_their_times():
    losses, weights = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.5, 2.0, 0.5], dtype=torch.float64)
    assert weighted_mean(losses, None) == 3
    assert weighted_mean(losses, DrawnTimes(torch.zeros(3), weights)) == pytest.approx(7.5 / 3)


def test_flips_are_of_the_seed_and_the_step(tiny: str):
    """Half of the images, the same ones at the same step, and nothing else of the step changes."""
    config = apply_overrides(load_config(tiny), [("data.flip", "true"), ("training.batch_size", "64")])
    trainer = build_trainer(config, load_dataset(data_options(config.data)), CPU)
    batches = trainer.batches
    draws = [batches.draw(step) for step in (3, 3, 4)]
    plain = replace(draws[0], mirrored=None, u=torch.zeros_like(draws[0].u))
    once, again, other = (batches.read(replace(plain, mirrored=draw.mirrored)).x_0 for draw in draws)
    batch = batches.read(plain).x_0
    assert torch.equal(once, again) and not torch.equal(once, other)
    flipped = [torch.equal(a, b.flip(-1)) and not torch.equal(a, b) for a, b in zip(once, batch, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(once, batch, strict=True)]
    assert all(a or b for a, b in zip(flipped, kept, strict=True)) and 16 < sum(flipped) < 48
