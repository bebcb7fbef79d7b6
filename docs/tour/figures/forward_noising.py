"""Digits and points on their way to noise, each along one path of DDPM's chain."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_moons
from torch import Tensor

from docs.tour.figures.drawing import digits, new_figure, save, show_images, show_points
from score_diffusion.sde_lib import linear_betas

SHOWN = (0, 50, 100, 200, 300, 400, 600, 1000)  # numbers of steps


def chain(x: Tensor) -> list[Tensor]:
    """The states after each number of steps in SHOWN, from data x."""
    states = [x]
    for beta in linear_betas(1000):
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn_like(x)
        states.append(x)
    return [states[k] for k in SHOWN]


def draw(samples: int = 1000) -> Figure:
    torch.manual_seed(0)
    points = torch.as_tensor(make_moons(samples, noise=0.06, random_state=0)[0]) - torch.tensor([0.5, 0.25])
    rows = zip(chain(digits()[0][[0, 4, 12]]), chain(1.5 * points), SHOWN, strict=True)
    figure = new_figure(9.6, 4.9)
    for panels, (images, states, steps) in zip(figure.subplots(4, len(SHOWN)).T, rows, strict=True):
        for axes, image in zip(panels, images, strict=False):
            show_images(axes, image[None])
        show_points(panels[-1], states)
        panels[-1].set_xlabel(f"{steps} steps")
    return figure


if __name__ == "__main__":
    save("forward_noising", draw())
