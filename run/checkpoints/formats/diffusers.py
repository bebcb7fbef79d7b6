"""diffusers' UNet2DModel: a folder with config.json and diffusion_pytorch_model.safetensors.

The folder is that of the network, or that of a pipeline with `unet/` and `scheduler/`. Two of its forms are
read and written: DDPM's (DownBlock2D, AttnDownBlock2D, UpBlock2D, AttnUpBlock2D) and NCSN++'s of ScoreSdeVe
(SkipDownBlock2D and its kin). The network's arguments follow from config.json, the SDE from the scheduler.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from score_diffusion.models import UNet
from score_diffusion.models.layers import SelfAttention
from score_diffusion.run.checkpoints.formats.weight_maps import Rules
from score_diffusion.run.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"
DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}
SKIP_DOWN = {"SkipDownBlock2D": False, "AttnSkipDownBlock2D": True}
UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
SKIP_UP = {"SkipUpBlock2D": False, "AttnSkipUpBlock2D": True}
# What its own code calls the projections of attention, and what older files call them.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
SCALES = {"default": "shift", "scale_shift": "scale_shift"}
BETAS = {
    "linear": "linear",
    "scaled_linear": "quadratic",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}
# Schedulers that read a table of betas, and differ in how they sample from it.
DDPM_SCHEDULERS = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler"),
    *("UniPCMultistepScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *("EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
)
SKIP_SCHEDULERS = ("ScoreSdeVeScheduler",)
SKIP_WIDTH = 128  # below that its blocks, its attention and its output disagree about the number of groups


@dataclass(frozen=True)
class Description:
    """What the two configurations of a folder say."""

    image_shape: tuple[int, int, int]
    """Channels, height and width."""
    network: dict[str, object]
    """Arguments of UNet after in_channels."""
    score: dict[str, object]
    """Arguments of ScoreModel after net and sde."""
    sde: dict[str, object]
    """A section `sde`."""


def describe(folder: Path) -> Description:
    """The network, its SDE and the images of a folder.

    Raises:
        UserError: If the folder is not complete, or a network that UNet cannot be.
    """
    config = _read_json(_network_folder(folder) / "config.json")
    scheduler = _scheduler(folder)
    skip = config.get("down_block_types", [""])[0] in SKIP_DOWN
    attends = [
        _attends(config, "down_block_types", SKIP_DOWN if skip else DOWN),
        _attends(config, "up_block_types", SKIP_UP if skip else UP)[::-1],
    ]
    if attends[0] != attends[1]:
        raise _unsupported("up_block_types", config["up_block_types"])
    _check(config, skip)
    network = _network(config, [k for k, attention in enumerate(attends[0]) if attention], skip)
    size = config.get("sample_size") or 32
    height, width = size if isinstance(size, list) else (size, size)
    score, sde = (_variance_exploding if skip else _ddpm)(config, scheduler)
    return Description((config["in_channels"], height, width), network, score, sde)


def _network_folder(folder: Path) -> Path:
    network = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (network / "config.json").is_file():
        raise UserError(
            f"{folder} is no folder of a diffusers UNet2DModel: expected config.json and {WEIGHTS} in it or "
            "in its folder unet"
        )
    return network


def _scheduler(folder: Path) -> dict:
    """The scheduler's configuration, beside the network's or in a folder of its own; empty without one."""
    candidates = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    return next((_read_json(path) for path in candidates if path.is_file()), {})


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again") from error


def _attends(config: Mapping, key: str, kinds: Mapping[str, bool]) -> list[bool]:
    """Whether each of a list of blocks attends."""
    try:
        return [kinds[name] for name in config[key]]
    except KeyError as error:
        raise _unsupported(key, config.get(key)) from error


def _unsupported(key: str, value: object) -> UserError:
    return UserError(
        f"a UNet2DModel with {key} = {value!r} cannot be converted: of its forms that of DDPM (DownBlock2D, "
        "AttnDownBlock2D) and that of NCSN++ (SkipDownBlock2D, AttnSkipDownBlock2D) can"
    )


def _check(config: Mapping, skip: bool) -> None:
    """Refuses what UNet cannot be."""
    for key, default, valid in (
        ("_class_name", "UNet2DModel", ("UNet2DModel",)),
        ("mid_block_type", "UNetMidBlock2D", ("UNetMidBlock2D",)),
        ("act_fn", "silu", ("silu", "swish")),
        ("downsample_type", "conv", ("conv",)),
        ("upsample_type", "conv", ("conv",)),
        ("add_attention", True, (True,)),
        ("class_embed_type", None, (None,)),
        ("time_embedding_type", "positional", ("fourier",) if skip else ("positional",)),
        ("center_input_sample", False, (False, True) if skip else (False,)),
        ("resnet_time_scale_shift", "default", ("default",) if skip else tuple(SCALES)),
        ("freq_shift", 0, (0, 1)),
        ("downsample_padding", 1, (0, 1)),
    ):
        if config.get(key, default) not in valid:
            raise _unsupported(key, config.get(key))
    widths = config["block_out_channels"]
    if any(width % widths[0] for width in widths):
        raise _unsupported("block_out_channels", widths)
    factor = config.get("mid_block_scale_factor", 1)
    if not math.isclose(factor, math.sqrt(2) if skip else 1.0, rel_tol=1e-6):
        raise _unsupported("mid_block_scale_factor", factor)
    if skip and (min(widths) < SKIP_WIDTH or config.get("norm_num_groups", 32) not in (None, 32)):
        raise _unsupported("block_out_channels", widths)
    scaled = config.get("resnet_time_scale_shift", "default") == "scale_shift"
    groups = config.get("attn_norm_num_groups")
    if scaled and groups != config.get("norm_num_groups", 32):
        raise _unsupported("attn_norm_num_groups", groups)


def _network(config: Mapping, attention_levels: list[int], skip: bool) -> dict[str, object]:
    widths = config["block_out_channels"]
    network = dict(
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks_per_level=config.get("layers_per_block", 2),
        attention_levels=tuple(attention_levels),
        heads=1,
        head_channels=config.get("attention_head_dim", 8),  # null: one head
        dropout=config.get("dropout", 0.0),
        out_channels=config["out_channels"],
        num_classes=config.get("num_class_embeds") or 0,
        norm_eps=config.get("norm_eps", 1e-5),
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
        modulation=SCALES[config.get("resnet_time_scale_shift", "default")],
        resampling="conv" if config.get("downsample_padding", 1) else "conv_asymmetric",
        embedding="sinusoidal" if config.get("freq_shift", 0) else "sinusoidal_adm",
        embedding_scale=1.0,
        norm_groups=config.get("norm_num_groups", 32),
    )


def _check_scheduler(scheduler: Mapping, known: Iterable[str], **settings: object) -> None:
    """Refuses another scheduler, or one of these with settings that the SDE has not."""
    name = scheduler.get("_class_name")
    if scheduler and name not in known:
        raise UserError(f"a network for the scheduler {name!r} cannot be converted: {', '.join(known)} can")
    for key, value in settings.items():
        if scheduler.get(key, value) != value:
            raise UserError(
                f"a scheduler with {key} = {scheduler[key]!r} cannot be converted, only with {value!r}"
            )


def _learns_variance(config: Mapping, scheduler: Mapping) -> bool:
    """Whether half of the output is for the variance, that between its bounds (Improved DDPM)."""
    ratio = config["out_channels"] / config["in_channels"]
    variance = scheduler.get("variance_type", "learned_range" if ratio == 2 else "fixed_small")
    if ratio not in (1, 2) or (ratio == 2) != (variance == "learned_range") or variance == "learned":
        raise UserError(
            f"a network with in_channels = {config['in_channels']} and out_channels = "
            f"{config['out_channels']} cannot be converted with variance_type = {variance!r}: only "
            "as many channels out as in, or twice as many with 'learned_range'"
        )
    return ratio == 2


def _ddpm(config: Mapping, scheduler: Mapping) -> tuple[dict[str, object], dict[str, object]]:
    """ScoreModel's arguments and the SDE of a DDPM-like scheduler; DDPM's own where there is none."""
    _check_scheduler(scheduler, DDPM_SCHEDULERS, trained_betas=None, rescale_betas_zero_snr=False)
    betas, N = scheduler.get("beta_schedule", "linear"), scheduler.get("num_train_timesteps", 1000)
    if betas not in BETAS:
        raise UserError(f"the scheduler's beta_schedule must be one of {', '.join(BETAS)}, got {betas!r}")
    ends = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    expected = 0.1 / N, 20 / N
    if betas != "squaredcos_cap_v2" and not all(map(math.isclose, ends, expected)):
        raise UserError(
            f"the scheduler's beta_start and beta_end must be DDPM's for {N} steps, {expected}, got {ends}"
        )
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(
            f"the scheduler's prediction_type must be one of {', '.join(PREDICTIONS)}, got {prediction!r}"
        )
    score = dict(prediction=PREDICTIONS[prediction], noise_input="position")
    return (
        score | dict(learned_variance=_learns_variance(config, scheduler)),
        dict(name="ddpm", betas=BETAS[betas], N=N),
    )


def _variance_exploding(config: Mapping, scheduler: Mapping) -> tuple[dict[str, object], dict[str, object]]:
    """ScoreModel's arguments and the SDE of ScoreSdeVe. Where the network centres its input, the data are in
    [0, 1] there: in [-1, 1] every σ is twice that.
    """
    _check_scheduler(scheduler, SKIP_SCHEDULERS)
    if config["out_channels"] != config["in_channels"]:
        raise _unsupported("out_channels", config["out_channels"])
    scale = 2.0 if config.get("center_input_sample", False) else 1.0
    sde = dict(
        name="vesde",
        sigma_min=scale * scheduler.get("sigma_min", 0.01),
        sigma_max=scale * scheduler.get("sigma_max", 1348.0),
        N=scheduler.get("num_train_timesteps", 2000),
    )
    score = dict(prediction="ve", noise_input="log_half_level" if scale == 2 else "log_level")
    return score | dict(learned_variance=False), sde


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
    skip = net.input_pyramid == "skip"
    for level, blocks in enumerate(net.encoder):
        theirs = f"down_blocks.{level}"
        _blocks(result, net, f"encoder.{level}", theirs, blocks)
        if level < len(net.downsample) and skip:
            _residual(result, net, f"downsample.{level}", f"{theirs}.resnet_down")
            result.layer(f"join.{level}.conv", f"{theirs}.skip_conv")
        elif level < len(net.downsample):
            result.layer(f"downsample.{level}.conv", f"{theirs}.downsamplers.0.conv")
    _residual(result, net, "middle.0.residual", "mid_block.resnets.0")
    _attention(result, "middle.0.attention", "mid_block.attentions.0")
    _residual(result, net, "middle.1.residual", "mid_block.resnets.1")
    for level, blocks in enumerate(net.decoder):
        theirs, last = f"up_blocks.{level}", level == len(net.decoder) - 1
        _blocks(result, net, f"decoder.{level}", theirs, blocks)
        if skip:  # the last level's share of the pyramid is the network's output layer
            norm, conv = (
                ("conv_norm_out", "conv_out") if last else (f"{theirs}.skip_norm", f"{theirs}.skip_conv")
            )
            result.layer(f"to_image.{level}.norm", norm)
            result.layer(f"to_image.{level}.conv", conv)
        if not last and skip:
            _residual(result, net, f"upsample.{level}", f"{theirs}.resnet_up")
        elif not last:
            result.layer(f"upsample.{level}.conv", f"{theirs}.upsamplers.0.conv")
    if not skip:
        result.layer("norm_out", "conv_norm_out")
        result.layer("conv_out", "conv_out")
    return result


def _blocks(result: Rules, net: UNet, ours: str, theirs: str, blocks: Iterable[nn.Module]) -> None:
    """The blocks of a level; where it attends once, its only attention is number 0."""
    attentions = count()
    for i, block in enumerate(blocks):
        _residual(result, net, f"{ours}.{i}.residual", f"{theirs}.resnets.{i}")
        if isinstance(block.attention, SelfAttention):
            _attention(result, f"{ours}.{i}.attention", f"{theirs}.attentions.{next(attentions)}")


def _residual(result: Rules, net: UNet, ours: str, theirs: str) -> None:
    result.layer(f"{ours}.norm1", f"{theirs}.norm1")
    result.layer(f"{ours}.conv1", f"{theirs}.conv1")
    if net.style.modulation == "scale_shift":
        result.modulated_norm(f"{ours}.scale_shift", f"{theirs}.norm2", f"{theirs}.time_emb_proj")
    else:
        result.layer(f"{ours}.scale_shift", f"{theirs}.time_emb_proj")
        result.layer(f"{ours}.norm2", f"{theirs}.norm2")
    result.layer(f"{ours}.conv2", f"{theirs}.conv2")
    if f"{ours}.shortcut.weight" in result.shapes:
        result.layer(f"{ours}.shortcut", f"{theirs}.conv_shortcut")


def _attention(result: Rules, ours: str, theirs: str) -> None:
    result.layer(f"{ours}.norm", f"{theirs}.group_norm")
    result.qkv(f"{ours}.qkv", [f"{theirs}.to_{name}" for name in "qkv"])
    result.projection(f"{ours}.project", f"{theirs}.to_out.0")


def read(net: UNet, folder: Path) -> dict[str, Tensor]:
    """The weights of a folder.

    Args:
        net: The network that `describe(folder)` describes.
        folder: The folder.

    Raises:
        UserError: If the weights are missing or damaged, or do not fit the network.
    """
    network = _network_folder(folder)
    path = network / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} is missing: only safetensors are read; save the model with them")
    try:
        state = safetensors.torch.load_file(path)
    except Exception as error:  # torn bytes make the parser raise anything
        raise UserError(f"{path} is damaged: copy it again") from error
    flipped = _read_json(network / "config.json").get("flip_sin_to_cos", True)
    fourier = "embedding.embed.frequencies" in net.state_dict()
    names = {name: _new_name(name) for name in state}
    return rules(net, flipped and not fourier).read({names[k]: v for k, v in state.items()}, str(path))


def _new_name(name: str) -> str:
    for old, new in OLD_NAMES.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name
