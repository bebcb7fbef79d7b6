"""score_sde_pytorch's .pth files: DDPM, DDPM++ and NCSN++.

A file holds the dictionary `model`, with keys `module.all_modules.{i}.…` in the order in which the network is
built; `ema`, whose `shadow_params` are a list in that order, of what is trained alone (without the Fourier
frequencies); `optimizer` and `step`. Its networks are told what ScoreModel's predictions "vp" and "ve" tell.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from torch import Tensor

from score_diffusion.models import UNet
from score_diffusion.models.layers import ResidualBlock
from score_diffusion.run.checkpoints.formats.safe_pickle import load_tensors
from score_diffusion.run.checkpoints.formats.weight_maps import Rules
from score_diffusion.run.errors import UserError

NIN = ("W", "b")


class _Walk:
    """The rules of a network, module by module in the order of `all_modules`."""

    def __init__(self, net: UNet) -> None:
        self.net, self.rules, self._index = net, Rules(net), count()

    def next(self) -> str:
        return f"all_modules.{next(self._index)}"

    def layer(self, ours: str) -> None:
        self.rules.layer(ours, self.next())

    def residual(self, ours: str) -> None:
        theirs = self.next()
        for mine, its in (
            ("norm1", "GroupNorm_0"),
            ("conv1", "Conv_0"),
            ("scale_shift", "Dense_0"),
            ("norm2", "GroupNorm_1"),
            ("conv2", "Conv_1"),
        ):
            self.rules.layer(f"{ours}.{mine}", f"{theirs}.{its}")
        if f"{ours}.shortcut.weight" not in self.rules.shapes:
            return
        if self.net.style.resampling == "biggan":
            self.rules.layer(f"{ours}.shortcut", f"{theirs}.Conv_2")
        else:
            self.rules.projection(f"{ours}.shortcut", f"{theirs}.NIN_0", NIN, transposed=True)

    def attention(self, ours: str) -> None:
        if f"{ours}.qkv.weight" not in self.rules.shapes:
            return
        theirs = self.next()
        self.rules.layer(f"{ours}.norm", f"{theirs}.GroupNorm_0")
        self.rules.qkv(f"{ours}.qkv", [f"{theirs}.NIN_{k}" for k in range(3)], NIN, transposed=True)
        self.rules.projection(f"{ours}.project", f"{theirs}.NIN_3", NIN, transposed=True)

    def block(self, ours: str) -> None:
        self.residual(f"{ours}.residual")
        self.attention(f"{ours}.attention")

    def resampling(self, ours: str, module: object) -> None:
        if isinstance(module, ResidualBlock):
            self.residual(ours)
        else:
            self.rules.layer(f"{ours}.conv", f"{self.next()}.{self._conv}")

    @property
    def _conv(self) -> str:
        return "Conv2d_0" if self.net.style.filter == "fir" else "Conv_0"


def rules(net: UNet) -> Rules:
    """The rules for a network."""
    walk = _Walk(net)
    if "embedding.embed.frequencies" in walk.rules.shapes:
        walk.rules.copy("embedding.embed.frequencies", f"{walk.next()}.W")
    walk.layer("embedding.layers.0")
    walk.layer("embedding.layers.2")
    walk.layer("conv_in")
    for level, blocks in enumerate(net.encoder):
        if level > 0:
            walk.resampling(f"downsample.{level - 1}", net.downsample[level - 1])
            _input_pyramid(walk, level - 1)
        for i in range(len(blocks)):
            walk.block(f"encoder.{level}.{i}")
    for i in range(len(net.middle)):
        walk.block(f"middle.{i}")
    for level, blocks in enumerate(net.decoder):
        if level > 0:
            walk.resampling(f"upsample.{level - 1}", net.upsample[level - 1])
        for i in range(len(blocks)):
            walk.block(f"decoder.{level}.{i}")
        _output_pyramid(walk, level)
    if net.output_pyramid != "skip":
        walk.layer("norm_out")
        walk.layer("conv_out")
    return walk.rules


def _input_pyramid(walk: _Walk, i: int) -> None:
    if walk.net.input_pyramid == "skip":
        walk.next()  # its downsampling, which has no weights
        walk.rules.layer(f"join.{i}.conv", f"{walk.next()}.Conv")
    elif walk.net.input_pyramid == "residual":
        walk.rules.layer(f"shrink.{i}.conv", f"{walk.next()}.{walk._conv}")


def _output_pyramid(walk: _Walk, level: int) -> None:
    if walk.net.output_pyramid == "residual" and level > 0:
        walk.rules.layer(f"grow.{level - 1}.conv", f"{walk.next()}.{walk._conv}")
    elif walk.net.output_pyramid != "none":
        if level > 0:
            walk.next()  # its upsampling
        walk.layer(f"to_image.{level}.norm")
        walk.layer(f"to_image.{level}.conv")


def read(net: UNet, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Weights, averaged weights and training steps of a .pth file.

    Args:
        net: The network that it is for.
        path: The file.

    Raises:
        UserError: If the file cannot be read without executing code, or does not fit the network.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or not {"model", "ema", "step"} <= set(content):
        raise UserError(
            f"{path} is not a checkpoint of score_sde_pytorch: expected a dictionary with model, ema and step"
        )
    state = {name.removeprefix("module."): tensor for name, tensor in content["model"].items()}
    state.pop("sigmas", None)  # a buffer that its networks build again
    trained = [name for name in state if not (name == "all_modules.0.W" and state[name].ndim == 1)]
    shadow = content["ema"]["shadow_params"]
    if len(shadow) != len(trained):
        raise UserError(
            f"{path} is damaged: its moving average has {len(shadow)} tensors for {len(trained)} weights"
        )
    network_rules = rules(net)
    averaged = network_rules.read(state | dict(zip(trained, shadow, strict=True)), str(path))
    return network_rules.read(state, str(path)), averaged, int(content["step"])
