"""What every network guarantees: `net(x, noise) -> like x`, per sample, differentiable, saved completely."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from score_diffusion.models import MLP, DiT, Prior, UNet

Randomize = Callable[[nn.Module], nn.Module]

Case = tuple[Callable[[], nn.Module], tuple[int, ...]]

CASES: dict[str, Case] = {
    "mlp": (lambda: MLP(2, width=32, depth=2), (2,)),
    "mlp_sinusoidal": (lambda: MLP(5, width=16, depth=1, embedding="sinusoidal"), (5,)),
    "unet": (lambda: UNet(1, channels=16, heads=2), (1, 8, 8)),
    "unet_fourier": (
        lambda: UNet(3, 8, (1, 2, 2), blocks_per_level=1, attention_levels=(0, 2), embedding="fourier"),
        (3, 8, 12),
    ),
    "prior": (lambda: Prior(6, width=32, depth=2, heads=4), (6,)),
    "dit": (lambda: DiT(2, patch=2, width=32, depth=2, heads=4), (2, 8, 12)),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def inputs(shape: tuple[int, ...], batch: int = 4, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, *shape, dtype=dtype), torch.linspace(-7, 6, batch, dtype=dtype)


def test_output_is_zero_at_initialisation(case: Case) -> None:
    make, shape = case
    x, noise = inputs(shape)
    out = make()(x, noise)
    assert out.shape == x.shape
    assert torch.equal(out, torch.zeros_like(x))


def test_every_parameter_gets_a_gradient(case: Case, randomize: Randomize) -> None:
    make, shape = case
    net = randomize(make())
    x, noise = inputs(shape)
    (net(x, noise) * torch.randn_like(x)).sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 1e-6, name


@pytest.mark.slow
def test_it_learns(case: Case) -> None:
    make, shape = case
    net = make()
    x, noise = inputs(shape, batch=8)
    target = torch.tanh(x) * noise.view(8, *[1] * len(shape)) / 4
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = (net(x, noise) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_float32_equals_float64(case: Case, randomize: Randomize) -> None:
    make, shape = case
    net = randomize(make()).eval()
    x, noise = inputs(shape)
    out, exact = net(x, noise), copy.deepcopy(net).double()(x.double(), noise.double())
    assert out.dtype == torch.float32
    assert exact.dtype == torch.float64
    assert (out - exact).abs().max() < 1e-3 * exact.abs().max()


def test_bfloat16_runs(case: Case, randomize: Randomize) -> None:
    make, shape = case
    x, noise = inputs(shape, dtype=torch.bfloat16)
    out = randomize(make()).bfloat16()(x, noise)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_gradient_in_x_equals_finite_differences(case: Case, randomize: Randomize) -> None:
    make, shape = case
    net = randomize(make()).double().eval()
    x, noise = inputs(shape, batch=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: net(x, noise), x.requires_grad_(), fast_mode=True)


def test_a_sample_does_not_depend_on_its_batch(case: Case, randomize: Randomize) -> None:
    make, shape = case
    net = randomize(make()).double()
    x, noise = inputs(shape, dtype=torch.float64)
    together = net(x, noise)
    one_by_one = torch.cat([net(x[i : i + 1], noise[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(together, one_by_one, rtol=1e-9, atol=1e-9)


def test_noise_matters(case: Case, randomize: Randomize) -> None:
    make, shape = case
    net = randomize(make())
    x, _ = inputs(shape, batch=1)
    noise = torch.tensor([-7.0, -1.0, 0.0, 0.5, 6.0])
    out = net(x.expand(5, *shape), noise)
    for i in range(4):
        assert (out[i] - out[i + 1]).abs().max() > 1e-3 * out.abs().max()


def test_extreme_noise_levels(case: Case, randomize: Randomize) -> None:
    make, shape = case
    x, _ = inputs(shape, batch=2)
    assert randomize(make())(x, torch.tensor([-50.0, 50.0])).isfinite().all()


def test_state_dict_round_trip(case: Case, randomize: Randomize, tmp_path: Path) -> None:
    make, shape = case
    net, other = randomize(make()), make()
    x, noise = inputs(shape)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt"), strict=True)
    assert torch.equal(net(x, noise), other(x, noise))  # `other` had drawn its own Fourier frequencies


def shape_of(x: Tensor) -> str:
    return re.escape(str(tuple(x.shape)))


def test_input_errors(case: Case) -> None:
    make, shape = case
    net = make()
    x, noise = inputs(shape)
    for wrong in (x[0], x[None], x[:, :0], torch.cat([x, x], dim=1)):
        with pytest.raises(
            ValueError, match=rf"x must have shape \(B, .*={shape[0]}.*\), got {shape_of(wrong)}"
        ):
            net(wrong, noise)
    with pytest.raises(ValueError, match="x must have a floating dtype, got torch.int64"):
        net(x.long(), noise)
    for wrong in (noise[:, None], noise[:2], noise[0]):
        with pytest.raises(ValueError, match=r"noise must have shape \(B,\) = \(4,\), got \("):
            net(x, wrong)
    with pytest.raises(ValueError, match="noise must have a floating dtype, got torch.int64"):
        net(x, noise.long())
    with pytest.raises(ValueError, match="cond must be None, .* got a Tensor"):
        net(x, noise, torch.zeros(4))
