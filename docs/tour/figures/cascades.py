"""Digits through an exact cascade whose first model errs, at three conditioning augmentations."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from docs.tour.figures.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    digits,
    digits_law,
    names_of,
    new_figure,
    save,
    show_images,
)

ERROR = 0.15  # deviation of the first model's error
SHOWN = (0.0, 0.1, 0.3)


def draw(shown: int = 8) -> Figure:
    torch.manual_seed(0)
    page, law = names_of("08_cascades"), digits_law()
    A = page["A"]
    figure = new_figure(9.6, 4.2)
    left, right = figure.subfigures(1, 2, width_ratios=(1.7, 1))
    rows = left.subplots(2 + len(SHOWN), 1)
    x = digits()[0][:shown]
    small = x.flatten(1) @ A.T
    drawn = small + ERROR * torch.randn_like(small)
    show_images(rows[0], x, "digit")
    large = drawn.reshape(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    show_images(rows[1], large, "first model")
    for axes, s in zip(rows[2:], SHOWN, strict=True):
        noisy = drawn + s * torch.randn_like(drawn)
        results = [law.posterior(A, y, s).sample(1, seed=k) for k, y in enumerate(noisy)]
        show_images(axes, torch.cat(results), f"s = {s:g}")
    levels = torch.linspace(0, 0.6, 61)
    damage, invented = [], []
    for s in levels.tolist():
        G, R = page["gain_and_rest"](s)
        damage.append(float(ERROR**2 * G.square().sum()))
        invented.append(float(R.trace()) / 10)
    axes = right.subplots()
    axes.plot(levels, damage, color=ORANGE, label="damage")
    axes.plot(levels, invented, color=BLUE, label="a tenth of what is invented")
    axes.plot(levels, torch.tensor(damage) + torch.tensor(invented), color=GREEN, label="both")
    axes.set(xlabel="augmentation s", title="errors of variance", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    save("cascades", draw())
