"""diffusers' AutoencoderKL: a folder with config.json and diffusion_pytorch_model.safetensors.

The folder is that of the network. Its `scaling_factor` is left out: here the scale of latents is measured on
the data that are encoded, when a model is trained on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from score_diffusion.models import AutoencoderKL
from score_diffusion.models.autoencoder import PlainBlock
from score_diffusion.models.layers import SelfAttention
from score_diffusion.run.checkpoints.formats.description import Description, Weights
from score_diffusion.run.checkpoints.formats.diffusers_weights import (
    BLOCKS,
    CONFIG,
    LEVELS,
    SIDE,
    WEIGHTS,
    WIDTH,
    attention_rules,
    read_tensors,
)
from score_diffusion.run.checkpoints.formats.settings import Settings
from score_diffusion.run.checkpoints.formats.weight_maps import Rules
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic, write_json

CLASS = "AutoencoderKL"
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
DEFAULTS: dict[str, object] = dict(  # of its arguments
    _class_name=CLASS,
    in_channels=3,
    out_channels=3,
    down_block_types=[DOWN],
    up_block_types=[UP],
    block_out_channels=[64],
    layers_per_block=1,
    act_fn="silu",
    latent_channels=4,
    norm_num_groups=32,
    sample_size=32,
    scaling_factor=0.18215,
    shift_factor=None,
    use_quant_conv=True,
    use_post_quant_conv=True,
    mid_block_add_attention=True,
)
QUANT = {"use_quant_conv": "quant_conv", "use_post_quant_conv": "post_quant_conv"}


def is_autoencoder(folder: Path) -> bool:
    """Whether a folder is that of an AutoencoderKL, as far as its configuration can be read."""
    path = folder / CONFIG
    return path.is_file() and Settings.from_json(path, {}).get("_class_name") == CLASS


def describe(folder: Path) -> Description:
    """The network and the images of a folder.

    Raises:
        UserError: If it is a network that AutoencoderKL here cannot be.
    """
    config = Settings.from_json(folder / CONFIG, DEFAULTS)
    config.choice("act_fn", ("silu", "swish"))
    levels = len(config.names("down_block_types", [DOWN], LEVELS))
    widths = config.integers("block_out_channels", 1, WIDTH, LEVELS)
    if len(config.names("up_block_types", [UP], LEVELS)) != levels or len(widths) != levels:
        raise config.refuse("block_out_channels", "as many numbers as there are blocks, down and up")
    if any(width % widths[0] for width in widths):
        raise config.refuse("block_out_channels", "multiples of the first of them")
    channels = config.integer("in_channels", 1, WIDTH)
    config.choice("out_channels", (channels,))
    side = (
        config.integers("sample_size", 1, SIDE, 2)
        if isinstance(config.get("sample_size"), list)
        else [config.integer("sample_size", 1, SIDE)]
    )
    factor = config.get("scaling_factor")
    return Description(
        image_shape=(channels, side[0], side[-1]),
        network=dict(
            latent_channels=config.integer("latent_channels", 1, WIDTH),
            channels=widths[0],
            multipliers=tuple(width // widths[0] for width in widths),
            blocks_per_level=config.integer("layers_per_block", 1, BLOCKS),
            attention=config.boolean("mid_block_add_attention"),
            norm_groups=config.integer("norm_num_groups", 1, WIDTH),
        ),
        score={"learned_variance": False},
        sde={"name": "vpsde"},
        name="autoencoder_kl",
        notes=(
            f"scale of the latents: measured when a model is trained on them, not scaling_factor={factor}",
        ),
    )


def rules(net: AutoencoderKL) -> Rules:
    """The rules for a network."""
    result = Rules(net)
    result.layer("quant", "quant_conv")
    result.layer("post_quant", "post_quant_conv")
    for ours, theirs, resample in (
        ("encoder", "down_blocks", "downsample"),
        ("decoder", "up_blocks", "upsample"),
    ):
        part = net.get_submodule(ours)
        result.layer(f"{ours}.conv_in", f"{ours}.conv_in")
        for level, blocks in enumerate(part.levels):  # type: ignore[arg-type]
            for i, block in enumerate(blocks):
                _block(result, f"{ours}.levels.{level}.{i}", f"{ours}.{theirs}.{level}.resnets.{i}", block)
        for level in range(len(part.levels) - 1):  # type: ignore[arg-type]
            result.layer(f"{ours}.{resample}.{level}.conv", f"{ours}.{theirs}.{level}.{resample}rs.0.conv")
        for i, module in enumerate(part.middle):  # type: ignore[arg-type]
            if isinstance(module, PlainBlock):
                _block(result, f"{ours}.middle.{i}", f"{ours}.mid_block.resnets.{i // 2}", module)
            elif isinstance(module, SelfAttention):
                attention_rules(result, f"{ours}.middle.{i}", f"{ours}.mid_block.attentions.0")
        result.layer(f"{ours}.norm_out", f"{ours}.conv_norm_out")
        result.layer(f"{ours}.conv_out", f"{ours}.conv_out")
    return result


def _block(result: Rules, ours: str, theirs: str, block: nn.Module) -> None:
    for layer in ("norm1", "conv1", "norm2", "conv2"):
        result.layer(f"{ours}.{layer}", f"{theirs}.{layer}")
    if f"{ours}.shortcut.weight" in result.shapes:
        result.layer(f"{ours}.shortcut", f"{theirs}.conv_shortcut")


def read(net: AutoencoderKL, folder: Path) -> Weights:
    """The weights of a folder; a 1x1 convolution that the network there lacks is the identity here.

    Args:
        net: The network that `describe(folder)` describes; it may be on the device "meta".
        folder: The folder.

    Raises:
        UserError: If the weights are missing or damaged, or do not fit the network.
    """
    state, source, notes = read_tensors(folder)
    config = Settings.from_json(folder / CONFIG, DEFAULTS)
    for key, name in QUANT.items():
        if not config.boolean(key):
            channels = net.latent_channels * (2 if name == "quant_conv" else 1)
            state[f"{name}.weight"] = torch.eye(channels)[:, :, None, None]
            state[f"{name}.bias"] = torch.zeros(channels)
    weights = rules(net).read(state, source)
    return Weights(weights, weights, notes=notes)


def write(net: AutoencoderKL, options: Mapping, shape: tuple[int, ...], folder: Path) -> None:
    """Writes the folder of an AutoencoderKL, with scaling_factor 1: it is measured on data, not known here.

    Args:
        net: The network.
        options: Its arguments after in_channels.
        shape: Shape of its images, (C, H, W).
        folder: The folder, created.

    Raises:
        UserError: If diffusers has no such network.
    """
    if net.dims != 2:
        raise UserError(f"diffusers' {CLASS} is for images, and this one for {net.dims}-dimensional data")
    groups = {module.num_groups for module in net.modules() if isinstance(module, nn.GroupNorm)}
    if len(groups) > 1:
        raise UserError(
            f"diffusers' {CLASS} has norms of one number of groups, and this one of "
            f"{' and '.join(map(str, sorted(groups)))}: train with model.norm_groups={min(groups)}"
        )
    levels = len(options["multipliers"])
    config: dict[str, object] = DEFAULTS | dict(
        in_channels=shape[0],
        out_channels=shape[0],
        down_block_types=[DOWN] * levels,
        up_block_types=[UP] * levels,
        block_out_channels=[options["channels"] * multiplier for multiplier in options["multipliers"]],
        layers_per_block=options["blocks_per_level"],
        latent_channels=options["latent_channels"],
        norm_num_groups=groups.pop(),
        sample_size=shape[1] if shape[1] == shape[2] else list(shape[1:]),
        scaling_factor=1.0,
        mid_block_add_attention=options["attention"],
    )
    tensors: dict[str, Tensor] = rules(net).write(net.state_dict())
    write_json(folder / CONFIG, config)
    write_atomic(folder / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
