"""Writing a network as diffusers' UNet2DModel, with its scheduler.

A UNet2DModel is given the index k of a step. A network that is given another function of the noise is written
with a table of its embedding at every step instead (time_embedding_type = "learned"), and an SDE that is not
DDPM's own with the betas of its chain (trained_betas): the pipeline computes what the network does here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from score_diffusion.models import UNet
from score_diffusion.models.conditions import condition_sizes
from score_diffusion.models.layers import SelfAttention
from score_diffusion.run.checkpoints.formats.diffusers import (
    DOWN,
    SCALES,
    SKIP_DOWN,
    SKIP_UP,
    SKIP_WIDTH,
    UP,
    rules,
)
from score_diffusion.run.checkpoints.formats.diffusers_schedulers import BETAS, PREDICTIONS, SCHEDULER
from score_diffusion.run.checkpoints.formats.diffusers_weights import CONFIG, WEIGHTS
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic, write_json
from score_diffusion.sde_lib import DDPM, ScoreModel
from score_diffusion.sde_lib.score import NOISE_INPUTS

# What the arguments of a network must be in either of the two forms.
DDPM_FORM: dict[str, Sequence[object]] = dict(
    rescale=(False,),
    filter=("box",),
    resampling=("conv", "conv_asymmetric"),
    decoder_attention=("block",),
    input_pyramid=("none",),
    output_pyramid=("none",),
)
SKIP_FORM: dict[str, Sequence[object]] = dict(
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
VE_SCALES = {
    "log_noise_level": 1.0,
    "log_half_noise_level": 2.0,
}  # our σ for one of theirs, by the noise input
EPSILON = ("noise", "vp", "iddpm")
TABULATED = (
    "its embedding of the noise is a table of all steps (time_embedding_type = 'learned'), which --from "
    "diffusers does not read: keep the run"
)


def write(
    model: ScoreModel, options: Mapping, sde: Mapping, shape: Sequence[int], folder: Path
) -> tuple[str, ...]:
    """Writes a pipeline's folder: unet/ with configuration and weights, scheduler/, model_index.json.

    Args:
        model: The model, whose network is a UNet.
        options: The network's arguments after in_channels, all of them.
        sde: The section `sde` of its run.
        shape: Shape of its images, (C, H, W).
        folder: The folder, created.

    Returns:
        What a user of the folder should know.

    Raises:
        UserError: If a UNet2DModel cannot be this network, or a scheduler its SDE; it gives all reasons.
    """
    net, skip = model.net, options.get("output_pyramid") == "skip"
    conditions = sorted(condition_sizes(model).keys() - {"label"})
    reasons = [f"conditions {' and '.join(conditions)}, where it has a class at most"] if conditions else []
    if isinstance(net, UNet):
        reasons += [*_option_reasons(options, net, skip), *(_ve_reasons if skip else _vp_reasons)(model, sde)]
    elif not conditions:
        reasons = [f"a network of the class {type(net).__name__}, where it has a U-Net"]
    if reasons:
        numbered = "; ".join(f"({k}) {reason}" for k, reason in enumerate(reasons, 1))
        raise UserError(f"diffusers has no UNet2DModel and scheduler for this run: {numbered}")
    config = _config(model, options, shape, skip)
    scheduler = _ve_scheduler(model, sde) if skip else _vp_scheduler(model, sde)
    assert isinstance(net, UNet)
    tensors = rules(net, flipped=False).write(net.state_dict())
    tabulated = config["time_embedding_type"] == "learned"
    if tabulated:
        tensors |= _learned_embedding(model, options["channels"], tensors)
    write_json(folder / "unet" / CONFIG, config)
    write_atomic(folder / "unet" / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
    write_json(folder / "scheduler" / SCHEDULER, scheduler)
    pipeline = "ScoreSdeVePipeline" if skip else "DDPMPipeline"
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", scheduler["_class_name"]]}
    write_json(folder / "model_index.json", {"_class_name": pipeline, **parts})
    return (TABULATED,) if tabulated else ()


def _option_reasons(options: Mapping, net: UNet, skip: bool) -> list[str]:
    """Why a UNet2DModel cannot be a network with these arguments."""
    form = SKIP_FORM if skip else DDPM_FORM
    reasons = [
        f"model.{key}={options[key]!r}, where it has {' or '.join(map(repr, valid))}"
        for key, valid in form.items()
        if options[key] not in valid
    ]
    if net.style.dims != 2:
        reasons.append(f"{net.style.dims}-dimensional data, where it has images")
    size, channels = options["embedding_dim"] or options["channels"], options["channels"]
    if skip and size != 2 * channels:
        reasons.append(f"model.embedding_dim={size}, where it has 2 model.channels = {2 * channels}")
    if not skip and size > channels:
        reasons.append(f"model.embedding_dim={size}, where it has at most model.channels = {channels}")
    if options["condition_first"] and options["num_classes"]:
        reasons.append("model.condition_first=True, where it adds classes behind the layers of the embedding")
    narrowest = channels * min(options["multipliers"])
    if skip and narrowest < SKIP_WIDTH:
        reasons.append(f"a level of {narrowest} channels, where NCSN++'s form needs {SKIP_WIDTH} or more")
    heads = _head_sizes(net)
    if len(heads) > 1:
        reasons.append(
            f"attention heads of {_listed(heads)} channels, where it has one size: set model.head_channels"
        )
    groups = _groups(net)
    if not skip and len(groups) > 1:
        reasons.append(
            f"norms of {_listed(groups)} groups, where it has one number for all: train with "
            f"model.norm_groups={min(groups)}"
        )
    return reasons


def _vp_reasons(model: ScoreModel, sde: Mapping) -> list[str]:
    """Why no scheduler of betas is for this model."""
    reasons = []
    times = torch.linspace(0.1, 1, 10, dtype=torch.float64) * model.sde.T
    total = model.sde.alpha(times).square() + model.sde.sigma(times).square()
    if not torch.allclose(total, torch.ones_like(total), atol=1e-6):
        reasons.append(
            f"sde.name={sde['name']}, which does not preserve the variance as the betas of a scheduler do"
        )
    predictions = (*EPSILON, *PREDICTIONS.values())
    if model.prediction not in predictions:
        valid = ", ".join(dict.fromkeys(predictions))
        reasons.append(f"model.prediction={model.prediction}, where it predicts {valid}")
    return reasons


def _ve_reasons(model: ScoreModel, sde: Mapping) -> list[str]:
    """Why ScoreSdeVeScheduler is not for this model."""
    reasons = []
    if sde["name"] != "vesde":
        reasons.append(f"sde.name={sde['name']}, where NCSN++'s form has vesde")
    if model.prediction != "ve":
        reasons.append(f"model.prediction={model.prediction}, where NCSN++'s form has ve")
    if model.learned_variance:
        reasons.append("model.learned_variance=True, which NCSN++'s form has not")
    if model.noise_input not in VE_SCALES:
        valid = " or ".join(VE_SCALES)
        reasons.append(f"model.noise_input={model.noise_input}, where NCSN++'s form has {valid}")
    return reasons


def _listed(numbers: set[int]) -> str:
    return " and ".join(map(str, sorted(numbers)))


def _groups(net: UNet) -> set[int]:
    return {module.num_groups for module in net.modules() if isinstance(module, nn.GroupNorm)}


def _attentions(net: UNet) -> list[SelfAttention]:
    return [module for module in net.modules() if isinstance(module, SelfAttention)]


def _head_sizes(net: UNet) -> set[int]:
    """The channels of a head; empty where every attention has one head, of whatever size."""
    if all(attention.heads == 1 for attention in _attentions(net)):
        return set()
    return {attention.project.in_features // attention.heads for attention in _attentions(net)}


def _config(model: ScoreModel, options: Mapping, shape: Sequence[int], skip: bool) -> dict[str, object]:
    """The configuration of the UNet2DModel."""
    net = model.net
    assert isinstance(net, UNet)
    widths = [options["channels"] * m for m in options["multipliers"]]
    attends = [level in options["attention_levels"] for level in range(len(widths))]
    down, up = (SKIP_DOWN, SKIP_UP) if skip else (DOWN, UP)
    down_names, up_names = ({attention: name for name, attention in kind.items()} for kind in (down, up))
    config: dict[str, object] = dict(
        _class_name="UNet2DModel",
        sample_size=shape[1] if shape[1] == shape[2] else list(shape[1:]),
        in_channels=shape[0],
        out_channels=net.out_channels,
        block_out_channels=widths,
        layers_per_block=options["blocks_per_level"],
        norm_eps=options["norm_eps"],
        dropout=options["dropout"],
        attention_head_dim=next(iter(_head_sizes(net)), None),
        num_class_embeds=options["num_classes"] or None,
        time_embedding_dim=options["embedding_width"],
        flip_sin_to_cos=False,
        down_block_types=[down_names[a] for a in attends],
        up_block_types=[up_names[a] for a in attends[::-1]],
    )
    if skip:
        return config | dict(
            norm_num_groups=None,
            mid_block_scale_factor=math.sqrt(2),
            time_embedding_type="fourier",
            center_input_sample=model.noise_input != "log_noise_level",
        )
    (groups,) = _groups(net)
    return config | dict(
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        resnet_time_scale_shift={ours: theirs for theirs, ours in SCALES.items()}[options["modulation"]],
        downsample_padding=1 if options["resampling"] == "conv" else 0,
        **_time_embedding(model, options),
    )


def _time_embedding(model: ScoreModel, options: Mapping) -> dict[str, object]:
    """How the UNet2DModel embeds the index of a step: as the network does if that is given it, by a table if
    not.
    """
    positional = (
        isinstance(model.sde, DDPM)
        and model.noise_input in ("position", "step")
        and options["embedding"] in ("sinusoidal", "sinusoidal_adm")
        and options["embedding_scale"] == 1
        and (options["embedding_dim"] or options["channels"]) == options["channels"]
    )
    if positional:
        freq_shift = 1 if options["embedding"] == "sinusoidal" else 0
        return dict(time_embedding_type="positional", freq_shift=freq_shift)
    return dict(time_embedding_type="learned", num_train_timesteps=model.sde.N)


def _times(model: ScoreModel) -> Tensor:
    """The times of a pipeline's steps: t_k = (k + 1) T/N, at each of which there is noise, float64."""
    sde = model.sde
    return sde.T * torch.arange(1, sde.N + 1, dtype=torch.float64) / sde.N


def _learned_embedding(model: ScoreModel, channels: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's embedding at every step as a table, and the layer behind it, both padded with zeros to
    the size that a UNet2DModel has.
    """
    net = model.net
    assert isinstance(net, UNet)
    with torch.no_grad():
        table = net.embedding.embed(NOISE_INPUTS[model.noise_input](model.sde, _times(model))).float()
    name = "time_embedding.linear_1.weight"
    padding = (0, channels - table.shape[1])
    return {
        "time_proj.weight": nn.functional.pad(table, padding),
        name: nn.functional.pad(tensors[name], padding),
    }


def _vp_scheduler(model: ScoreModel, sde: Mapping) -> dict[str, object]:
    prediction = "epsilon" if model.prediction in EPSILON else model.prediction
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    return dict(
        _class_name="DDPMScheduler",
        num_train_timesteps=model.sde.N,
        **_betas(model, sde),
        prediction_type=names.get(prediction, prediction),
        variance_type="learned_range" if model.learned_variance else "fixed_small",
        clip_sample=True,
    )


def _betas(model: ScoreModel, sde: Mapping) -> dict[str, object]:
    """The table of betas: by its name where it is DDPM's, by its numbers for any other chain."""
    if isinstance(model.sde, DDPM):
        first, last = (sde.get(key) for key in ("first_beta", "last_beta"))
        names = {ours: theirs for theirs, ours in BETAS.items()}
        return dict(
            beta_schedule=names[sde["betas"]],
            beta_start=0.1 / model.sde.N if first is None else first,
            beta_end=20 / model.sde.N if last is None else last,
        )
    log_alpha_bar = 2 * model.sde.log_alpha(_times(model))
    steps = torch.diff(log_alpha_bar, prepend=log_alpha_bar.new_zeros(1))
    return dict(beta_schedule="linear", trained_betas=(-torch.expm1(steps)).tolist())


def _ve_scheduler(model: ScoreModel, sde: Mapping) -> dict[str, object]:
    scale = VE_SCALES[model.noise_input]
    return dict(
        _class_name="ScoreSdeVeScheduler",
        num_train_timesteps=sde["N"],
        sigma_min=sde["sigma_min"] / scale,
        sigma_max=sde["sigma_max"] / scale,
    )
