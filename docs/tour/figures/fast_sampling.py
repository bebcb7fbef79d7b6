"""The error of samplers against their evaluations, on a flow whose end is known."""

from __future__ import annotations

from matplotlib.figure import Figure

from docs.tour.figures.drawing import names_of, new_figure, save

SAMPLERS = {"euler": "o-", "ddim": "s-", "heun": "^-", "dpmpp_2m": "v-", "rk4": "D-", "eabm": "*-"}
EVALUATIONS = (8, 12, 16, 24, 32, 48, 64, 96, 128)


def draw(most: int = 128) -> Figure:
    page = names_of("14_fast_sampling")
    figure = new_figure(7, 4)
    axes = figure.subplots()
    numbers = [n for n in EVALUATIONS if n <= most]
    for name, style in SAMPLERS.items():
        axes.plot(numbers, [page["error"](name, n) for n in numbers], style, label=name, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="evaluations of the score", ylabel="median error")
    axes.set_xticks(numbers, map(str, numbers))
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    save("fast_sampling", draw())
