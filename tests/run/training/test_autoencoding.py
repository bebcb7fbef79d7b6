"""The objective of autoencoders against its formula, and what each of its parts moves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.models import AutoencoderKL, AutoencoderVQ, Classifier, PatchDiscriminator
from score_diffusion.run.training.autoencoding import (
    Adversary,
    Autoencoding,
    FeatureDistance,
    adaptive_weight,
    last_layer,
)
from score_diffusion.run.training.batches import Batch

START = 5


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.rand(6, 1, 8, 8) * 2 - 1, {}, None, None)


@pytest.fixture
def model() -> AutoencoderKL:
    return AutoencoderKL(1, 2, channels=8, multipliers=(1, 2)).eval()


def adversarial(weight: float = 0.7) -> Autoencoding:
    torch.manual_seed(1)
    return Autoencoding(0.0, adversary=Adversary(PatchDiscriminator(1, 8), weight, START))


def test_the_loss_is_reconstruction_and_penalty(model: AutoencoderKL, batch: Batch):
    decoded, penalty, *_ = model(batch.x_0)
    expected = (decoded - batch.x_0).abs().mean((1, 2, 3)) + 0.3 * penalty
    torch.testing.assert_close(Autoencoding(0.3)(model, batch), expected)


def test_the_perceptual_distance_is_that_of_normalized_features(batch: Batch):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).square()

    net = Net()
    distance = FeatureDistance(net, [net.layer])
    x, y = batch.x_0, batch.x_0.flip(0)
    cosine = F.cosine_similarity(net.layer(x), net.layer(y), dim=1)
    torch.testing.assert_close(distance(x, y), (2 - 2 * cosine).mean((1, 2)))
    assert not any(p.requires_grad for p in distance.parameters()) and not distance.train().net.training


def test_the_perceptual_distance_moves_the_images_alone(model: AutoencoderKL, batch: Batch):
    net = Classifier(1, channels=8, num_classes=3)

    class Clean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x, torch.zeros(len(x)))

    objective = Autoencoding(0.0, FeatureDistance(Clean(), net.encoder), 2.0)
    plain = Autoencoding(0.0)(model, batch)
    losses = objective(model, batch)
    assert (losses > plain).all()
    losses.mean().backward()
    assert all(p.grad is None for p in objective.parameters()) and model.quant.weight.grad is not None


def test_before_its_start_and_without_gradients_the_discriminator_does_not_count(
    model: AutoencoderKL, batch: Batch
):
    objective, plain = adversarial(), Autoencoding(0.0)(model, batch)
    objective.step = START - 1
    torch.testing.assert_close(objective(model, batch), plain)
    objective.step = START
    assert not torch.allclose(objective(model, batch), plain)
    with torch.no_grad():
        torch.testing.assert_close(objective(model, batch), plain)


def test_each_part_of_the_adversarial_loss_moves_its_own_weights(model: AutoencoderKL, batch: Batch):
    """One backward pass gives both gradients that two passes with two losses would."""
    objective, net = adversarial(weight=0.7), adversarial().discriminator
    objective.step = START
    objective(model, batch).mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    decoded = model(batch.x_0).images
    hinge = 0.5 * (F.relu(1 - net(batch.x_0)).mean() + F.relu(1 + net(decoded.detach())).mean())
    hinge.backward()
    for ours, alone in zip(objective.discriminator.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, alone.grad)

    reconstruction, generated = (decoded - batch.x_0).abs().mean(), -net(decoded).mean()
    last = model.decoder.conv_out.weight
    norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (reconstruction, generated)]
    balance = norms[0] / (norms[1] + 1e-4)
    torch.testing.assert_close(adaptive_weight(reconstruction, generated, last_layer(model)), balance)
    model.zero_grad()
    (reconstruction + 0.7 * balance * generated).backward()
    for name, p in model.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-7)


def test_figures(batch: Batch, model: AutoencoderKL):
    halves = [batch[:3], batch[3:]]
    mse = (model(batch.x_0).images - batch.x_0).square().mean((1, 2, 3))
    found = Autoencoding(0.0).figures(model, halves)
    assert found["psnr"] == pytest.approx((10 * torch.log10(4 / mse)).mean().item(), rel=1e-5)
    assert found["kl"] == pytest.approx(64 * model(batch.x_0).penalty.mean().item(), rel=1e-5)
    net = AutoencoderVQ(1, 2, 16, channels=8, multipliers=(1, 2))
    used = net.nearest(net.encode(batch.x_0)).unique()
    assert Autoencoding(0.0).figures(net, halves)["codes_used"] == len(used) / 16
