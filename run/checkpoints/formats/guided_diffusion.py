"""guided-diffusion's and improved-diffusion's .pt files: the tensors of a U-Net, nothing else.

`input_blocks.{i}.{j}`, `middle_block.{j}` and `output_blocks.{i}.{j}` are numbered in the order in which the
network is built. Attention stores q, k and v in one matrix, in guided-diffusion's "new order" (q k v, head,
d) or in the legacy order (head, q k v, d). The file does not tell which: the 64x64 model of the paper has the
new one, all others, and improved-diffusion's, the legacy one.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from torch import Tensor, nn

from score_diffusion.models import UNet
from score_diffusion.models.layers import ResidualBlock, SelfAttention
from score_diffusion.run.checkpoints.formats.description import Weights
from score_diffusion.run.checkpoints.formats.safe_pickle import load_tensors, state_dict
from score_diffusion.run.checkpoints.formats.weight_maps import Rules, unet_blocks
from score_diffusion.run.errors import UserError

GROUPS = 32  # of every norm in its code
RESIDUAL = dict(
    norm1="in_layers.0", conv1="in_layers.2", scale_shift="emb_layers.1", norm2="out_layers.0",
    conv2="out_layers.3", shortcut="skip_connection",
)  # fmt: skip


def rules(net: UNet, legacy: bool) -> Rules:
    """The rules for a network.

    Args:
        net: The network.
        legacy: Whether attention stores its rows by head.
    """
    result = Rules(net)
    result.sine_cosine("embedding.layers.0", "time_embed.0")
    result.layer("embedding.layers.2", "time_embed.2")
    if "condition.label.weight" in result.shapes:
        result.copy("condition.label.weight", "label_emb.weight")
    result.layer("conv_in", "input_blocks.0.0")
    _encoder(result, net, legacy)
    result.residual("middle.0.residual", "middle_block.0", RESIDUAL)
    _attention(result, "middle.0.attention", "middle_block.1", net.middle[0].attention, legacy)
    result.residual("middle.1.residual", "middle_block.2", RESIDUAL)
    _decoder(result, net, legacy)
    result.layer("norm_out", "out.0")
    result.layer("conv_out", "out.2")
    return result


def _encoder(result: Rules, net: UNet, legacy: bool) -> None:
    theirs = (f"input_blocks.{k}" for k in count(1))
    for level, blocks in enumerate(unet_blocks(net.encoder)):
        if level > 0:
            ours, module = f"downsample.{level - 1}", net.downsample[level - 1]
            _resampling(result, ours, f"{next(theirs)}.0", module, conv="op")
        for i, block in enumerate(blocks):
            ours, name = f"encoder.{level}.{i}", next(theirs)
            result.residual(f"{ours}.residual", f"{name}.0", RESIDUAL)
            _attention(result, f"{ours}.attention", f"{name}.1", block.attention, legacy)


def _decoder(result: Rules, net: UNet, legacy: bool) -> None:
    theirs = (f"output_blocks.{k}" for k in count())
    for level, blocks in enumerate(unet_blocks(net.decoder)):
        for i, block in enumerate(blocks):
            ours, name = f"decoder.{level}.{i}", next(theirs)
            result.residual(f"{ours}.residual", f"{name}.0", RESIDUAL)
            _attention(result, f"{ours}.attention", f"{name}.1", block.attention, legacy)
            if i == len(blocks) - 1 and level < len(net.upsample):
                place = 1 + isinstance(block.attention, SelfAttention)
                module = net.upsample[level]
                _resampling(result, f"upsample.{level}", f"{name}.{place}", module, conv="conv")


def _attention(result: Rules, ours: str, theirs: str, module: Tensor | nn.Module, legacy: bool) -> None:
    if not isinstance(module, SelfAttention):
        return
    result.layer(f"{ours}.norm", f"{theirs}.norm")
    order = "head qkv d" if legacy else "qkv head d"
    result.stacked_qkv(f"{ours}.qkv", f"{theirs}.qkv", module.heads, order)
    result.projection(f"{ours}.project", f"{theirs}.proj_out")


def _resampling(result: Rules, ours: str, theirs: str, module: nn.Module, conv: str) -> None:
    if isinstance(module, ResidualBlock):
        result.residual(ours, theirs, RESIDUAL)
    else:
        result.layer(f"{ours}.conv", f"{theirs}.{conv}")


def read(net: UNet, path: Path, legacy: bool) -> Weights:
    """The weights of a .pt file, which are averaged ones in what its authors published.

    Args:
        net: The network that it is for; it may be on the device "meta".
        path: The file.
        legacy: Whether attention stores its rows by head.

    Raises:
        UserError: If the file cannot be read without executing code, does not fit the network, or holds a
            network of another kind.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not a checkpoint of guided-diffusion: expected a dictionary of tensors")
    state = state_dict(content, str(path))
    _check_kind(net, state, path)
    groups = {m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)}
    if net.style.norm_groups is None and groups != {GROUPS}:
        raise UserError(f"norms of guided-diffusion have {GROUPS} groups: set model.norm_groups={GROUPS}")
    weights = rules(net, legacy).read(state, str(path))
    return Weights(weights, weights, notes=_assumptions(net, legacy))


def _check_kind(net: UNet, state: dict[str, Tensor], path: Path) -> None:
    """Refuses networks of guided-diffusion that are not the U-Net of a diffusion model of images only."""
    first = state.get("input_blocks.0.0.weight")
    if first is None or first.ndim < 2:
        return  # not a file of guided-diffusion: what is missing will be named
    if not any(name.startswith("output_blocks.") for name in state):
        raise UserError(
            f"{path} is a classifier of guided-diffusion, half a U-Net that ends in classes, which has no "
            "counterpart here: convert the diffusion model"
        )
    inputs = first.shape[1]
    if inputs == 2 * net.in_channels and "image" not in net.condition_sizes:
        raise UserError(
            f"{path} is a super-resolution model of guided-diffusion, which needs a low-resolution image "
            f"next to x_t, and no mode passes one: in Python, UNet(..., image_channels={net.in_channels}) "
            "reads it"
        )


def _assumptions(net: UNet, legacy: bool) -> tuple[str, ...]:
    """What the configuration says of a network and its file does not."""
    heads = sorted({m.heads for m in net.modules() if isinstance(m, SelfAttention)})
    order = "legacy" if legacy else "new"
    return (f"attention: {', '.join(map(str, heads))} heads (num_heads, num_head_channels), {order} order",)
