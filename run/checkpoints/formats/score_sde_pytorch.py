"""score_sde_pytorch's .pth files: DDPM, DDPM++ and NCSN++, with the names of its released code.

A file holds the dictionary `model`, with keys `module.all_modules.{i}.…` in the order in which the network is
built; `ema`, whose `shadow_params` are a list in that order, of the trained tensors only (without the Fourier
frequencies); `optimizer` and `step`. Its networks are given the noise as ScoreModel's predictions "vp" and
"ve" give it.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from torch import Tensor, nn

from score_diffusion.models import UNet
from score_diffusion.models.layers import ResidualBlock
from score_diffusion.run.checkpoints.formats.description import Weights
from score_diffusion.run.checkpoints.formats.safe_pickle import (
    load_tensors,
    state_dict,
    tensor_list,
    training_step,
)
from score_diffusion.run.checkpoints.formats.weight_maps import Rules, unet_blocks
from score_diffusion.run.errors import UserError

NIN = ("W", "b")
RESIDUAL = dict(
    norm1="GroupNorm_0", conv1="Conv_0", scale_shift="Dense_0", norm2="GroupNorm_1", conv2="Conv_1"
)
DDPM_GROUPS = 32  # of every norm in its model `ddpm`; its `ncsnpp` has one for four channels, at most 32


class _Walk:
    """The rules of a network, module by module in the order of `all_modules`."""

    def __init__(self, net: UNet) -> None:
        self.net, self.rules, self._index = net, Rules(net), count()
        self.resampling_conv = "Conv2d_0" if net.style.filter == "fir" else "Conv_0"

    def next(self) -> str:
        return f"all_modules.{next(self._index)}"

    def layer(self, ours: str) -> None:
        self.rules.layer(ours, self.next())

    def residual(self, ours: str) -> None:
        theirs = self.next()
        if self.net.style.resampling == "biggan":
            self.rules.residual(ours, theirs, RESIDUAL | dict(shortcut="Conv_2"))
            return
        self.rules.residual(ours, theirs, RESIDUAL)
        if f"{ours}.shortcut.weight" in self.rules.shapes:
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

    def resampling(self, ours: str, module: nn.Module) -> None:
        if isinstance(module, ResidualBlock):
            self.residual(ours)
        else:
            self.rules.layer(f"{ours}.conv", f"{self.next()}.{self.resampling_conv}")


def rules(net: UNet) -> Rules:
    """The rules for a network."""
    walk = _Walk(net)
    if "embedding.embed.frequencies" in walk.rules.shapes:
        walk.rules.copy("embedding.embed.frequencies", f"{walk.next()}.W")
    walk.layer("embedding.layers.0")
    walk.layer("embedding.layers.2")
    walk.layer("conv_in")
    for level, blocks in enumerate(unet_blocks(net.encoder)):
        if level > 0:
            walk.resampling(f"downsample.{level - 1}", net.downsample[level - 1])
            _input_pyramid(walk, level - 1)
        for i in range(len(blocks)):
            walk.block(f"encoder.{level}.{i}")
    for i in range(len(net.middle)):
        walk.block(f"middle.{i}")
    for level, blocks in enumerate(unet_blocks(net.decoder)):
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
    """The input pyramid's own layers; its resampling without weights is outside of `all_modules`."""
    if walk.net.input_pyramid == "skip":
        walk.rules.layer(f"join.{i}.conv", f"{walk.next()}.Conv_0")
    elif walk.net.input_pyramid == "residual":
        walk.rules.layer(f"shrink.{i}.conv", f"{walk.next()}.{walk.resampling_conv}")


def _output_pyramid(walk: _Walk, level: int) -> None:
    if walk.net.output_pyramid == "residual" and level > 0:
        walk.rules.layer(f"grow.{level - 1}.conv", f"{walk.next()}.{walk.resampling_conv}")
    elif walk.net.output_pyramid != "none":
        walk.layer(f"to_image.{level}.norm")
        walk.layer(f"to_image.{level}.conv")


def read(net: UNet, path: Path, groups_are_known: bool = False) -> Weights:
    """The contents of a .pth file.

    Args:
        net: The network that it is for; it may be on the device "meta".
        path: The file.
        groups_are_known: Whether the network's norms are known to have the groups of the file's, which it
            does not tell.

    Raises:
        UserError: If the file cannot be read without executing code, or does not fit the network, or it does
            not say enough.
    """
    if not groups_are_known:
        _check_groups(net, path)
    content = load_tensors(path)
    if not isinstance(content, dict) or not {"model", "ema", "step"} <= set(content):
        raise UserError(
            f"{path} is not a checkpoint of score_sde_pytorch: expected a dictionary with model, ema and step"
        )
    state = state_dict(content["model"], f"{path}: model")
    state.pop("sigmas", None)  # a buffer that its networks compute again
    trained = [name for name in state if not (name == "all_modules.0.W" and state[name].ndim == 1)]
    shadow = _shadow(content["ema"], len(trained), path)
    network_rules = rules(net)
    averaged = network_rules.read(state | dict(zip(trained, shadow, strict=True)), f"the average in {path}")
    step = training_step(content["step"], f"{path}: step")
    return Weights(network_rules.read(state, str(path)), averaged, step, _assumptions(net))


def _shadow(ema: object, expected: int, path: Path) -> list[Tensor]:
    """The tensors of the moving average."""
    shadow = tensor_list(
        ema.get("shadow_params") if isinstance(ema, dict) else None, f"{path}: ema's average"
    )
    if len(shadow) != expected:
        raise UserError(
            f"{path} is damaged: its moving average has {len(shadow)} tensors for {expected} weights"
        )
    return shadow


def _check_groups(net: UNet, path: Path) -> None:
    """Refuses a network whose norms may have another number of groups than those of the file.

    The model `ddpm` and an `ncsnpp` of its form differ in nothing else, and in this only below 128 channels.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
    style = net.style
    form = (style.resampling, style.filter, style.rescale, net.input_pyramid, net.output_pyramid)
    is_ddpm = form == ("conv_asymmetric", "box", False, "none", "none")
    divisible = all(norm.num_channels % DDPM_GROUPS == 0 for norm in norms)
    same = all(norm.num_groups == DDPM_GROUPS for norm in norms)
    if is_ddpm and divisible and not same and style.norm_groups is None:
        raise UserError(
            f"{path} does not say whether its norms have {DDPM_GROUPS} groups, as in score_sde_pytorch's "
            "model ddpm, or one for four channels, as in its ncsnpp: say --from score_sde_pytorch:ddpm or "
            "--from score_sde_pytorch:ncsnpp"
        )


def _assumptions(net: UNet) -> tuple[str, ...]:
    """What the configuration says of a network and its file does not."""
    divided = "divided by √2" if net.style.rescale else "not divided by √2"
    notes = ["activation: swish (nonlinearity)", f"sums of two branches: {divided} (skip_rescale)"]
    if net.style.filter == "fir":
        notes.append("resampling filter: 1, 3, 3, 1 (fir_kernel)")
    notes.append("output divided by σ for VE only (scale_by_sigma)")
    if any(m.num_channels < 4 * DDPM_GROUPS for m in net.modules() if isinstance(m, nn.GroupNorm)):
        groups = net.style.norm_groups or "one for four channels, at most 32"
        notes.append(f"groups of the norms: {groups}")
    return tuple(notes)
