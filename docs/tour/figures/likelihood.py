"""Paths of the probability flow over the exact densities, and log densities by the flow and by formula."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from docs.tour.figures.drawing import BLUE, ORANGE, new_figure, save
from docs.tour.figures.sdes import LAW, draw_densities, reverse_paths
from score_diffusion.sde_lib import VPSDE, log_likelihood


def draw(points: int = 120) -> Figure:
    sde = VPSDE()
    figure = new_figure(9.6, 3.6)
    left, right = figure.subplots(1, 2)
    draw_densities(left, sde, 2.6)
    left.plot(*reverse_paths(sde, 10 * points, stochasticity=0.0), color=ORANGE, linewidth=0.9)
    left.set(xlabel="t", title="probability flow")
    x = torch.linspace(-2, 2, points)[:, None].double()
    result = log_likelihood(sde, LAW.score(sde), x, divergence="exact")
    right.plot(x, LAW.log_prob(x), color=BLUE, linewidth=4, alpha=0.4, label="formula")
    right.plot(x, result.log_prob, color=ORANGE, linewidth=1, label="flow")
    right.set(xlabel="x", title="log p(x), nats")
    right.grid(alpha=0.3)
    right.legend()
    return figure


if __name__ == "__main__":
    save("likelihood", draw())
