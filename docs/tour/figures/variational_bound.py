"""The terms of DDPM's bound on digits, and how far the bound is from the exact likelihood."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from docs.tour.figures.drawing import BLUE, ORANGE, digits_law, new_figure, save
from score_diffusion.sde_lib import DDPM, cosine_betas, linear_betas, variational_bound

STEPS = (30, 100, 300, 1000)


def draw(samples: int = 64) -> Figure:
    law = digits_law()
    x = law.sample(samples)
    exact = -law.log_prob(x) / (64 * math.log(2))  # bits/dim
    figure = new_figure(9.6, 3.4)
    left, right = figure.subplots(1, 2)
    steps = STEPS if samples > 16 else STEPS[:2]
    for name, table, color in (("linear", linear_betas, ORANGE), ("cosine", cosine_betas, BLUE)):
        sde = DDPM(table(steps[-1]))
        bound = variational_bound(sde, law.score(sde), x, None, variance="large")
        terms = bound.terms.mean(0).flip(0)  # L_0, L_1, ..., L_N
        left.plot(range(1, steps[-1]), terms[1:-1], color=color, label=name, linewidth=1)
    left.set(xscale="log", yscale="log", xlabel="step k", title="terms $L_k$, bits/dim")
    for variance, color in (("small", ORANGE), ("large", BLUE)):
        gaps = []
        for n in steps:
            sde = DDPM(linear_betas(n))
            total = variational_bound(sde, law.score(sde), x, None, variance=variance).total
            gaps.append((total - exact).mean())
        right.plot(steps, gaps, ".-", color=color, label=f'variance "{variance}"')
    right.set(xscale="log", yscale="log", xlabel="steps N", title="bound minus exact, bits/dim")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return figure


if __name__ == "__main__":
    save("variational_bound", draw())
