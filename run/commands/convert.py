"""Checkpoints of other libraries into run directories, and back.

    --mode convert --from score_sde_pytorch FILE.pth --config score_sde:vp_ddpmpp_continuous
    --mode convert --from guided_diffusion FILE.pt --config adm64           (or guided_diffusion_legacy)
    --mode convert --from improved_diffusion FILE.pt --config adm64 --config.model.channels=128 ...
    --mode convert --from diffusers FOLDER                                  (or edm FILE.pkl, ncsnv2 FILE.pth)
    --mode convert --to diffusers FOLDER --workdir RUN

The resulting run directory samples, scores and resumes training. A .pth or .pt file of a U-Net does not say
what network it is for: the configuration must, and `--config.data.image_size=` the size of the images if it
is not 32x32, `--config.data.channels=` their channels if they are not 3. The others describe themselves; keys
of `sde` and `model` given on the command line take precedence. What a network was trained on is not known:
`--config.data.path=` names the data to score and to train on, now or with each command.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import cast

import torch
from ml_collections import ConfigDict
from torch import nn

from score_diffusion.models import AUTOENCODERS, Autoencoder, AutoencoderKL, NCSNv2, UNet
from score_diffusion.run.build import (
    IMAGE_NETWORKS,
    assemble_model,
    build_sde,
    data_options,
    network_options,
    run_once,
)
from score_diffusion.run.builders.autoencoders import assemble_autoencoder, load_autoencoder, run_autoencoder
from score_diffusion.run.builders.encoders import AUTOENCODING
from score_diffusion.run.builders.inference import load_score_model
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.checkpoints.formats import (
    diffusers,
    diffusers_autoencoders,
    diffusers_writer,
    edm,
    guided_diffusion,
    ncsnv2,
    score_sde_pytorch,
)
from score_diffusion.run.checkpoints.formats.description import Description, Weights
from score_diffusion.run.config import Overrides, apply_overrides, save_config
from score_diffusion.run.configs.base import unet_defaults
from score_diffusion.run.console import print_result
from score_diffusion.run.constructor_keys import complete
from score_diffusion.run.data.info import (
    DataInfo,
    is_data_picture,
    load_data,
    read_data_info,
    write_data_info,
)
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError
from score_diffusion.run.keys import CONVERT_FROM
from score_diffusion.sde_lib import ScoreModel

GREY_LEVELS, COLOURS = 256, 3
IMAGE_SIZE = 32  # of CIFAR-10, where nothing says another
TRIED_SIDE = 128  # pixels of a side at which a network is tried, at most twice this; a power of 2


@dataclass(frozen=True)
class Reader:
    """How the files of one format are read.

    A format whose files do not describe their network may still decide some of its arguments.
    """

    read: Callable[[nn.Module, Path], Weights]
    """The weights of a file as those of a network on the device "meta"."""
    describe: Callable[[Path, tuple[int, int]], Description] | None = None
    """The network of a file, for images of a size where the file does not say it; None if it says nothing."""
    implied: Callable[[ConfigDict], dict[str, object]] = lambda config: {}
    """Keys of the configuration that follow from the format, unless they are given."""
    notes: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
    """What was assumed where neither the format nor its files say it."""


def _score_sde(groups_are_known: bool) -> Callable[[nn.Module, Path], Weights]:
    return lambda net, path: score_sde_pytorch.read(_unet(net), path, groups_are_known)


def _guided(legacy: bool) -> Callable[[nn.Module, Path], Weights]:
    return lambda net, path: guided_diffusion.read(_unet(net), path, legacy)


def _describe_diffusers(path: Path) -> Description:
    is_autoencoder = diffusers_autoencoders.is_autoencoder(path)
    return (diffusers_autoencoders if is_autoencoder else diffusers).describe(path)


def _read_diffusers(net: nn.Module, path: Path) -> Weights:
    return (
        diffusers_autoencoders.read(net, path)
        if isinstance(net, AutoencoderKL)
        else diffusers.read(_unet(net), path)
    )


def _unet(net: nn.Module) -> UNet:
    if not isinstance(net, UNet):
        raise UserError(f"this format has U-Nets: give the --config of one, not of a {type(net).__name__}")
    return net


def _ddpm_groups(config: ConfigDict) -> dict[str, object]:
    return {"model.norm_groups": score_sde_pytorch.DDPM_GROUPS}


def _large_variance(config: ConfigDict) -> dict[str, object]:
    """guided-diffusion samples with the large variance where none is learned (sigma_small=False)."""
    keys = ("sampling.ddpm.variance", "likelihood.variance")
    return {} if config.model.get("learned_variance") else dict.fromkeys(keys, "large")


def _rescaled_timesteps(config: ConfigDict) -> dict[str, object]:
    """improved-diffusion gives its networks k · 1000/N at step k, too (rescale_timesteps)."""
    return _large_variance(config) | {"model.embedding_scale": 1000 / config.sde.N}


def _guided_notes(config: ConfigDict) -> tuple[str, ...]:
    variance = f"variance of the reverse steps: {config.sampling.ddpm.variance} (learn_sigma, sigma_small)"
    if config.sde.get("N") in (None, 1000):
        return (variance,)
    scale = config.model.embedding_scale
    return (
        variance,
        f"noise input: step k times {scale:g} (model.embedding_scale); it is 1 for rescale_timesteps=False, "
        f"{1000 / config.sde.N:g} for True, improved-diffusion's default (--from improved_diffusion)",
    )


READERS: dict[str, Reader] = {
    "score_sde_pytorch": Reader(_score_sde(groups_are_known=False)),
    "score_sde_pytorch:ddpm": Reader(_score_sde(groups_are_known=True), implied=_ddpm_groups),
    "score_sde_pytorch:ncsnpp": Reader(_score_sde(groups_are_known=True)),
    "ncsnv2": Reader(lambda net, path: ncsnv2.read(cast(NCSNv2, net), path), ncsnv2.describe),
    "diffusers": Reader(_read_diffusers, lambda path, size: _describe_diffusers(path)),
    "guided_diffusion": Reader(_guided(legacy=False), implied=_large_variance, notes=_guided_notes),
    "guided_diffusion_legacy": Reader(_guided(legacy=True), implied=_large_variance, notes=_guided_notes),
    "improved_diffusion": Reader(_guided(legacy=True), implied=_rescaled_timesteps, notes=_guided_notes),
    "edm": Reader(lambda net, path: edm.read(_unet(net), path), lambda path, size: edm.describe(path)),
}
WRITERS = ("diffusers",)


def import_checkpoint(
    config: ConfigDict, overrides: Overrides, workdir: Path, source: str, path: Path
) -> int:
    """Makes a run directory of another library's checkpoint; returns the exit code.

    Args:
        config: The configuration: the network's, unless the file describes it.
        overrides: Keys given on the command line, and their values.
        workdir: The run directory, which must not hold a run.
        source: A name in `READERS`.
        path: The file or folder.

    Raises:
        UserError: If the file cannot be used, does not fit the configuration, or the directory holds a run.
    """
    if workdir.exists() and not (workdir.is_dir() and all(map(is_data_picture, workdir.iterdir()))):
        raise UserError(f"{workdir} is not empty: give another --workdir for the converted run")
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    reader = READERS[source]
    config, shape, notes = _configured(config, overrides, reader, path)
    info = DataInfo(path.stem, shape, Scaling(levels=GREY_LEVELS), 0, 0)
    if config.data.path:
        load_data(data_options(config.data), info)  # for its checks
    sde = build_sde(config.sde)
    autoencodes = config.model.name in AUTOENCODERS
    with torch.device("meta"):  # shapes only: the file's tensors are the weights
        assemble = assemble_autoencoder if autoencodes else partial(assemble_model, sde=sde)
        model: nn.Module = assemble(config.model, shape=shape)
    net = model if autoencodes else cast(nn.Module, model.net)
    weights = reader.read(net, path)
    net.load_state_dict(dict(weights.ema), assign=True)
    small = (shape[0], *_small_size(net, shape[1:]))
    if isinstance(model, Autoencoder):
        run_autoencoder(model, small)
    else:
        run_once(cast(ScoreModel, model), small)
    with _nothing_left_on_failure(workdir):
        saved = checkpoint.save(workdir, _checkpoint(model, weights, config), config.training.keep)
        write_data_info(workdir, info)
        save_config(config, workdir)
    rows = [
        ("checkpoint", path),
        ("network", f"{sum(p.numel() for p in model.parameters()):,} parameters for images of {shape}"),
        *([] if autoencodes else [("sde", sde)]),
        *(("assumed", note) for note in (*notes, *weights.notes, *reader.notes(config))),
        ("written", saved),
        ("to use it", f"--mode train --config.data.autoencoder={workdir}")
        if autoencodes
        else ("to draw", f"--mode sample --workdir {workdir}"),
    ]
    print_result(f"Converted from {source}", rows)
    return 0


def _small_size(net: nn.Module, size: Sequence[int]) -> list[int]:
    """A size that the network takes if and only if it takes the given one, which may be larger than fits into
    memory: large sides give way to others with the same remainder.
    """
    divisor = 2 ** (len(net.encoder) - 1) if isinstance(net, UNet) else getattr(net, "factor", 1)
    enough = max(TRIED_SIDE, divisor)
    return [side if side <= enough else enough + side % enough for side in size]


def _configured(
    config: ConfigDict, overrides: Overrides, reader: Reader, path: Path
) -> tuple[ConfigDict, tuple[int, int, int], tuple[str, ...]]:
    """The complete configuration, the shape of the images, and what was assumed."""
    of_data = [(key, text) for key, text in overrides if key.startswith("data.")]
    given = apply_overrides(config, of_data, CONVERT_FROM)
    size = given.data.image_size or IMAGE_SIZE
    size = tuple(size) if isinstance(size, tuple) else (size, size)
    if reader.describe is not None:
        description = reader.describe(path, size)
        config = apply_overrides(_described(given, description), overrides, CONVERT_FROM)
        return config, description.image_shape, description.notes
    config = apply_overrides(config, overrides, CONVERT_FROM)
    implied = reader.implied(config) if config.model.name == "unet" else {}
    with config.unlocked(), config.ignore_type():
        for key, value in implied.items():
            section, _, name = key.rpartition(".")
            if key not in dict(overrides):
                reduce(ConfigDict.get, section.split("."), config)[name] = value
    return config.lock(), (config.data.channels or COLOURS, *size), ()


def _described(config: ConfigDict, description: Description) -> ConfigDict:
    """The configuration with the network, the SDE and the sampling that a file describes."""
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.data.dequantize = False
        if description.name in AUTOENCODERS:
            config.training.objective = AUTOENCODING
        if description.score["learned_variance"]:
            config.training.update(objective="hybrid", times="discrete")
        config.sde = ConfigDict(dict(description.sde))
        config.model = ConfigDict({"name": description.name, **description.score, **description.network})
        complete(config)
        for section in (config.sampling.ddpm, config.likelihood):
            section.update(variance=description.variance, clip=description.clip)
        config.sampling.ddim.clip = description.clip
        if description.sampler is not None:
            config.sampling.sampler = description.sampler
    return config.lock()


def _checkpoint(model: nn.Module, weights: Weights, config: ConfigDict) -> Checkpoint:
    """A checkpoint with a new optimizer, from which training resumes."""
    prefix = "net." if hasattr(model, "net") else ""
    parameters = [torch.zeros(0) for _ in model.parameters()]  # only their number enters its state
    optimizer = torch.optim.Adam(parameters, lr=config.training.learning_rate, fused=True)
    return Checkpoint(
        step=weights.step,
        model={f"{prefix}{name}": tensor for name, tensor in weights.model.items()},
        ema={f"{prefix}{name}": tensor for name, tensor in weights.ema.items()},
        optimizer=optimizer.state_dict(),
        seconds=0.0,
        ema_updates=weights.step,
    )


@contextmanager
def _nothing_left_on_failure(folder: Path) -> Iterator[None]:
    """Removes what was written to a folder if writing fails, so that the same command can be given again."""
    before = {folder, *folder.iterdir()} if folder.is_dir() else set()
    try:
        yield
    except BaseException:
        new = [path for path in (*folder.glob("*"), *folder.glob(".*"), folder) if path not in before]
        for path in new:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        raise


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
    if config.model.name in AUTOENCODERS:
        return _export_autoencoder(config, workdir, target, folder)
    if config.model.name not in IMAGE_NETWORKS:
        raise UserError(
            f"only U-Nets and autoencoders can be written for {target}, not model {config.model.name!r}"
        )
    model, step, weights = load_score_model(workdir, config, torch.device("cpu"))
    info, options = read_data_info(workdir), {key: config.model.get(key) for key in unet_defaults()}
    options["out_channels"] = getattr(model.net, "out_channels", None)
    with _nothing_left_on_failure(folder):
        notes = diffusers_writer.write(model, options, config.sde.to_dict(), info.shape, folder)
    if info.decoded is not None:
        notes = (*notes, f"it draws latents, which the autoencoder of {config.data.autoencoder} decodes")
    rows: list[tuple[str, object]] = [
        ("model", f"{weights} after {step:,} training steps"),
        ("written", folder),
        *(("note", note) for note in notes),
    ]
    print_result(f"Converted to {target}", rows)
    return 0


def _export_autoencoder(config: ConfigDict, workdir: Path, target: str, folder: Path) -> int:
    """Writes the averaged weights of an autoencoder; returns the exit code."""
    net, step = load_autoencoder(workdir)
    if not isinstance(net, AutoencoderKL):
        raise UserError(
            f"only autoencoders with Gaussian latents can be written for {target}, not {config.model.name!r}"
        )
    with _nothing_left_on_failure(folder):
        options, shape = network_options(config.model), read_data_info(workdir).shape
        diffusers_autoencoders.write(net, options, shape, folder)
    rows = [("model", f"averaged weights after {step:,} training steps"), ("written", folder)]
    print_result(f"Converted to {target}", rows)
    return 0
