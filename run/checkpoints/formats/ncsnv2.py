"""NCSNv2's .pth files: its RefineNets, as ncsnv2's own program or score_sde_pytorch saves them.

ncsnv2 saves the list [state_dict, optimizer, epoch, step, average by name], score_sde_pytorch a dictionary
with `model`, `ema` and `step`. The file describes itself: `sigmas` holds the noise levels, and the cascades
`res1`, `res2`, .. follow from the names and shapes of the tensors.

Its networks take images in [0, 1], here they are in [-1, 1], so that every σ is twice theirs. The network is
s(x, σ) = F(x)/σ, ScoreModel's prediction "ve". In instance norm++ it writes γ (h + α c) + β for our
γ h + α' c + β, so that α' = γ α.

Reference:
    Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020),
        https://arxiv.org/abs/2006.09011: Appendix B.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from score_diffusion.models import NCSNv2
from score_diffusion.models.refinenet_layers import RefineBlock, RefineNetResidualBlock, ResidualConvUnits
from score_diffusion.run.checkpoints.formats.description import Description, Weights
from score_diffusion.run.checkpoints.formats.safe_pickle import (
    load_tensors,
    state_dict,
    tensor_list,
    training_step,
)
from score_diffusion.run.checkpoints.formats.weight_maps import Rule, Rules, Tensors
from score_diffusion.run.errors import UserError

DILATIONS = (2, 4)  # of its last two cascades
SCALE = 2.0  # our σ for one of theirs
# Its names for the cascades and the refine blocks of each of its networks, by the number of cascades.
CASCADES = {
    4: ("res1", "res2", "res3", "res4"),
    5: ("res1", "res2", "res3", "res4", "res5"),
    6: ("res1", "res2", "res3", "res31", "res4", "res5"),
}
REFINE = {  # finest first, as the cascades
    4: ("refine4", "refine3", "refine2", "refine1"),
    5: ("refine5", "refine4", "refine3", "refine2", "refine1"),
    6: ("refine5", "refine4", "refine3", "refine31", "refine2", "refine1"),
}


def describe(path: Path, image_size: tuple[int, int]) -> Description:
    """The network of a file.

    Args:
        path: The file.
        image_size: Height and width of its images, which the file does not say.

    Raises:
        UserError: If the file cannot be read without executing code, or is not one of NCSNv2.
    """
    state, _, _ = _contents(path)
    names = CASCADES[_cascades(state, path)]
    widths = [_width(state, f"{name}.1.conv2.weight", path) for name in names]
    channels, image_channels = widths[0], _width(state, "end_conv.weight", path)
    if any(width % channels for width in widths):
        raise UserError(f"{path}: the widths of its cascades, {widths}, are not multiples of the first")
    return Description(
        image_shape=(image_channels, *image_size),
        name="ncsnv2",
        network=dict(
            channels=channels,
            multipliers=tuple(width // channels for width in widths),
            dilations=DILATIONS,
        ),
        score=dict(prediction="ve", learned_variance=False),
        sde=_levels(state.get("sigmas"), path),
        sampler="ald",
        notes=(
            "data in [0, 1] there (rescaled, logit_transform: false), so that every σ is twice its own",
            "activation: elu (nonlinearity)",
            f"images of {image_size[0]}x{image_size[1]} (data.image_size)",
        ),
    )


def _cascades(state: dict[str, Tensor], path: Path) -> int:
    """The number of cascades."""
    found = {match[1] for name in state if (match := re.match(r"(res\d+)\.", name))}
    for number, names in CASCADES.items():
        if found == set(names):
            return number
    if any(name.endswith("embed.weight") for name in state):
        raise UserError(
            f"{path} is a network of NCSN, whose norms are conditioned on the noise level: only NCSNv2's are "
            "read"
        )
    raise UserError(
        f"{path} is not a checkpoint of NCSNv2: expected tensors of the cascades {', '.join(CASCADES[4])}, "
        f"with or without res31 and res5, found {', '.join(sorted(found)) or 'none'}"
    )


def _width(state: dict[str, Tensor], name: str, path: Path) -> int:
    """The number of channels that a convolution makes."""
    if name not in state or state[name].ndim != 4:
        raise UserError(f"{path} is not a checkpoint of NCSNv2: it has no convolution {name}")
    return state[name].shape[0]


def _levels(sigmas: Tensor | None, path: Path) -> dict[str, object]:
    """The SDE of a network's noise levels, which must be geometric."""
    if sigmas is None or sigmas.ndim != 1 or len(sigmas) < 2 or not (sigmas > 0).all():
        raise UserError(f"{path} must hold its noise levels as sigmas, a table of positive numbers")
    logs = sigmas.double().log()
    if not torch.allclose(logs, torch.linspace(logs[0], logs[-1], len(logs)).to(logs), atol=1e-3, rtol=0):
        raise UserError(f"{path} has noise levels that are not geometric (sigma_dist), which VESDE needs")
    if logs[0] <= logs[-1]:
        raise UserError(f"{path} has noise levels from {sigmas[0]:g} to {sigmas[-1]:g}, not descending")
    largest, smallest = (SCALE * float(f"{sigma:.6g}") for sigma in (sigmas[0].item(), sigmas[-1].item()))
    return dict(name="vesde", sigma_min=smallest, sigma_max=largest, N=len(sigmas))


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | list[Tensor] | None, int]:
    """The state_dict, the moving average by name or in the order of the weights, and the steps."""
    content = load_tensors(path)
    if isinstance(content, list | tuple) and len(content) in (4, 5):
        state = state_dict(content[0], f"{path}: its first part")
        average = state_dict(content[4], f"{path}: its average") if len(content) == 5 else None
        return state, average, training_step(content[3], f"{path}: its step")
    if isinstance(content, dict) and {"model", "ema", "step"} <= set(content):
        state = state_dict(content["model"], f"{path}: model")
        shadow = content["ema"].get("shadow_params") if isinstance(content["ema"], dict) else None
        ordered = tensor_list(shadow, f"{path}: ema's average")
        return state, ordered, training_step(content["step"], f"{path}: step")
    raise UserError(
        f"{path} is not a checkpoint of NCSNv2: expected a list of state_dict, optimizer, epoch, step and "
        "average, or a dictionary with model, ema and step"
    )


def rules(net: NCSNv2) -> Rules:
    """The rules for a network."""
    result = Rules(net)
    number = len(net.cascades)
    result.layer("conv_in", "begin_conv")
    for k, theirs in enumerate(CASCADES[number]):
        for i, block in enumerate(net.cascades[k].children()):
            _residual(result, f"cascades.{k}.{i}", f"{theirs}.{i}", block)
    for k, theirs in enumerate(REFINE[number]):
        _refine(result, f"refine.{k}", theirs, net.refine[k])
    _norm(result, "norm_out", "normalizer")
    result.layer("conv_out", "end_conv")
    return result


def _norm(result: Rules, ours: str, theirs: str) -> None:
    """Instance norm++ without noise levels: one row of each table."""

    def read(gamma: Tensor, alpha: Tensor, beta: Tensor) -> Tensors:
        return gamma[None], (gamma * alpha)[None], beta[None]

    def write(gamma: Tensor, alpha: Tensor, beta: Tensor) -> Tensors:
        return gamma[0], alpha[0] / gamma[0], beta[0]

    names = ("gamma", "alpha", "beta")
    mine, its = (tuple(f"{norm}.{name}" for name in names) for norm in (ours, theirs))
    result.rules.append(Rule(mine, its, read, write))


def _residual(result: Rules, ours: str, theirs: str, block: object) -> None:
    assert isinstance(block, RefineNetResidualBlock)
    _norm(result, f"{ours}.norm1", f"{theirs}.normalize1")
    result.layer(f"{ours}.conv1", f"{theirs}.conv1")
    _norm(result, f"{ours}.norm2", f"{theirs}.normalize2")
    pooled = ".conv" if block.down else ""  # a convolution in front of mean pooling
    result.layer(f"{ours}.conv2", f"{theirs}.conv2{pooled}")
    if f"{ours}.shortcut.weight" in result.shapes:
        result.layer(f"{ours}.shortcut", f"{theirs}.shortcut{pooled}")


def _refine(result: Rules, ours: str, theirs: str, block: object) -> None:
    assert isinstance(block, RefineBlock)
    for i, units in enumerate(block.adapt.children()):
        _units(result, f"{ours}.adapt.{i}", f"{theirs}.adapt_convs.{i}", units)
    if block.fuse is not None:
        for i in range(len(block.fuse.convs)):
            result.layer(f"{ours}.fuse.convs.{i}", f"{theirs}.msf.convs.{i}")
    for i in range(len(block.pool.convs)):
        result.copy(f"{ours}.pool.convs.{i}.weight", f"{theirs}.crp.convs.{i}.weight")
    _units(result, f"{ours}.out", f"{theirs}.output_convs", block.out)


def _units(result: Rules, ours: str, theirs: str, units: object) -> None:
    assert isinstance(units, ResidualConvUnits)
    for i in range(len(units.convs)):
        result.copy(f"{ours}.convs.{i}.weight", f"{theirs}.{i // 2 + 1}_{i % 2 + 1}_conv.weight")


def read(net: NCSNv2, path: Path) -> Weights:
    """The weights of a file.

    Args:
        net: The network that `describe(path)` describes; it may be on the device "meta".
        path: The file.

    Raises:
        UserError: If the file cannot be read without executing code, or does not fit the network.
    """
    state, average, step = _contents(path)
    state.pop("sigmas", None)
    network_rules = rules(net)
    model = network_rules.read(state, str(path))
    if average is None:
        return Weights(model, model, step, ("no moving average in the file: the weights themselves",))
    if isinstance(average, list):
        if len(average) != len(state):
            raise UserError(
                f"{path} is damaged: its moving average has {len(average)} tensors for {len(state)} weights"
            )
        average = dict(zip(state, average, strict=True))
    return Weights(model, network_rules.read(average, f"the average in {path}"), step)
