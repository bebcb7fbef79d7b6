from __future__ import annotations

import pytest
import torch
from torch import nn

from score_diffusion.run.training.precision import TrainingNetwork, fastest_precision, with_network
from score_diffusion.sde_lib import VPSDE, ScoreModel

CPU = torch.device("cpu")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bf16_is_for_images_that_are_worth_it(has_bf16: bool, monkeypatch: pytest.MonkeyPatch):
    able = {"avx512_bf16": has_bf16}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert fastest_precision(CPU, (3, 16, 16)) == ("bf16" if has_bf16 else "float32")
    assert fastest_precision(CPU, (1, 8, 8)) == fastest_precision(CPU, (2,)) == "float32"


class Recorded(nn.Module):
    """A convolution that remembers its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: torch.Tensor, noise: torch.Tensor, cond: object | None = None) -> torch.Tensor:
        self.seen = x
        return self.conv(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_network_runs_in_its_precision_and_format(dtype: torch.dtype, channels_last: bool):
    net = Recorded()
    running = TrainingNetwork(net, dtype, channels_last)
    x = torch.randn(2, 2, 4, 4)
    assert running(x, torch.zeros(2)).dtype == dtype
    assert net.seen.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert torch.equal(net.seen, x) and all(weights.dtype == torch.float32 for weights in net.parameters())


def test_a_view_with_another_network_shares_the_weights():
    model = ScoreModel(Recorded(), VPSDE())
    view = with_network(model, TrainingNetwork)
    x, t = torch.randn(2, 2, 4, 4), torch.tensor([0.2, 0.7])
    assert isinstance(view, ScoreModel) and torch.equal(view(x, t), model(x, t))
    assert view.net.net is model.net and isinstance(model.net, Recorded)
    view(x, t).sum().backward()
    assert model.net.conv.weight.grad.abs().sum() > 0


def test_a_model_without_an_inner_network_is_a_network_itself():
    model = nn.Linear(3, 3)
    view = with_network(model, TrainingNetwork)
    x = torch.randn(2, 3)
    assert isinstance(view, TrainingNetwork) and torch.equal(view(x), model(x))
