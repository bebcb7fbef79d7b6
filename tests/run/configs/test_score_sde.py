"""The experiments `score_sde:NAME` have the score functions that score_sde_pytorch makes of its networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from score_diffusion.run.build import build_sde
from score_diffusion.run.config import load_config
from score_diffusion.run.configs.score_sde import EXPERIMENTS
from score_diffusion.sde_lib import SDE, ScoreModel
from score_diffusion.sde_lib.sde import expand


class Net(nn.Module):
    """Any function of the image and of what it is told."""

    def forward(self, x: Tensor, noise: Tensor, cond: object | None = None) -> Tensor:
        return x.sin() + expand((noise / 100).cos(), x) + x * expand(noise, x) / 1000


def their_score(name: str, sde: SDE, x: Tensor, t: Tensor) -> Tensor:
    """`get_score_fn` of its models/utils.py, for images of [-1, 1]; VE's there are (x + 1)/2.

    Its VE networks centre their input again, and those for continuous σ divide their output by it.
    """
    net, std = Net(), sde.marginal_prob(x, t)[1]
    if not name.startswith("ve"):
        return -net(x, t * 999) / expand(std, x)
    sigma = std / 2
    told = sigma.log() if name.endswith("continuous") else ((sde.T - t) * (sde.N - 1)).round()
    score = net(x, told) / expand(sigma, x)
    return score / 2  # d/dx of the log density of (x + 1)/2


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_score(name: str) -> None:
    config = load_config(f"score_sde:{name}")
    sde, options = build_sde(config.sde), config.model
    noise_input = None if options.noise_input == "auto" else options.noise_input
    model = ScoreModel(Net(), sde, options.prediction, False, options.scale_input, noise_input)
    x, k = 3 * torch.randn(4, 3, 8, 8).double(), torch.tensor([1.0, 123.0, 700.0, 999.0]).double()
    if name.startswith("vp") and not name.endswith("continuous"):
        t = (k + 1) / 1000  # the chain is DDPM's own
        theirs = -Net()(x, k) / expand(sde.sqrt_1m_alphas_cumprod[k.long()], x)
    else:
        t = k / 999
        theirs = their_score(name, sde, x, t)
    torch.testing.assert_close(model(x, t), theirs, rtol=1e-6, atol=1e-6)  # its table is float32
