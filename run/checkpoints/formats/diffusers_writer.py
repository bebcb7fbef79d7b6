"""Writing a network as diffusers' UNet2DModel, with its scheduler: what diffusers.py reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
from torch import nn

from score_diffusion.models import UNet
from score_diffusion.models.layers import SelfAttention
from score_diffusion.run.checkpoints.formats.diffusers import (
    BETAS,
    DOWN,
    PREDICTIONS,
    SCALES,
    SKIP_DOWN,
    SKIP_UP,
    SKIP_WIDTH,
    UP,
    WEIGHTS,
    rules,
)
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic, write_json

DDPM_FORM = dict(
    rescale=(False,),
    filter=("box",),
    resampling=("conv", "conv_asymmetric"),
    decoder_attention=("block",),
    input_pyramid=("none",),
    output_pyramid=("none",),
    embedding=("sinusoidal", "sinusoidal_adm"),
    embedding_scale=(1.0,),
)
SKIP_FORM = dict(
    rescale=(True,),
    filter=("fir",),
    resampling=("biggan",),
    decoder_attention=("level",),
    input_pyramid=("skip",),
    combine=("sum",),
    modulation=("shift",),
    embedding=("fourier",),
    norm_groups=(None, 32),
)


def write(
    net: UNet, options: Mapping, score: Mapping, sde: Mapping, shape: Sequence[int], folder: Path
) -> None:
    """Writes a pipeline's folder: unet/ with configuration and weights, scheduler/, model_index.json.

    Args:
        net: The network.
        options: Its arguments after in_channels, all of them.
        score: ScoreModel's arguments prediction, noise_input and learned_variance.
        sde: The section `sde` of its run.
        shape: Shape of its images, (C, H, W).
        folder: The folder, created.

    Raises:
        UserError: If a UNet2DModel cannot be this network, or its scheduler this SDE.
    """
    skip = net.output_pyramid == "skip"
    scheduler = _scheduler(score, sde, skip)
    _check_options(options, SKIP_FORM if skip else DDPM_FORM)
    widths = [options["channels"] * m for m in options["multipliers"]]
    config = dict(
        _class_name="UNet2DModel",
        sample_size=shape[1] if shape[1] == shape[2] else list(shape[1:]),
        in_channels=shape[0],
        out_channels=net.out_channels,
        block_out_channels=widths,
        layers_per_block=options["blocks_per_level"],
        norm_eps=options["norm_eps"],
        dropout=options["dropout"],
        attention_head_dim=_head_dim(net),
        num_class_embeds=options["num_classes"] or None,
        **_blocks_of(options["attention_levels"], len(widths), skip),
        **(_skip_config(score) if skip else _ddpm_config(net, options)),
    )
    write_json(folder / "unet" / "config.json", config)
    tensors = rules(net, flipped=False).write(net.state_dict())
    write_atomic(folder / "unet" / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    pipeline = "ScoreSdeVePipeline" if skip else "DDPMPipeline"
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", scheduler["_class_name"]]}
    write_json(folder / "model_index.json", {"_class_name": pipeline, **parts})


def _check_options(options: Mapping, form: Mapping[str, Sequence]) -> None:
    rest = dict(dims=(2,), vector_dim=(0,), token_dim=(0,), image_channels=(0,))
    for key, valid in {**form, **rest}.items():
        if options[key] not in valid:
            raise UserError(
                f"diffusers' UNet2DModel cannot be a network with model.{key}={options[key]!r}: it has "
                f"{' or '.join(map(repr, valid))}"
            )
    narrowest = options["channels"] * min(options["multipliers"])
    if form is SKIP_FORM and narrowest < SKIP_WIDTH:
        raise UserError(
            f"diffusers' UNet2DModel of NCSN++'s form needs levels of {SKIP_WIDTH} channels and more, this "
            f"network has one of {narrowest}"
        )
    size = options["channels"] * (2 if form is SKIP_FORM else 1)
    if (options["embedding_dim"] or options["channels"]) != size:
        raise UserError(
            f"diffusers' UNet2DModel has a noise embedding of size {size}, this network one of size "
            f"{options['embedding_dim']}"
        )


def _groups(net: UNet) -> int:
    """The number of groups of all norms."""
    groups = {m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)}
    if len(groups) > 1:
        raise UserError(
            "diffusers' UNet2DModel has norms of one number of groups, this network has "
            f"{', '.join(map(str, sorted(groups)))}: only networks trained with model.norm_groups set, or of "
            "128 channels and more, can be written"
        )
    return groups.pop()


def _head_dim(net: UNet) -> int | None:
    attentions = [m for m in net.modules() if isinstance(m, SelfAttention)]
    if all(m.heads == 1 for m in attentions):
        return None
    sizes = {m.project.in_features // m.heads for m in attentions}
    if len(sizes) > 1:
        raise UserError(
            "diffusers' UNet2DModel has attention heads of one size, this network has heads of "
            f"{', '.join(map(str, sorted(sizes)))} channels"
        )
    return sizes.pop()


def _blocks_of(attention_levels: Sequence[int], levels: int, skip: bool) -> dict[str, list[str]]:
    down, up = (SKIP_DOWN, SKIP_UP) if skip else (DOWN, UP)
    attends = [level in attention_levels for level in range(levels)]
    names = [{attention: name for name, attention in kinds.items()} for kinds in (down, up)]
    return dict(
        down_block_types=[names[0][a] for a in attends], up_block_types=[names[1][a] for a in attends[::-1]]
    )


def _ddpm_config(net: UNet, options: Mapping) -> dict[str, object]:
    groups = _groups(net)
    modulation = {ours: theirs for theirs, ours in SCALES.items()}[options["modulation"]]
    return dict(
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        resnet_time_scale_shift=modulation,
        downsample_padding=1 if options["resampling"] == "conv" else 0,
        freq_shift=1 if options["embedding"] == "sinusoidal" else 0,
        flip_sin_to_cos=False,
    )


def _skip_config(score: Mapping) -> dict[str, object]:
    return dict(
        norm_num_groups=None,
        mid_block_scale_factor=math.sqrt(2),
        time_embedding_type="fourier",
        flip_sin_to_cos=False,
        center_input_sample=score["noise_input"] != "log_level",
    )


def _scheduler(score: Mapping, sde: Mapping, skip: bool) -> dict[str, object]:
    """The scheduler's configuration."""
    if skip:
        scale = {"log_level": 1.0, "log_half_level": 2.0}.get(score["noise_input"])
        fits = sde["name"] == "vesde" and score["prediction"] == "ve" and not score["learned_variance"]
        if not fits or scale is None:
            raise UserError(
                "a diffusers network of NCSN++'s form needs sde.name=vesde, model.prediction=ve without a "
                "learned variance, and to be told log σ, model.noise_input=log_half_level or log_level"
            )
        return dict(
            _class_name="ScoreSdeVeScheduler",
            num_train_timesteps=sde["N"],
            sigma_min=sde["sigma_min"] / scale,
            sigma_max=sde["sigma_max"] / scale,
        )
    tables = {ours: theirs for theirs, ours in BETAS.items()}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()} | dict(vp="epsilon", iddpm="epsilon")
    told = score["noise_input"] in ("position", "step")
    if sde["name"] != "ddpm" or score["prediction"] not in predictions or not told:
        raise UserError(
            "a diffusers network of DDPM's form needs sde.name=ddpm, a model.prediction of "
            f"{', '.join(predictions)}, and to be told the step, model.noise_input=step"
        )
    return dict(
        _class_name="DDPMScheduler",
        num_train_timesteps=sde["N"],
        beta_schedule=tables[sde["betas"]],
        beta_start=0.1 / sde["N"],
        beta_end=20 / sde["N"],
        prediction_type=predictions[score["prediction"]],
        variance_type="learned_range" if score["learned_variance"] else "fixed_small",
        clip_sample=True,
    )
