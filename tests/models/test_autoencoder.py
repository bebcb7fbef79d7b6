"""Autoencoders: shapes, the KL term, the nearest code, the straight-through gradient, errors."""

from __future__ import annotations

import pytest
import torch
from torch import distributions, nn

from score_diffusion.models import AutoencoderKL, AutoencoderVQ
from score_diffusion.models.autoencoder import kl_divergence

SMALL = dict(channels=8, multipliers=(1, 2), latent_channels=3)


@pytest.mark.parametrize("make", [AutoencoderKL, AutoencoderVQ])
@pytest.mark.parametrize(
    ("multipliers", "size"),
    [((1,), (5, 7)), ((1, 2), (8, 12)), ((1, 2, 2), (8, 12)), ((1, 1, 2, 2), (16, 8))],
)
def test_shapes(make: type[nn.Module], multipliers: tuple[int, ...], size: tuple[int, int]):
    net = make(2, channels=8, multipliers=multipliers, latent_channels=3).eval()
    f = 2 ** (len(multipliers) - 1)
    x = torch.randn(4, 2, *size)
    z = net.encode(x)
    assert z.shape == (4, 3, size[0] // f, size[1] // f)
    assert net.latent_shape(x.shape[1:]) == z.shape[1:] and net.factor == f
    images, penalty, *_ = net(x)
    assert images.shape == x.shape and penalty.shape == (4,)
    torch.testing.assert_close(net.decode(z), images)


@pytest.mark.parametrize(("dims", "size"), [(1, (8,)), (3, (4, 8, 4))])
def test_signals_and_fields(dims: int, size: tuple[int, ...]):
    net = AutoencoderKL(1, dims=dims, **SMALL)
    x = torch.randn(2, 1, *size)
    assert net.encode(x).shape == (2, 3, *(side // 2 for side in size))
    assert net(x).images.shape == x.shape


@pytest.mark.parametrize("make", [AutoencoderKL, AutoencoderVQ])
def test_every_parameter_gets_a_gradient(make: type[nn.Module], randomize):
    net = randomize(make(1, **SMALL))
    images, penalty, *_ = net(torch.randn(4, 1, 8, 8))
    (images.square().sum() + penalty.sum()).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_the_kl_term_is_that_of_gaussians():
    mean, log_variance = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    q = distributions.Normal(mean, (log_variance / 2).exp())
    expected = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_latents_are_drawn_in_training_and_means_afterwards(randomize):
    net = randomize(AutoencoderKL(1, **SMALL))
    x = torch.randn(1, 1, 8, 8)
    mean, log_variance = net.posterior(x)
    assert torch.equal(net.encode(x), mean)
    drawn: list[torch.Tensor] = []
    handle = net.post_quant.register_forward_pre_hook(lambda layer, inputs: drawn.append(inputs[0]))
    net.train()(x.expand(4000, -1, -1, -1))
    handle.remove()
    torch.testing.assert_close(drawn[0].mean(0), mean[0], atol=0.2, rtol=0)
    torch.testing.assert_close(drawn[0].std(0), (log_variance[0] / 2).exp(), atol=0.1, rtol=0.1)
    first, second = net.eval()(x), net(x)
    assert torch.equal(first.images, second.images)


def test_the_nearest_code_is_that_of_a_search(randomize):
    net = randomize(AutoencoderVQ(1, codebook_size=37, **SMALL))
    z = torch.randn(4, 3, 2, 5)
    found, codes = net.nearest(z), net.codebook.weight
    for b in range(4):
        for i in range(2):
            for j in range(5):
                assert found[b, i, j] == (codes - z[b, :, i, j]).norm(dim=1).argmin()
    assert torch.equal(net.codes(found)[1, :, 0, 3], codes[found[1, 0, 3]])


def test_the_gradient_passes_straight_through(randomize):
    """The decoder's gradient at the codes is the encoder's at its latents."""
    net = randomize(AutoencoderVQ(1, **SMALL)).double()
    z = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    net._encoded = lambda x: z
    weights = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    (net(torch.zeros(2, 1, 8, 8)).images * weights).sum().backward()
    e = net.codes(net.nearest(z)).detach().requires_grad_()
    (net._decoded(e) * weights).sum().backward()
    torch.testing.assert_close(z.grad, e.grad)


def test_the_penalty_moves_codes_and_latents_by_its_two_terms(randomize):
    net = randomize(AutoencoderVQ(1, commitment=0.3, **SMALL))
    z = torch.randn(1, 3, 1, 1, requires_grad=True)
    net._encoded = lambda x: z
    index = net.nearest(z)
    difference = (z - net.codes(index)).detach().flatten()
    penalty = net(torch.zeros(1, 1, 2, 2)).penalty
    torch.testing.assert_close(penalty, 1.3 * difference.square().mean()[None])
    penalty.sum().backward()
    torch.testing.assert_close(net.codebook.weight.grad[index.flatten()][0], -2 * difference / 3)
    torch.testing.assert_close(z.grad.flatten(), 0.3 * 2 * difference / 3)


BAD = {
    "each side of x must be divisible by 2": lambda: AutoencoderKL(1, **SMALL)(torch.zeros(1, 1, 7, 8)),
    "x must have shape (B, C=1, H, W)": lambda: AutoencoderVQ(1, **SMALL)(torch.zeros(1, 3, 8, 8)),
    "x must have a floating dtype": lambda: AutoencoderKL(1, **SMALL)(torch.zeros(1, 1, 8, 8).long()),
    "codebook_size must be at least 2": lambda: AutoencoderVQ(1, codebook_size=1),
    "commitment must be at least 0": lambda: AutoencoderVQ(1, commitment=-1.0),
    "latent_channels must be at least 1": lambda: AutoencoderKL(1, latent_channels=0),
    "multipliers must be at least 1, got 0": lambda: AutoencoderKL(1, multipliers=()),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_refused(message: str):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
