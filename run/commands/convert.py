"""Checkpoints of other libraries into run directories, and back.

    --mode convert --from score_sde_pytorch FILE.pth --config score_sde:vp_ddpmpp_continuous
    --mode convert --from guided_diffusion FILE.pt --config adm64           (or guided_diffusion_legacy)
    --mode convert --from diffusers FOLDER
    --mode convert --to diffusers FOLDER --workdir RUN

The run directory that comes of it samples, scores and goes on training. A .pth or .pt file does not say what
network it is for: the configuration must, and `--config.data.image_size=` the size of the images where it is
not 32x32, `--config.data.channels=` their channels where these are not 3. What it was trained on is not
known: `--config.data.path=` names the data to score and to train on, now or with each command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from score_diffusion.models import UNet
from score_diffusion.run.build import build_model, build_sde, data_options
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.checkpoints.formats import (
    diffusers,
    diffusers_writer,
    guided_diffusion,
    score_sde_pytorch,
)
from score_diffusion.run.config import save_config
from score_diffusion.run.configs.base import unet_defaults
from score_diffusion.run.console import print_result
from score_diffusion.run.data.info import (
    DataInfo,
    is_data_picture,
    load_data,
    read_data_info,
    write_data_info,
)
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.trained_model import load_trained
from score_diffusion.sde_lib import ScoreModel

GREY_LEVELS, COLOURS = 256, 3
IMAGE_SIZE = 32  # of CIFAR-10, where nothing says another


@dataclass(frozen=True)
class Weights:
    """What a file held, as the tensors of a UNet."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    step: int
    """Training steps behind them; 0 where the file does not say."""


def _score_sde(net: UNet, path: Path) -> Weights:
    return Weights(*score_sde_pytorch.read(net, path))


def _guided(net: UNet, path: Path) -> Weights:
    state = guided_diffusion.read(net, path, legacy=False)
    return Weights(state, state, 0)


def _guided_legacy(net: UNet, path: Path) -> Weights:
    state = guided_diffusion.read(net, path, legacy=True)
    return Weights(state, state, 0)


def _diffusers(net: UNet, path: Path) -> Weights:
    state = diffusers.read(net, path)
    return Weights(state, state, 0)


READERS: dict[str, Callable[[UNet, Path], Weights]] = {
    "score_sde_pytorch": _score_sde,
    "diffusers": _diffusers,
    "guided_diffusion": _guided,
    "guided_diffusion_legacy": _guided_legacy,
}
WRITERS = ("diffusers",)


def import_checkpoint(config: ConfigDict, workdir: Path, source: str, path: Path) -> int:
    """Makes a run directory of another library's checkpoint; returns the exit code.

    Args:
        config: The configuration: the network's, except for diffusers, whose folder describes it.
        workdir: The run directory, which must not hold a run.
        source: A name in `READERS`.
        path: The file or folder.

    Raises:
        UserError: If the file cannot be used, does not fit the configuration, or the directory holds a run.
    """
    if workdir.exists() and any(not is_data_picture(path) for path in workdir.iterdir()):
        raise UserError(f"{workdir} is not empty: give another --workdir for the converted run")
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    shape = (config.data.channels or COLOURS, *_image_size(config))
    if source == "diffusers":
        config, shape = _described(config, path)
    info = DataInfo(path.stem, shape, Scaling(levels=GREY_LEVELS), 0, 0)
    if config.data.path:
        load_data(data_options(config.data), info)  # for its checks
    model = build_model(config.model, build_sde(config.sde), shape)
    if not isinstance(model.net, UNet):
        raise UserError(f"{source} has U-Nets: give the --config of one, not of model {config.model.name!r}")
    weights = READERS[source](model.net, path)
    saved = checkpoint.save(workdir, _checkpoint(model, weights, config), config.training.keep)
    save_config(config, workdir)
    write_data_info(workdir, info)
    rows = [
        ("checkpoint", path),
        ("network", f"{sum(p.numel() for p in model.parameters()):,} parameters for images of {shape}"),
        ("sde", model.sde),
        ("written", saved),
        ("to draw", f"--mode sample --workdir {workdir}"),
    ]
    print_result(f"Converted from {source}", rows)
    return 0


def _image_size(config: ConfigDict) -> tuple[int, int]:
    size = config.data.image_size or IMAGE_SIZE
    return tuple(size) if isinstance(size, tuple) else (size, size)


def _described(config: ConfigDict, folder: Path) -> tuple[ConfigDict, tuple[int, int, int]]:
    """The configuration that a diffusers folder describes, and the shape of its images."""
    description = diffusers.describe(folder)
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.data.dequantize = False
        if description.score["learned_variance"]:
            config.training.update(objective="hybrid", times="discrete")
        config.sde = ConfigDict(description.sde)
        config.model = ConfigDict(
            dict(name="unet", **description.score, **(unet_defaults() | description.network))
        )
    return config.lock(), description.image_shape


def _checkpoint(model: ScoreModel, weights: Weights, config: ConfigDict) -> Checkpoint:
    """A checkpoint with a fresh optimizer, from which training goes on."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.training.learning_rate, fused=True)
    return Checkpoint(
        step=weights.step,
        model={f"net.{name}": tensor for name, tensor in weights.model.items()},
        ema={f"net.{name}": tensor for name, tensor in weights.ema.items()},
        optimizer=optimizer.state_dict(),
        seconds=0.0,
        ema_updates=weights.step,
    )


def export_checkpoint(config: ConfigDict, workdir: Path, target: str, folder: Path) -> int:
    """Writes the averaged weights of a run for another library; returns the exit code.

    Args:
        config: The run's configuration.
        workdir: The run directory.
        target: A name in `WRITERS`.
        folder: Where to write; must not exist or be empty.

    Raises:
        UserError: If the other library has no such network, or the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give the path of a new folder")
    trained = load_trained(workdir, config, torch.device("cpu"))
    net: nn.Module = trained.score.net
    if not isinstance(net, UNet):
        raise UserError(f"only U-Nets can be written for {target}, not model {config.model.name!r}")
    options = unet_defaults() | {k: v for k, v in config.model.items() if k in unet_defaults()}
    score = dict(
        prediction=config.model.prediction,
        noise_input=trained.score.noise_input,
        learned_variance=trained.score.learned_variance,
    )
    diffusers_writer.write(net, options, score, config.sde.to_dict(), read_data_info(workdir).shape, folder)
    rows = [("model", f"averaged weights after {trained.step:,} training steps"), ("written", folder)]
    print_result(f"Converted to {target}", rows)
    return 0
