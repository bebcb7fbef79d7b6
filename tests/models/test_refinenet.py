"""NCSN and NCSNv2: what each depends on, sizes, gradients, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from score_diffusion.models import NCSN, NCSNv2
from score_diffusion.models.refinenet_layers import InstanceNormPlus

LEVELS = torch.linspace(1, -4, 6)

NETS: dict[str, Callable[..., nn.Module]] = {
    "ncsn": lambda C=1, channels=6, **options: NCSN(C, LEVELS, channels, **options),
    "ncsnv2": lambda C=1, channels=6, **options: NCSNv2(C, channels, **options),
}


@pytest.fixture(params=list(NETS))
def make(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    return NETS[request.param]


def inputs(shape: tuple[int, ...], batch: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, *shape), LEVELS[:batch]


SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 14), (1, 8, 31)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_shapes(make, shape: tuple[int, ...], randomize) -> None:
    x, noise = inputs(shape, batch=2)
    net = make(shape[0])
    assert torch.equal(net(x, noise), torch.zeros_like(x))  # at initialization
    out = randomize(net)(x, noise)
    assert out.shape == x.shape
    assert out.isfinite().all()


def test_deeper_network_for_larger_images(make, randomize) -> None:
    net = make(3, channels=2, multipliers=(1, 2, 2, 4, 4))
    x, noise = inputs((3, 24, 40), batch=2)
    seen = []
    for cascade in net.cascades:
        cascade[-1].register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[1:])))
    assert randomize(net)(x, noise).shape == x.shape
    assert seen == [(2, 24, 40), (4, 12, 20), (4, 6, 10), (8, 6, 10), (8, 6, 10)]  # halved, then dilated
    dilations = [block.conv1.dilation[0] for cascade in net.cascades for block in cascade]
    assert dilations == [1] * 6 + [2, 2, 4, 4]


def test_every_parameter_gets_a_gradient(make, randomize) -> None:
    net = randomize(make())
    x, noise = inputs((1, 8, 8))
    (net(x, noise) * torch.randn_like(x)).sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        rows = p.grad.flatten(1) if "norm" in name else p.grad.flatten()[None]  # of each level
        assert (rows.abs().amax(1) > 0).all(), name


def test_gradient_in_x_equals_finite_differences(make, randomize) -> None:
    net = randomize(make(channels=4)).double()
    x, noise = torch.randn(2, 1, 8, 8, dtype=torch.float64), LEVELS[:2].double()
    assert torch.autograd.gradcheck(lambda x: net(x, noise), x.requires_grad_(), fast_mode=True)


def test_a_sample_does_not_depend_on_its_batch(make, randomize) -> None:
    net = randomize(make()).double()
    x, noise = (v.double() for v in inputs((1, 8, 8)))
    one_by_one = torch.cat([net(x[i : i + 1], noise[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(net(x, noise), one_by_one, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_it_learns(make) -> None:
    net = make(channels=8)
    x, noise = inputs((1, 8, 8))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = (net(x, noise) - torch.tanh(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_bfloat16_runs(make, randomize) -> None:
    x, noise = (v.bfloat16() for v in inputs((1, 8, 8)))
    out = randomize(make()).bfloat16()(x, noise)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_ncsn_uses_the_nearest_level(randomize) -> None:
    net = randomize(NETS["ncsn"]())
    x = torch.randn(1, 1, 8, 8)
    at_levels = net(x.expand(6, -1, -1, -1), LEVELS)
    for i in range(5):  # each level has rows of its own
        assert (at_levels[i] - at_levels[i + 1]).abs().max() > 1e-3 * at_levels.abs().max()
    noise = torch.tensor([50.0, LEVELS[2] + 0.4, LEVELS[2] - 0.4, -50.0])
    nearest = at_levels[[0, 2, 2, 5]]
    assert torch.allclose(net(x.expand(4, -1, -1, -1), noise), nearest, atol=1e-6)


def test_ncsn_trains_only_the_rows_of_its_levels(randomize) -> None:
    net = randomize(NETS["ncsn"]())
    x = torch.randn(2, 1, 8, 8)
    net(x, LEVELS[[1, 4]]).square().sum().backward()
    norms = [m for m in net.modules() if isinstance(m, InstanceNormPlus)]
    assert len(norms) == 4 * 2 * 2 + 1 + (4 + 2 + 2) + 2 * (8 + 2 + 2 + 2) + (8 + 2 + 2 + 6)
    for norm in norms:
        assert (norm.gamma.grad.abs().amax(1) > 0).nonzero().flatten().tolist() == [1, 4]


def test_ncsn_saves_its_levels() -> None:
    net, other = NETS["ncsn"](), NCSN(1, LEVELS.flip(0), 6)
    other.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(other.log_levels, LEVELS)
    assert "log_levels" not in dict(net.named_parameters())


def test_ncsnv2_ignores_the_noise(randomize) -> None:
    net = randomize(NETS["ncsnv2"]())
    x, noise = inputs((1, 8, 8))
    assert torch.equal(net(x, noise), net(x, noise.flip(0) + 100))
    assert (net(2 * x, noise) - net(x, noise)).abs().max() > 1e-3


def test_input_errors(make) -> None:
    net = make()
    x, noise = inputs((1, 8, 8))
    with pytest.raises(ValueError, match=r"x must have shape \(B, C=1, H, W\), got \(6, 2, 8, 8\)"):
        net(torch.cat([x, x], dim=1), noise)
    with pytest.raises(ValueError, match=r"noise must have shape \(B,\) = \(6,\), got \(6, 1\)"):
        net(x, noise[:, None])
    with pytest.raises(ValueError, match="cond must be None"):
        net(x, noise, noise)
    with pytest.raises(ValueError, match="at least 8 for a network that halves them 1 times, got 8 x 7"):
        net(x[..., :7], noise)


def test_argument_errors(make) -> None:
    for options, message in (
        (dict(C=0), "in_channels must be at least 1"),
        (dict(channels=1), "channels at least 2"),
        (dict(multipliers=()), "multipliers must be one or more"),
        (dict(multipliers=(1, 0)), "multipliers must be one or more"),
        (dict(multipliers=(1, 2)), r"fewer than the 2 multipliers, got \(2, 4\)"),
        (dict(dilations=(1,)), "dilations must be integers of at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    for levels in ([], [0.0, 0.0], [float("inf"), 1.0], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="log_levels must be one or more distinct finite numbers"):
            NCSN(1, levels, 6)
