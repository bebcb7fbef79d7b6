"""Annealed Langevin dynamics at five noise levels, and two of NCSNv2's rules."""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.tour.figures.drawing import BLUE, GREEN, ORANGE, names_of, new_figure, save, show_points
from score_diffusion.sde_lib import level_ratio, variance_ratio

SHOWN = (0, 15, 25, 40, 99)  # of 100 levels
DIMENSIONS = 64


def draw_shells(axes: Axes) -> None:
    """The density of the radius of noise, for successive levels of Technique 2 and of a ratio of 2."""
    r = torch.linspace(4, 22, 400)
    ratio = level_ratio(DIMENSIONS)
    for sigma, color in ((1.0, BLUE), (ratio, GREEN), (2.0, ORANGE)):
        log_density = (DIMENSIONS - 1) * (r / sigma).log() - (r / sigma).square() / 2 - math.log(sigma)
        log_density -= (DIMENSIONS / 2 - 1) * math.log(2) + math.lgamma(DIMENSIONS / 2)
        axes.fill_between(r, log_density.exp(), color=color, alpha=0.5, label=f"σ = {sigma:.2f}")
    axes.set(xlabel=f"radius of the noise in {DIMENSIONS} dimensions", yticks=[])
    axes.legend()


def draw_variances(axes: Axes) -> None:
    """The variance after T steps over the step size."""
    r = torch.linspace(0.01, 1.5, 200)
    for steps, color in ((1, ORANGE), (5, BLUE), (20, GREEN)):
        values = [variance_ratio(s, level_ratio(DIMENSIONS), steps) for s in r.tolist()]
        axes.plot(r, values, color=color, label=f"T = {steps}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel="step size r", title="variance after T steps, 1 is right", ylim=(0.9, 1.6))
    axes.legend()


def draw(samples: int = 800) -> Figure:
    page = names_of("11_noise_levels")
    score = page["law"].score(page["sde"])
    result = page["sampler"](score, (samples, 2), seed=0, trajectory=True)
    figure = new_figure(9.6, 4.8)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.3))
    for axes, k in zip(top.subplots(1, len(SHOWN)), SHOWN, strict=True):
        sigma = page["sde"].sigma(result.times[k]).item()
        show_points(axes, result.trajectory[k], f"σ = {sigma:.2g}", 9 + 2 * sigma)
    left, right = bottom.subplots(1, 2)
    draw_shells(left)
    draw_variances(right)
    return figure


if __name__ == "__main__":
    save("noise_levels", draw())
