"""The U-Net of the digits as it computes, and the loss of a network that does not know the noise level."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from docs.tour.figures.drawing import BLUE, GREEN, GREY, ORANGE, new_figure, save
from score_diffusion.models import MLP, UNet
from score_diffusion.sde_lib import VPSDE, GaussianMixture, ScoreModel, denoising_score_matching, sample_times

LAW = GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.02, 0.02]))


def outputs(net: UNet, size: int) -> list[tuple[str, Tensor]]:
    """The name and the output of each part of a U-Net, in the order of computation."""
    parts: list[tuple[str, nn.Module]] = [("conv_in", net.conv_in)]
    parts += [("encoder", block) for level in net.encoder for block in level]
    parts += [("downsample", part) for part in net.downsample]
    parts += [("middle", block) for block in net.middle]
    parts += [("decoder", block) for level in net.decoder for block in level]
    parts += [("upsample", part) for part in net.upsample] + [("conv_out", net.conv_out)]
    record: list[tuple[str, Tensor]] = []
    for name, part in parts:
        part.register_forward_hook(lambda _, __, output, name=name: record.append((name, output)))
    net(torch.randn(1, net.in_channels, size, size), torch.zeros(1))
    return record


def draw_unet(axes: Axes, net: UNet, size: int) -> None:
    """A box for each part, as high as its image and as wide as its channels; lines from the stack."""
    colors = {"encoder": BLUE, "middle": ORANGE, "decoder": GREEN}
    left, stack = 0.0, []
    for name, output in outputs(net, size):
        _, channels, height, _ = output.shape
        width = 0.15 + channels / 100
        axes.add_patch(
            Rectangle((left, -height / 2), width, height, color=colors.get(name, GREY), alpha=0.85)
        )
        axes.text(left + width / 2, -height / 2 - 0.3, channels, ha="center", va="top", fontsize=8)
        if name == "decoder":
            start, top = stack.pop()
            line = [(start, top), (start, top + 1 + len(stack) / 4), (left, top + 1 + len(stack) / 4)]
            axes.plot(*zip(*line, (left, height / 2), strict=True), color=GREY, linewidth=0.8, zorder=0)
        if name in ("conv_in", "encoder", "downsample"):
            stack.append((left + width, height / 2))
        left += width + 0.35
    axes.set(xlim=(-0.3, left + 0.3), ylim=(-size / 2 - 1.5, size / 2 + 4), title="U-Net for 8x8 digits")
    axes.axis("off")


def train(blind: bool, steps: int) -> ScoreModel:
    """A network for two peaks, whose noise input is the noise level, or always 0 if it is blind."""
    torch.manual_seed(0)
    sde, net = VPSDE(), MLP(1, width=64, depth=2)
    model = ScoreModel((lambda x, noise: net(x, 0 * noise)) if blind else net, sde)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    data = LAW.sample(20_000).float()
    for _ in range(steps):
        x_0 = data[torch.randint(len(data), (512,))]
        t = sample_times(sde, len(x_0))
        optimizer.zero_grad()
        denoising_score_matching(sde, model, x_0, t, torch.randn_like(x_0)).mean().backward()
        optimizer.step()
    return model


def draw(steps: int = 1500) -> Figure:
    figure = new_figure(9.6, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    draw_unet(left, UNet(1, channels=32), 8)
    sde, times = VPSDE(), torch.linspace(0.01, 1, 40)
    x_0 = LAW.sample(4000, seed=1).float()
    noise = torch.randn_like(x_0)
    exact = LAW.score(sde)
    scores = {"without": train(True, steps), "with": train(False, steps), "exact score": exact}
    for (name, score), style in zip(scores.items(), ("--", "-", ":"), strict=True):
        with torch.no_grad():
            losses = [
                denoising_score_matching(sde, score, x_0, t.expand(len(x_0)), noise).mean() for t in times
            ]
        right.plot(times, losses, style, label=name, color={"without": ORANGE, "with": BLUE}.get(name, "k"))
    right.set(xlabel="t", title="loss of the noise", ylim=(0, 1.1))
    right.grid(alpha=0.3)
    right.legend(title="noise level as an input")
    return figure


if __name__ == "__main__":
    save("network", draw())
