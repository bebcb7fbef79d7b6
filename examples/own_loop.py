"""Your own network and your own training loop: what the library needs of them.

    python examples/own_loop.py --steps 3000

A network is any function `net(x, noise)`. `ScoreModel` turns its output into a score, the loss is one call,
and the score goes to any sampler.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn

from score_diffusion.samplers import make_sampler
from score_diffusion.sde_lib import ScoreModel, SubVPSDE, denoising_score_matching


class Net(nn.Module):
    """Three layers that see the point and the noise level, log(σ/α)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(3, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU()),
            nn.Linear(width, 2),
        )

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.layers(torch.cat([x, noise[:, None] / 4], dim=1))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    steps = parser.parse_args(arguments).steps

    torch.manual_seed(0)
    data = torch.tensor(make_moons(10_000, noise=0.05, random_state=0)[0], dtype=torch.float32)
    data = (data - data.mean(0)) / data.std(0)  # the noise schedules expect data of about unit scale

    sde = SubVPSDE()
    model = ScoreModel(Net(), sde, prediction="v")  # what the net predicts; model(x, t) is the score
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        x_0 = data[torch.randint(len(data), (256,))]
        t = sde.sampling_eps + (sde.T - sde.sampling_eps) * torch.rand(len(x_0))
        losses = denoising_score_matching(sde, model, x_0, t, torch.randn_like(x_0))  # one for each sample
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        if (step + 1) % 500 == 0:
            print(f"step {step + 1}: loss {losses.mean():.3f}")

    sampler = make_sampler("eabm", sde, nfe=20, denoise=True)
    samples = sampler(model, (1000, 2), seed=0).samples
    print("standard deviations of the samples:", samples.std(0).tolist(), "(those of the data are 1)")


if __name__ == "__main__":
    main()
