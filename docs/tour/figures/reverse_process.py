"""A reverse step becomes Gaussian as it gets shorter; and what each target of a network looks like."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from docs.tour.figures.drawing import BLUE, GREEN, ORANGE, new_figure, save
from score_diffusion.sde_lib import VPSDE, GaussianMixture

SDE = VPSDE()
LAW = GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.02, 0.02]))
TIME, STATE = 0.6, 0.2  # where the reverse steps start


def reverse_density(step: float, x_s: Tensor) -> tuple[Tensor, Tensor]:
    """p(x_s | x_t) on an even grid x_s (n,), and the Gaussian with its mean and variance."""
    s, t = torch.tensor([TIME - step, TIME]).double()
    alpha_ts, var_ts = SDE.transition(s, t)
    log_p = LAW.log_prob_t(SDE)(x_s[:, None], s) - (STATE - alpha_ts * x_s).square() / (2 * var_ts)
    p = log_p.softmax(0) / (x_s[1] - x_s[0])
    mean = (p * x_s).sum() / p.sum()
    variance = (p * (x_s - mean).square()).sum() / p.sum()
    gaussian = (-(x_s - mean).square() / (2 * variance)).exp() / (2 * math.pi * variance).sqrt()
    return p, gaussian


def targets(x_t: Tensor, t: float) -> dict[str, Tensor]:
    """The best prediction of each target at states x_t (n,)."""
    time = torch.tensor(t).double()
    alpha, sigma = SDE.alpha(time), SDE.sigma(time)
    x_0 = LAW.denoiser(SDE)(x_t[:, None], time)[:, 0]
    noise = (x_t - alpha * x_0) / sigma
    return {"noise": noise, "x0": x_0, "v": alpha * noise - sigma * x_0, "score": -noise / sigma}


def draw(points: int = 1001) -> Figure:
    figure = new_figure(9.6, 5)
    top, bottom = figure.subfigures(2, 1)
    for axes, step in zip(top.subplots(1, 4), (0.5, 0.3, 0.1, 0.02), strict=True):
        p, gaussian = reverse_density(step, x := torch.linspace(-3, 3, points).double())
        axes.fill_between(x, p, color=BLUE, alpha=0.35, linewidth=0)
        axes.plot(x, gaussian, color=ORANGE, linestyle="--")
        axes.set(title=f"step {step:g}", yticks=[], xlabel="$x_s$")
    panels = bottom.subplots(1, 4)
    x = torch.linspace(-2.5, 2.5, points).double()
    for t, color in ((0.1, GREEN), (0.3, BLUE), (0.6, ORANGE)):
        for axes, (name, value) in zip(panels, targets(x, t).items(), strict=True):
            axes.plot(x, value, color=color, label=f"t = {t:g}")
            axes.set(title=name, xlabel="$x_t$")
    for axes in panels:
        axes.grid(alpha=0.3)
    panels[-1].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    save("reverse_process", draw())
