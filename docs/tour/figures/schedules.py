"""The linear and the cosine schedule: digits along both, α(t), and what a perfect denoiser can recover."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from docs.tour.figures.drawing import BLUE, ORANGE, digits, digits_law, new_figure, save, show_images
from score_diffusion.sde_lib import DDPM, SDE, cosine_betas, expand, linear_betas

SCHEDULES = {"linear": DDPM(linear_betas(1000)), "cosine": DDPM(cosine_betas(1000))}
COLORS = {"linear": ORANGE, "cosine": BLUE}


def recovered(sde: SDE, samples: int, times: Tensor) -> list[float]:
    """The share of the variance of digits that the denoiser E[x_0 | x_t] recovers at each time."""
    law = digits_law()
    x_0 = law.sample(samples)
    noise = torch.randn_like(x_0)
    variance = (x_0 - x_0.mean(0)).square().mean()
    shares = []
    for t in times:
        mean, std = sde.marginal_prob(x_0, t)
        error = (law.denoiser(sde)(mean + std * noise, t) - x_0).square().mean()
        shares.append(1 - float(error / variance))
    return shares


def draw(samples: int = 1000) -> Figure:
    torch.manual_seed(0)
    figure = new_figure(9.6, 5.2)
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.0, 2.6))
    shown = torch.linspace(0.0, 1.0, 11).double()
    x_0 = digits()[0][4].expand(len(shown), 1, 8, 8)
    noise = torch.randn(1, 1, 8, 8).double().expand_as(x_0)  # the same for all, as in the paper's figure
    for axes, (name, sde) in zip(top.subplots(2, 1), SCHEDULES.items(), strict=True):
        mean, std = sde.marginal_prob(x_0, shown)
        show_images(axes, mean + expand(std, x_0) * noise, name)
    left, right = bottom.subplots(1, 2)
    times = torch.linspace(0.001, 1.0, 60).double()
    for name, sde in SCHEDULES.items():
        left.plot(times, sde.alpha(times), color=COLORS[name], label=name)
        right.plot(times, recovered(sde, samples, times), color=COLORS[name], label=name)
    left.set(xlabel="t", title="the scale of the signal, α(t)")
    right.set(xlabel="t", title="share of a digit's variance that can be recovered")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


if __name__ == "__main__":
    save("schedules", draw())
