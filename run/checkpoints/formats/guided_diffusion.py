"""guided-diffusion's and improved-diffusion's .pt files: the tensors of a U-Net, nothing else.

`input_blocks.{i}.{j}`, `middle_block.{j}` and `output_blocks.{i}.{j}` are counted through as the network is
built. Attention keeps q, k and v in one matrix, in guided-diffusion's "new order" (q k v, head, d) or in the
legacy order (head, q k v, d), which the file does not tell: the 64x64 model of the paper has the new one, all
others, and improved-diffusion's, the legacy one.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from score_diffusion.models import UNet
from score_diffusion.models.layers import ResidualBlock, SelfAttention
from score_diffusion.run.checkpoints.formats.safe_pickle import load_tensors
from score_diffusion.run.checkpoints.formats.weight_maps import Rules
from score_diffusion.run.errors import UserError

GROUPS = 32  # of every norm in its code


def rules(net: UNet, legacy: bool) -> Rules:
    """The rules for a network.

    Args:
        net: The network.
        legacy: Whether attention keeps its rows by head.
    """
    result = Rules(net)
    result.sine_cosine("embedding.layers.0", "time_embed.0")
    result.layer("embedding.layers.2", "time_embed.2")
    if "condition.label.weight" in result.shapes:
        result.copy("condition.label.weight", "label_emb.weight")
    result.layer("conv_in", "input_blocks.0.0")

    def residual(ours: str, theirs: str) -> None:
        result.layer(f"{ours}.norm1", f"{theirs}.in_layers.0")
        result.layer(f"{ours}.conv1", f"{theirs}.in_layers.2")
        if net.style.modulation == "scale_shift":
            result.modulated_norm(f"{ours}.scale_shift", f"{theirs}.out_layers.0", f"{theirs}.emb_layers.1")
        else:
            result.layer(f"{ours}.scale_shift", f"{theirs}.emb_layers.1")
            result.layer(f"{ours}.norm2", f"{theirs}.out_layers.0")
        result.layer(f"{ours}.conv2", f"{theirs}.out_layers.3")
        if f"{ours}.shortcut.weight" in result.shapes:
            result.layer(f"{ours}.shortcut", f"{theirs}.skip_connection")

    def attention(ours: str, theirs: str, module: SelfAttention) -> None:
        result.layer(f"{ours}.norm", f"{theirs}.norm")
        result.stacked_qkv(f"{ours}.qkv", f"{theirs}.qkv", module.heads, by_head=legacy)
        result.projection(f"{ours}.project", f"{theirs}.proj_out")

    def resampling(ours: str, theirs: str, module: object, name: str) -> None:
        if isinstance(module, ResidualBlock):
            residual(ours, theirs)
        else:
            result.layer(f"{ours}.conv", f"{theirs}.{name}")

    k = 1
    for level, blocks in enumerate(net.encoder):
        if level > 0:
            resampling(f"downsample.{level - 1}", f"input_blocks.{k}.0", net.downsample[level - 1], name="op")
            k += 1
        for i, block in enumerate(blocks):
            residual(f"encoder.{level}.{i}.residual", f"input_blocks.{k}.0")
            if isinstance(block.attention, SelfAttention):
                attention(f"encoder.{level}.{i}.attention", f"input_blocks.{k}.1", block.attention)
            k += 1
    residual("middle.0.residual", "middle_block.0")
    attention("middle.0.attention", "middle_block.1", net.middle[0].attention)
    residual("middle.1.residual", "middle_block.2")
    k = 0
    for level, blocks in enumerate(net.decoder):
        for i, block in enumerate(blocks):
            attends = isinstance(block.attention, SelfAttention)
            residual(f"decoder.{level}.{i}.residual", f"output_blocks.{k}.0")
            if attends:
                attention(f"decoder.{level}.{i}.attention", f"output_blocks.{k}.1", block.attention)
            if i == len(blocks) - 1 and level < len(net.upsample):
                theirs = f"output_blocks.{k}.{1 + attends}"
                resampling(f"upsample.{level}", theirs, net.upsample[level], name="conv")
            k += 1
    result.layer("norm_out", "out.0")
    result.layer("conv_out", "out.2")
    return result


def read(net: UNet, path: Path, legacy: bool) -> dict[str, Tensor]:
    """The weights of a .pt file, which are averaged ones in what its authors published.

    Args:
        net: The network that it is for.
        path: The file.
        legacy: Whether attention keeps its rows by head.

    Raises:
        UserError: If the file cannot be read without executing code, or does not fit the network.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not a checkpoint of guided-diffusion: expected a dictionary of tensors")
    groups = {m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)}
    if net.style.norm_groups is None and groups != {GROUPS}:
        raise UserError(f"norms of guided-diffusion have {GROUPS} groups: set model.norm_groups={GROUPS}")
    return rules(net, legacy).read(content, str(path))
