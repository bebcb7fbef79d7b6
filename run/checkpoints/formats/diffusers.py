"""diffusers' UNet2DModel: a folder with config.json and diffusion_pytorch_model.safetensors.

The folder is that of the network, or that of a pipeline with `unet/` and `scheduler/`. Two of its forms are
read and written: DDPM's (DownBlock2D, AttnDownBlock2D, UpBlock2D, AttnUpBlock2D) and NCSN++'s of ScoreSdeVe
(SkipDownBlock2D, AttnSkipDownBlock2D, SkipUpBlock2D, AttnSkipUpBlock2D). The network's arguments follow from
config.json, the SDE from the scheduler (see diffusers_schedulers.py), the tensors from one file or several
(see diffusers_weights.py).
"""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path

from torch import nn

from score_diffusion.models import UNet
from score_diffusion.models.layers import SelfAttention
from score_diffusion.run.checkpoints.formats.description import Description, Weights
from score_diffusion.run.checkpoints.formats.diffusers_schedulers import describe_scheduler
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
from score_diffusion.run.checkpoints.formats.weight_maps import Rules, unet_blocks
from score_diffusion.run.errors import UserError

# Whether a block attends, by its name.
DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}
SKIP_DOWN = {"SkipDownBlock2D": False, "AttnSkipDownBlock2D": True}
UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
SKIP_UP = {"SkipUpBlock2D": False, "AttnSkipUpBlock2D": True}
RESIDUAL = dict(
    norm1="norm1", conv1="conv1", scale_shift="time_emb_proj", norm2="norm2", conv2="conv2",
    shortcut="conv_shortcut",
)  # fmt: skip
SCALES = {"default": "shift", "scale_shift": "scale_shift"}
AUTOENCODERS = ("vae", "vqvae", "vqgan", "movq")  # parts of pipelines whose networks work on latents
SKIP_WIDTH = 128  # below that its blocks, its attention and its output disagree about the number of groups

DEFAULTS: dict[str, object] = dict(  # of UNet2DModel's arguments
    _class_name="UNet2DModel",
    sample_size=None,
    in_channels=3,
    out_channels=3,
    center_input_sample=False,
    time_embedding_type="positional",
    time_embedding_dim=None,
    freq_shift=0,
    flip_sin_to_cos=True,
    down_block_types=["DownBlock2D", *3 * ["AttnDownBlock2D"]],
    mid_block_type="UNetMidBlock2D",
    up_block_types=[*3 * ["AttnUpBlock2D"], "UpBlock2D"],
    block_out_channels=[224, 448, 672, 896],
    layers_per_block=2,
    mid_block_scale_factor=1,
    downsample_padding=1,
    downsample_type="conv",
    upsample_type="conv",
    dropout=0.0,
    act_fn="silu",
    attention_head_dim=8,
    norm_num_groups=32,
    attn_norm_num_groups=None,
    norm_eps=1e-5,
    resnet_time_scale_shift="default",
    add_attention=True,
    class_embed_type=None,
    num_class_embeds=None,
)


def describe(folder: Path) -> Description:
    """The network, its SDE and the images of a folder.

    Raises:
        UserError: If the folder is not complete, or a network that UNet cannot be.
    """
    _refuse_latents(folder)
    config = Settings.from_json(_network_folder(folder) / CONFIG, DEFAULTS)
    config.choice("_class_name", ("UNet2DModel",))
    blocks = config.names("down_block_types", [*DOWN, *SKIP_DOWN], LEVELS)
    skip = blocks[0] in SKIP_DOWN
    down, up = (SKIP_DOWN, SKIP_UP) if skip else (DOWN, UP)
    attends = [down[name] for name in config.names("down_block_types", list(down), LEVELS)]
    if [up[name] for name in config.names("up_block_types", list(up), LEVELS)[::-1]] != attends:
        raise config.refuse("up_block_types", "the mirror image of down_block_types")
    _check(config, skip)
    channels = config.integer("in_channels", 1, WIDTH), config.integer("out_channels", 1, 2 * WIDTH)
    scheduler = describe_scheduler(folder, *channels, skip, skip and config.boolean("center_input_sample"))
    return Description(
        image_shape=(channels[0], *_image_size(config)),
        network=_network(config, [k for k, attention in enumerate(attends) if attention], skip),
        score=scheduler.score,
        sde=scheduler.sde,
        variance=scheduler.variance,
        clip=scheduler.clip,
        notes=scheduler.notes,
    )


def _refuse_latents(folder: Path) -> None:
    """Refuses a pipeline whose network does not work on images."""
    for part in AUTOENCODERS:
        if (folder / part).is_dir():
            raise UserError(
                f"{folder} is a pipeline of latent diffusion: its unet works on the latents of its {part}, "
                "which has no counterpart here"
            )


def _network_folder(folder: Path) -> Path:
    network = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (network / CONFIG).is_file():
        raise UserError(
            f"{folder} is not a folder of a diffusers UNet2DModel: expected {CONFIG} and {WEIGHTS} in it or "
            "in its folder unet"
        )
    return network


def _image_size(config: Settings) -> tuple[int, int]:
    size = config.get("sample_size")
    if isinstance(size, list):
        height, width = config.integers("sample_size", 1, SIDE, 2) * (3 - len(size)) if size else (32, 32)
        return height, width
    side = config.optional_integer("sample_size", 0, SIDE) or 32
    return side, side


def _check(config: Settings, skip: bool) -> None:
    """Refuses what UNet cannot be."""
    for key, valid in (
        ("mid_block_type", ("UNetMidBlock2D",)),
        ("act_fn", ("silu", "swish")),
        ("downsample_type", ("conv",)),
        ("upsample_type", ("conv",)),
        ("add_attention", (True,)),
        ("class_embed_type", (None,)),
        ("time_embedding_type", ("fourier",) if skip else ("positional",)),
        ("center_input_sample", (False, True) if skip else (False,)),
        ("flip_sin_to_cos", (False, True)),
        ("resnet_time_scale_shift", ("default",) if skip else tuple(SCALES)),
        ("freq_shift", (0, 1)),
        ("downsample_padding", (0, 1)),
    ):
        config.choice(key, valid)
    widths = config.integers("block_out_channels", 1, WIDTH, LEVELS)
    if len(widths) != len(config.names("down_block_types", [*DOWN, *SKIP_DOWN], LEVELS)):
        raise config.refuse("block_out_channels", "as many numbers as there are down_block_types")
    if any(width % widths[0] for width in widths):
        raise config.refuse("block_out_channels", "multiples of the first of them")
    factor = math.sqrt(2) if skip else 1.0
    if not math.isclose(config.number("mid_block_scale_factor"), factor, rel_tol=1e-6):
        raise config.refuse("mid_block_scale_factor", f"{factor:g}")
    groups = config.optional_integer("norm_num_groups", 1, WIDTH)
    if skip:
        if min(widths) < SKIP_WIDTH:
            raise config.refuse("block_out_channels", f"{SKIP_WIDTH} or more each in NCSN++'s form")
        config.choice("norm_num_groups", (None, 32))
    elif groups is None:
        raise config.refuse("norm_num_groups", "an integer")
    scaled = config.get("resnet_time_scale_shift") == "scale_shift"  # then null means no norm at all
    if config.get("attn_norm_num_groups") != groups and (scaled or config.get("attn_norm_num_groups")):
        raise config.refuse("attn_norm_num_groups", f"that of all norms, {groups}")


def _network(config: Settings, attention_levels: list[int], skip: bool) -> dict[str, object]:
    widths = config.integers("block_out_channels", 1, WIDTH, LEVELS)
    network: dict[str, object] = dict(
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks_per_level=config.integer("layers_per_block", 1, BLOCKS),
        attention_levels=tuple(attention_levels),
        heads=1,
        head_channels=config.optional_integer("attention_head_dim", 1, WIDTH),  # null: one head
        dropout=config.number("dropout", above=-1e-9, below=1),
        out_channels=config.integer("out_channels", 1, 2 * WIDTH),
        num_classes=config.optional_integer("num_class_embeds", 0, 2**24) or 0,
        norm_eps=config.number("norm_eps", above=0),
        embedding_width=config.optional_integer("time_embedding_dim", 1, WIDTH),
    )
    if skip:
        return network | dict(
            modulation="shift",
            resampling="biggan",
            filter="fir",
            rescale=True,
            decoder_attention="level",
            input_pyramid="skip",
            output_pyramid="skip",
            embedding="fourier",
            embedding_dim=2 * widths[0],
            embedding_scale=16.0,
        )
    return network | dict(
        modulation=SCALES[str(config.get("resnet_time_scale_shift"))],
        resampling="conv" if config.get("downsample_padding") else "conv_asymmetric",
        embedding="sinusoidal" if config.get("freq_shift") else "sinusoidal_adm",
        embedding_scale=1.0,
        norm_groups=config.integer("norm_num_groups", 1, WIDTH),
    )


def rules(net: UNet, flipped: bool) -> Rules:
    """The rules for a network.

    Args:
        net: The network.
        flipped: Whether its embedding is [cos, sin], `flip_sin_to_cos`.
    """
    result = Rules(net)
    if "embedding.embed.frequencies" in result.shapes:
        result.copy("embedding.embed.frequencies", "time_proj.weight")
    (result.sine_cosine if flipped else result.layer)("embedding.layers.0", "time_embedding.linear_1")
    result.layer("embedding.layers.2", "time_embedding.linear_2")
    if "condition.label.weight" in result.shapes:
        result.copy("condition.label.weight", "class_embedding.weight")
    result.layer("conv_in", "conv_in")
    _encoder(result, net)
    result.residual("middle.0.residual", "mid_block.resnets.0", RESIDUAL)
    attention_rules(result, "middle.0.attention", "mid_block.attentions.0")
    result.residual("middle.1.residual", "mid_block.resnets.1", RESIDUAL)
    _decoder(result, net)
    if net.output_pyramid != "skip":
        result.layer("norm_out", "conv_norm_out")
        result.layer("conv_out", "conv_out")
    return result


def _encoder(result: Rules, net: UNet) -> None:
    for level, blocks in enumerate(unet_blocks(net.encoder)):
        theirs = f"down_blocks.{level}"
        _blocks(result, f"encoder.{level}", theirs, blocks)
        if level < len(net.downsample) and net.input_pyramid == "skip":
            result.residual(f"downsample.{level}", f"{theirs}.resnet_down", RESIDUAL)
            result.layer(f"join.{level}.conv", f"{theirs}.skip_conv")
        elif level < len(net.downsample):
            result.layer(f"downsample.{level}.conv", f"{theirs}.downsamplers.0.conv")


def _decoder(result: Rules, net: UNet) -> None:
    skip = net.output_pyramid == "skip"
    for level, blocks in enumerate(unet_blocks(net.decoder)):
        theirs, last = f"up_blocks.{level}", level == len(net.decoder) - 1
        _blocks(result, f"decoder.{level}", theirs, blocks)
        if skip:  # the last level's share of the pyramid is the network's output layer
            norm, conv = (
                ("conv_norm_out", "conv_out") if last else (f"{theirs}.skip_norm", f"{theirs}.skip_conv")
            )
            result.layer(f"to_image.{level}.norm", norm)
            result.layer(f"to_image.{level}.conv", conv)
        if not last and skip:
            result.residual(f"upsample.{level}", f"{theirs}.resnet_up", RESIDUAL)
        elif not last:
            result.layer(f"upsample.{level}.conv", f"{theirs}.upsamplers.0.conv")


def _blocks(result: Rules, ours: str, theirs: str, blocks: list[nn.Module]) -> None:
    """The blocks of a level; where it attends once, its only attention is number 0."""
    attentions = count()
    for i, block in enumerate(blocks):
        result.residual(f"{ours}.{i}.residual", f"{theirs}.resnets.{i}", RESIDUAL)
        if isinstance(block.attention, SelfAttention):
            attention_rules(result, f"{ours}.{i}.attention", f"{theirs}.attentions.{next(attentions)}")


def read(net: UNet, folder: Path) -> Weights:
    """The weights of a folder.

    Args:
        net: The network that `describe(folder)` describes; it may be on the device "meta".
        folder: The folder.

    Raises:
        UserError: If the weights are missing or damaged, or do not fit the network.
    """
    network = _network_folder(folder)
    state, source, notes = read_tensors(network)
    flipped = Settings.from_json(network / CONFIG, DEFAULTS).boolean("flip_sin_to_cos")
    fourier = "embedding.embed.frequencies" in net.state_dict()
    weights = rules(net, flipped and not fourier).read(state, source)
    return Weights(weights, weights, notes=notes)
