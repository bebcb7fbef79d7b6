"""Half a U-Net with attention pooling: its logits, what it is conditioned on, what it refuses."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.models import Classifier
from score_diffusion.models.classifier import AttentionPool


def tiny(**arguments) -> Classifier:
    torch.manual_seed(0)
    return Classifier(1, 8, (1, 2), 1, (1,), 2, num_classes=3, **arguments)


@pytest.mark.parametrize(("dims", "size"), [(1, (16,)), (2, (8, 16)), (3, (8, 8, 8))])
def test_logits_of_images_of_any_size(dims: int, size: tuple[int, ...]):
    net = tiny(dims=dims)
    assert net(torch.randn(5, 1, *size), torch.randn(5)).shape == (5, 3)


def test_every_weight_takes_part_and_the_noise_matters():
    net = tiny()
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    x = torch.randn(2, 1, 8, 8)
    net(x, torch.zeros(2)).square().sum().backward()
    assert all(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in net.parameters())
    assert not torch.allclose(net(x, torch.zeros(2)), net(x, torch.ones(2)), atol=1e-3)
    assert not hasattr(net, "decoder") and not hasattr(net, "conv_out")


def test_pooling_attends_from_the_mean_of_the_positions():
    torch.manual_seed(0)
    pool, h = AttentionPool(8, 4, 2), torch.randn(3, 8, 2, 5)
    tokens = h.flatten(2).transpose(1, 2)
    mean = tokens.mean(1)
    q, k, v = pool.attention.in_proj_weight.chunk(3)
    heads = [
        torch.softmax((mean @ q[r].T)[:, None] @ (tokens @ k[r].T).mT / 2, dim=-1) @ (tokens @ v[r].T)
        for r in (slice(0, 4), slice(4, 8))
    ]
    expected = pool.project(mean + pool.attention.out_proj(torch.cat(heads, -1)[:, 0]))
    torch.testing.assert_close(pool(h), expected)
    permuted = tokens[:, torch.randperm(10)].transpose(1, 2)[..., None]
    torch.testing.assert_close(pool(permuted), expected)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_classes must be at least 2 for a classifier, got 1"):
        Classifier(1, 8, num_classes=1)
    net = tiny()
    with pytest.raises(ValueError, match="x must have shape"):
        net(torch.randn(2, 3, 8, 8), torch.randn(2))
    with pytest.raises(ValueError, match="takes no condition"):
        net(torch.randn(2, 1, 8, 8), torch.randn(2), {"label": torch.zeros(2).long()})
