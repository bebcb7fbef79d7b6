"""The small images of training batches: their law, and that they are a function of (seed, step)."""

from __future__ import annotations

import torch
from scipy.stats import kstest

from score_diffusion.run.data.low_resolution import blurred, shrink, with_noise
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.training.batches import BatchSource
from score_diffusion.run.training.loaders import make_loader
from score_diffusion.run.training.low_resolution import LowResolution

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (30, 1, 4, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def source(mirror: bool = False, dropout: float = 0.0, blur: float = 0.0) -> BatchSource:
    small = LowResolution(2, Scaling(levels=256), noise=0.6, blur=blur)
    loader = make_loader(IMAGES, 12, 0, CPU)
    labels = {"label": torch.arange(30)}
    return BatchSource(
        loader, labels, lambda x, u: x, None, (1, 4, 6), 0, CPU, mirror, dropout, low_resolution=small
    )


def test_levels_noise_and_blur_have_their_laws():
    draw = LowResolution(2, Scaling(levels=256), noise=0.6, blur=2.0).draw
    level, noise, width = draw((4000, 1, 4, 6), torch.Generator().manual_seed(0))
    assert kstest(level.numpy() / 0.6, "uniform").pvalue > 1e-3
    assert noise.shape == (4000, 1, 2, 3) and kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    blurs = width[width > 0]
    assert abs(len(blurs) / 4000 - 0.5) < 0.04 and kstest(blurs.numpy() / 2, "uniform").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([level, width]))[0, 1]) < 0.06


def test_small_images_are_those_of_the_samples_themselves():
    """Mirrored with them, blurred, then with noise; and not dropped with the label."""
    batches = source(mirror=True, dropout=0.5, blur=1.0)
    draw = batches.draw(3)
    batch = batches.read(draw)
    level, noise, width = draw.augmentation
    small = blurred(Scaling(levels=256).stored_to_model(shrink(batch.x_0, 2)), width, 1.0)
    assert torch.equal(batch.conditions["low_resolution"], with_noise(small, level, noise))
    assert torch.equal(batch.conditions["augmentation"], level)
    assert 0 < (batch.conditions["label"] == -1).sum() < 12


def test_a_step_has_the_same_small_images_in_shares_and_when_resumed():
    draw = source().draw(5)
    whole = source().read(draw).conditions
    parts = [source().read(draw.share(r, 4)).conditions for r in range(4)]
    for kind in ("low_resolution", "augmentation"):
        assert torch.equal(torch.cat([part[kind] for part in parts]), whole[kind])
    assert not torch.equal(source().draw(6).augmentation[0], draw.augmentation[0])


def test_held_out_small_images_are_always_the_same():
    a, b = (source().held_out(IMAGES[:7], {"label": torch.arange(9)}).conditions for _ in range(2))
    assert a.keys() == b.keys() == {"label", "low_resolution", "augmentation"}
    assert all(torch.equal(a[kind], b[kind]) and len(a[kind]) == 7 for kind in a)
