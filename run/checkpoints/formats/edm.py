"""EDM's .pkl files: SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM) in any of its preconditionings.

A file is a pickle of `ema`, a module that EDM's persistence stores with the source code of its class; it is
read by inert_pickle.py, which executes none of it. The arguments that the module was built with are stored,
too, so that the file describes itself: the preconditioning gives the prediction and the SDE, its model the
network.

    EDMPrecond      prediction "edm", EDMSDE with the noise levels that EDM samples
    VPPrecond       "vp", VPSDE                 VEPrecond     "ve", VESDE
    iDDPMPrecond    "iddpm" with a learned variance, DDPM with cosine betas

Reference:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        https://arxiv.org/abs/2206.00364: Table 1, Table 7 and Appendix C.
"""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor, nn

from score_diffusion.models import UNet
from score_diffusion.models.layers import SelfAttention
from score_diffusion.run.checkpoints.formats.description import Description, Weights
from score_diffusion.run.checkpoints.formats.inert_pickle import (
    as_dict,
    attributes,
    class_name,
    load,
    module_tensors,
)
from score_diffusion.run.checkpoints.formats.settings import Settings
from score_diffusion.run.checkpoints.formats.weight_maps import Rule, Rules, Tensors, unet_blocks
from score_diffusion.run.errors import UserError

LEVELS, BLOCKS, WIDTH, SIDE, CLASSES = 12, 64, 2**15, 2**14, 2**24  # at most
FILTERS = {(1, 1): "box", (1, 3, 3, 1): "fir"}
HEAD_CHANNELS = 64  # of ADM
RESIDUAL = dict(
    norm1="norm0", conv1="conv0", scale_shift="affine", norm2="norm1", conv2="conv1", shortcut="skip"
)  # fmt: skip

PRECONDITIONINGS: dict[str, dict[str, object]] = {  # the defaults of their arguments
    "EDMPrecond": dict(model_type="DhariwalUNet", sigma_data=0.5),
    "VPPrecond": dict(model_type="SongUNet", beta_d=19.9, beta_min=0.1, M=1000),
    "VEPrecond": dict(model_type="SongUNet", sigma_min=0.02, sigma_max=100),
    "iDDPMPrecond": dict(model_type="DhariwalUNet", C_1=0.001, C_2=0.008, M=1000),
}
NETWORKS: dict[str, dict[str, object]] = {
    "SongUNet": dict(
        label_dim=0,
        augment_dim=0,
        model_channels=128,
        channel_mult=[1, 2, 2, 2],
        channel_mult_emb=4,
        num_blocks=4,
        attn_resolutions=[16],
        dropout=0.1,
        embedding_type="positional",
        channel_mult_noise=1,
        encoder_type="standard",
        decoder_type="standard",
        resample_filter=[1, 1],
    ),
    "DhariwalUNet": dict(
        label_dim=0,
        augment_dim=0,
        model_channels=192,
        channel_mult=[1, 2, 3, 4],
        channel_mult_emb=4,
        num_blocks=3,
        attn_resolutions=[32, 16, 8],
        dropout=0.1,
    ),
}


def _module(path: Path) -> object:
    """The preconditioned network of a file."""
    content = load(path)
    module = as_dict(content).get("ema")
    name = class_name(module)
    if module is None:
        keys = ", ".join(as_dict(content)) or class_name(content)
        raise UserError(
            f"{path} is not a network snapshot of EDM: expected a pickle of a dictionary with ema, found "
            f"{keys}"
        )
    if name not in PRECONDITIONINGS:
        raise UserError(
            f"{path} holds a {name}, which has no counterpart here: only EDM's {', '.join(PRECONDITIONINGS)} "
            "are read"
        )
    return module


def _settings(module: object, defaults: dict[str, dict[str, object]], path: Path) -> tuple[str, Settings]:
    """The class of a module, and the arguments that it was built with."""
    name, state = class_name(module), attributes(module)
    if name not in defaults:
        raise UserError(f"{path} holds a {name}, which is none of {', '.join(defaults)}")
    if state.get("_init_args"):
        raise UserError(f"{path}: its {name} was built with arguments by position, which are not read")
    return name, Settings(as_dict(state.get("_init_kwargs")), defaults[name], f"{path} ({name})")


def describe(path: Path) -> Description:
    """The network of a file.

    Raises:
        UserError: If it is not a file of EDM, or a network that UNet cannot be.
    """
    module = _module(path)
    kind, outer = _settings(module, PRECONDITIONINGS, path)
    model = as_dict(attributes(module).get("_modules")).get("model")
    name, inner = _settings(model, NETWORKS, path)
    score, sde, notes = _preconditioning(kind, outer)
    network = _song(inner) if name == "SongUNet" else _dhariwal(inner)
    side, channels = inner.integer("img_resolution", 1, SIDE), inner.integer("in_channels", 1, WIDTH)
    if inner.integer("augment_dim", 0, WIDTH):
        notes = (
            *notes,
            "left out: the input for augmentation labels (map_augment), which sampling does not use",
        )
    learned = bool(score["learned_variance"])
    return Description(
        image_shape=(channels, side, side),
        network=network,
        score=score,
        sde=sde,
        variance="learned" if learned else "small",
        sampler="edm" if kind == "EDMPrecond" else None,
        notes=notes,
    )


def _preconditioning(
    kind: str, outer: Settings
) -> tuple[dict[str, object], dict[str, object], tuple[str, ...]]:
    """ScoreModel's arguments, the SDE, and what to say about them."""
    score: dict[str, object] = dict(learned_variance=kind == "iDDPMPrecond")
    if kind == "EDMPrecond":
        sigma_data = outer.number("sigma_data", above=0)
        sde: dict[str, object] = dict(name="edm", sigma_min=0.002, sigma_max=80.0, N=1000)
        notes = (
            "noise levels: those that EDM samples by default, 0.002 to 80 (sde.sigma_min, sde.sigma_max)",
        )
        return score | dict(prediction="edm", sigma_data=sigma_data), sde, notes
    if kind == "VPPrecond":
        smallest = outer.number("beta_min", above=0, below=1e6)
        largest = round(smallest + outer.number("beta_d", above=0, below=1e6), 12)
        sde = dict(name="vpsde", beta_min=smallest, beta_max=largest, N=outer.integer("M", 2, 100_000))
        return score | dict(prediction="vp"), sde, ()
    if kind == "VEPrecond":
        smallest = outer.number("sigma_min", above=0, below=1e6)
        largest = outer.number("sigma_max", above=smallest, below=1e6)
        return (
            score | dict(prediction="ve"),
            dict(name="vesde", sigma_min=smallest, sigma_max=largest, N=1000),
            (),
        )
    outer.choice("C_1", (0.001,))
    outer.choice("C_2", (0.008,))
    sde = dict(name="ddpm", betas="cosine", N=outer.integer("M", 2, 100_000))
    return score | dict(prediction="iddpm"), sde, ()


def _common(inner: Settings) -> dict[str, object]:
    side = inner.integer("img_resolution", 1, SIDE)
    multipliers = inner.integers("channel_mult", 1, WIDTH, LEVELS)
    attending = inner.get("attn_resolutions")
    resolutions = inner.integers("attn_resolutions", 1, SIDE, SIDE) if attending else []
    return dict(
        multipliers=tuple(multipliers),
        blocks_per_level=inner.integer("num_blocks", 1, BLOCKS),
        attention_levels=tuple(k for k in range(len(multipliers)) if side >> k in resolutions),
        dropout=inner.number("dropout", above=-1e-9, below=1),
        out_channels=inner.integer("out_channels", 1, 2 * WIDTH),
        num_classes=inner.integer("label_dim", 0, CLASSES),
        embedding_width=_width(inner) * inner.integer("channel_mult_emb", 1, 64),
    )


def _width(inner: Settings) -> int:
    return inner.integer("model_channels", 1, WIDTH)


def _song(inner: Settings) -> dict[str, object]:
    filter = tuple(inner.integers("resample_filter", 1, WIDTH, 64))
    if filter not in FILTERS:
        raise inner.refuse("resample_filter", "[1, 1] or [1, 3, 3, 1], the filters that networks here have")
    fourier = inner.choice("embedding_type", ("positional", "fourier")) == "fourier"
    pyramids = {"standard": "none", "skip": "skip", "residual": "residual"}
    return _common(inner) | dict(
        channels=_width(inner),
        heads=1,
        head_channels=None,
        embedding="fourier" if fourier else "sinusoidal",
        embedding_dim=_width(inner) * inner.integer("channel_mult_noise", 1, 64),
        embedding_scale=16.0 if fourier else 1.0,
        condition_first=True,
        modulation="shift",
        resampling="biggan",
        filter=FILTERS[filter],
        rescale=True,
        decoder_attention="level",
        input_pyramid=pyramids[str(inner.choice("encoder_type", tuple(pyramids)))],
        output_pyramid=pyramids[str(inner.choice("decoder_type", ("standard", "skip")))],
        norm_eps=1e-6,
    )


def _dhariwal(inner: Settings) -> dict[str, object]:
    common = _common(inner)
    multipliers = inner.integers("channel_mult", 1, WIDTH, LEVELS)
    if any(m % multipliers[0] for m in multipliers):
        raise inner.refuse("channel_mult", "multiples of the first of them")
    return common | dict(
        channels=_width(inner) * multipliers[0],
        multipliers=tuple(m // multipliers[0] for m in multipliers),
        head_channels=HEAD_CHANNELS,
        embedding="sinusoidal_adm",
        embedding_dim=_width(inner),
        embedding_scale=1.0,
        modulation="scale_shift",
        resampling="residual",
        decoder_attention="block",
        norm_eps=1e-5,
    )


def rules(net: UNet, side: int) -> Rules:
    """The rules for a network.

    Args:
        net: The network.
        side: Height and width of its images, which are part of the names.
    """
    result, adm = Rules(net), net.style.modulation == "scale_shift"
    sizes = [f"{side >> level}x{side >> level}" for level in range(len(net.encoder))]
    _embedding(result, adm)
    result.layer("conv_in", f"enc.{sizes[0]}_conv")
    for level, blocks in enumerate(unet_blocks(net.encoder)):
        theirs = f"enc.{sizes[level]}"
        if level > 0:
            result.residual(f"downsample.{level - 1}", f"{theirs}_down", RESIDUAL)
        if level > 0 and net.input_pyramid == "skip":
            result.layer(f"join.{level - 1}.conv", f"{theirs}_aux_skip")
        elif level > 0 and net.input_pyramid == "residual":
            result.layer(f"shrink.{level - 1}.conv", f"{theirs}_aux_residual")
        for i, block in enumerate(blocks):
            _block(result, f"encoder.{level}.{i}", f"{theirs}_block{i}", block)
    for i, block in enumerate(net.middle.children()):
        _block(result, f"middle.{i}", f"dec.{sizes[-1]}_in{i}", block)
    for k, blocks in enumerate(unet_blocks(net.decoder)):
        theirs = f"dec.{sizes[len(sizes) - 1 - k]}"
        if k > 0:
            result.residual(f"upsample.{k - 1}", f"{theirs}_up", RESIDUAL)
        for i, block in enumerate(blocks):
            _block(result, f"decoder.{k}.{i}", f"{theirs}_block{i}", block)
        if net.output_pyramid == "skip":
            result.layer(f"to_image.{k}.norm", f"{theirs}_aux_norm")
            result.layer(f"to_image.{k}.conv", f"{theirs}_aux_conv")
    if net.output_pyramid != "skip":
        result.layer("norm_out", "out_norm" if adm else f"dec.{sizes[0]}_aux_norm")
        result.layer("conv_out", "out_conv" if adm else f"dec.{sizes[0]}_aux_conv")
    return result


def _embedding(result: Rules, adm: bool) -> None:
    has_classes = "condition.label.weight" in result.shapes
    result.layer("embedding.layers.2", "map_layer1")
    if "embedding.embed.frequencies" in result.shapes:
        result.copy("embedding.embed.frequencies", "map_noise.freqs")
    if adm:
        result.sine_cosine("embedding.layers.0", "map_layer0")
        if has_classes:
            result.table("condition.label.weight", "map_label.weight")
    elif has_classes:
        _label_first(result)
    else:
        result.layer("embedding.layers.0", "map_layer0")


def _label_first(result: Rules) -> None:
    """SongUNet adds √L A e_c + a to the embedding for class c of L: a goes into the layer behind it."""

    def read(table: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        return math.sqrt(table.shape[1]) * table.T, weight, bias + weight @ shift

    def write(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        return rows.T / math.sqrt(len(rows)), rows.new_zeros(rows.shape[1]), weight, bias

    ours = ("condition.label.weight", "embedding.layers.0.weight", "embedding.layers.0.bias")
    theirs = ("map_label.weight", "map_label.bias", "map_layer0.weight", "map_layer0.bias")
    result.rules.append(Rule(ours, theirs, read, write))


def _block(result: Rules, ours: str, theirs: str, block: nn.Module) -> None:
    result.residual(f"{ours}.residual", theirs, RESIDUAL)
    if isinstance(block.attention, SelfAttention):
        result.layer(f"{ours}.attention.norm", f"{theirs}.norm2")
        heads = block.attention.heads
        result.stacked_qkv(f"{ours}.attention.qkv", f"{theirs}.qkv", heads, "head d qkv")
        result.projection(f"{ours}.attention.project", f"{theirs}.proj")


def read(net: UNet, path: Path) -> Weights:
    """The averaged weights of a file.

    Args:
        net: The network that `describe(path)` describes; it may be on the device "meta".
        path: The file.

    Raises:
        UserError: If it is not a file of EDM, or does not fit the network.
    """
    module = _module(path)
    model = as_dict(attributes(module).get("_modules")).get("model")
    side = _settings(model, NETWORKS, path)[1].integer("img_resolution", 1, SIDE)
    try:
        tensors = module_tensors(model)
    except (ValueError, IndexError, TypeError, RuntimeError, RecursionError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    unused = (".resample_filter", "map_augment.weight")
    state = {name: tensor for name, tensor in tensors.items() if not name.endswith(unused)}
    weights = rules(net, side).read(state, str(path))
    return Weights(weights, weights)
