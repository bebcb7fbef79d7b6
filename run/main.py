"""Train a score model, draw samples with it, score held-out data, measure the samples.

    python run/main.py --mode train --config vpsde
    python run/main.py --mode sample --config vpsde --sampler eabm --nfe 20
    python run/main.py --mode likelihood --config vpsde
    python run/main.py --mode evaluate --config vpsde
    python run/main.py --mode data --config.data.path=FOLDER
    python run/main.py --mode report --config vpsde
    torchrun --nproc-per-node 4 run/main.py --mode train --config vpsde
    python run/main.py --mode convert --from diffusers FOLDER --workdir runs/NAME

Any key of the configuration can be set: --config.training.steps=1000. The other modes read it from the run
directory and take keys of the sections sampling and likelihood alone.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # run as a script: import the packages beside this folder, not this folder's files
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path).resolve() != here)]

from absl import flags

from score_diffusion.run.errors import UserError

if TYPE_CHECKING:  # imported where they are needed: --help must not wait for torch
    import torch
    from ml_collections import ConfigDict

MODES = ("train", "sample", "likelihood", "evaluate", "data", "report", "convert")
DEVICES = ("auto", "cpu", "cuda")


def define_flags() -> flags.FlagValues:
    """The flags of the command; --config.section.key is taken out before they are parsed."""
    values = flags.FlagValues()
    flags.DEFINE_enum("mode", None, MODES, "What to do.", flag_values=values)
    flags.DEFINE_string(
        "config",
        "vpsde",
        "Experiment: a name or the path of a .py file; training goes on in a --workdir without it.",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "Run directory; by default runs/NAME.", flag_values=values)
    flags.DEFINE_string(
        "sampler",
        None,
        "Name of a sampler, short for --config.sampling.sampler; list shows them all.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "nfe", None, "Network evaluations: short for --config.sampling.nfe.", flag_values=values
    )
    flags.DEFINE_string(
        "grid", None, "Time grid of the sampler: short for --config.sampling.grid.", flag_values=values
    )
    flags.DEFINE_enum(
        "device", "auto", DEVICES, "Where to compute; auto takes CUDA where there is one.", flag_values=values
    )
    flags.DEFINE_string(
        "from", None, "Convert a checkpoint of score_sde_pytorch, diffusers, ....", flag_values=values
    )
    flags.DEFINE_string("to", None, "Convert the run's checkpoint to diffusers.", flag_values=values)
    flags.DEFINE_boolean(
        "dry_run", False, "Print configuration, size and memory, and stop.", flag_values=values
    )
    flags.DEFINE_boolean("help", False, "Show this text.", flag_values=values)
    return values


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code, 2 after a sentence on stderr for an error of the user's."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except OSError as error:
        message = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    except (flags.Error, ValueError) as error:
        message = str(error)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr)
        return 130
    return _fail(message)


def _fail(message: str) -> int:
    """Says why the command ends, in one line on stderr, and ends with code 2.

    Processes of one job often fail together: rank 0 speaks first, and torchrun ends the others with it. The
    one that ends first torchrun names as the cause, which those that lost their connection to it are not.
    """
    rank, message = os.environ.get("RANK"), " ".join(message.split())
    if rank in (None, "0"):
        print("error:", message, file=sys.stderr, flush=True)
        time.sleep(0 if rank is None else 1)
    else:
        time.sleep(3)
        print(f"error of rank {rank}:", message, file=sys.stderr)
    return 2


def _run(argv: list[str]) -> int:
    from score_diffusion.run.config import (
        split_overrides,  # here, so that --help and mistyped flags are answered at once
    )

    values = define_flags()
    arguments, overrides = split_overrides(argv)
    _, *unknown = values(["main.py", *arguments])
    if values.help:
        print(f"{__doc__}\n{values.get_help()}")
        return 0
    if values.mode is None and not unknown:
        raise UserError(f"--mode is required; choose one of {', '.join(MODES)}")
    path = unknown.pop(0) if unknown and values.mode == "convert" else None
    if unknown:
        raise UserError(f"unknown argument {unknown[0]!r}; every option has the form --name=value")
    if values.mode == "sample" and values.sampler == "list":
        return _list_samplers()
    for name in ("sampler", "nfe", "grid"):
        if values[name].value is not None:
            overrides.append((f"sampling.{name}", str(values[name].value)))
    workdir = Path(values.workdir or f"runs/{Path(values.config).stem.replace(':', '_')}")
    if values.mode == "convert":
        if values.dry_run:
            raise UserError("--dry_run has no meaning for --mode convert, which computes nothing")
        return _convert(values, workdir, overrides, path)
    config = _resolve(values, workdir, overrides)
    from score_diffusion.run.distributed.processes import processes

    with processes():
        if values.dry_run:
            return _dry_run(values.mode, config, workdir)
        return _dispatch(values.mode, config, workdir, _device(values.device))


def _convert(
    values: flags.FlagValues, workdir: Path, overrides: list[tuple[str, str]], path: str | None
) -> int:
    """Runs `--mode convert`, which alone takes a path behind its options."""
    from score_diffusion.run.commands.convert import READERS, WRITERS, export_checkpoint, import_checkpoint
    from score_diffusion.run.config import apply_overrides, load_config, read_config

    source, target = values["from"].value, values["to"].value
    if (source is None) == (target is None):
        raise UserError(
            f"--mode convert needs one of --from={'|'.join(READERS)} and --to={'|'.join(WRITERS)}"
        )
    choices = READERS if target is None else WRITERS
    if (source or target) not in choices:
        raise UserError(f"unknown format {source or target!r}; choose one of {', '.join(choices)}")
    if path is None:
        raise UserError("--mode convert needs the path of the checkpoint, behind its options")
    if target is not None:
        return export_checkpoint(read_config(workdir), workdir, target, Path(path))
    return import_checkpoint(
        apply_overrides(load_config(values.config), overrides), workdir, source, Path(path)
    )


def _list_samplers() -> int:
    from score_diffusion.run.console import print_table
    from score_diffusion.samplers import sampler_table

    print_table(sampler_table())
    return 0


def _resolve(values: flags.FlagValues, workdir: Path, overrides: list[tuple[str, str]]) -> ConfigDict:
    """The configuration to work with: the experiment's for training, else that of the run directory."""
    from score_diffusion.run.config import CONFIG_FILE, apply_overrides, load_config, read_config
    from score_diffusion.run.data.info import read_data_info

    mode, name = values.mode, values.config
    goes_on = values.workdir and not values["config"].present and (workdir / CONFIG_FILE).exists()
    if mode in ("train", "data"):
        return apply_overrides(read_config(workdir) if goes_on else load_config(name), overrides)
    if not workdir.exists():
        load_config(name)  # a mistyped name deserves its own message
    config = read_config(workdir)
    for key, _ in overrides:
        section = key.partition(".")[0]
        of_data = key == "data.path" or section == "data" and read_data_info(workdir).num_train == 0
        if section not in ("sampling", "likelihood") and not of_data:
            raise UserError(
                f"--config.{key} cannot change after training: {mode} takes keys of sampling and likelihood, "
                "and data.path"
            )
    return apply_overrides(config, overrides)


def _device(name: str) -> torch.device:
    """The device of this process: of several on a machine with GPUs, each has its own."""
    import torch

    from score_diffusion.run.distributed.processes import local_rank, world_size

    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise UserError("--device cuda was asked for and there is no CUDA device: use --device cpu")
        return torch.device("cpu")
    if world_size() == 1:
        return torch.device("cuda")
    if local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"each process needs a GPU of its own, and there are {torch.cuda.device_count()}: "
            "start as many with --nproc-per-node, or use --device cpu"
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def _dry_run(mode: str, config: ConfigDict, workdir: Path) -> int:
    from score_diffusion.run.build import data_options
    from score_diffusion.run.commands.dry_run import dry_run
    from score_diffusion.run.data.info import DataInfo, read_data_info
    from score_diffusion.run.data.load import load_dataset
    from score_diffusion.run.training.resolve_auto import resolve_levels
    from score_diffusion.run.training.trainer import check

    if mode not in ("train", "data"):
        return dry_run(config, read_data_info(workdir))
    check(config.training)
    dataset = load_dataset(data_options(config.data))
    return dry_run(resolve_levels(config, dataset), DataInfo.of(dataset))


def _dispatch(mode: str, config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Each mode imports what it needs: TensorBoard is slow to import and only training writes it."""
    from score_diffusion.run.distributed.processes import is_first

    if mode in ("data", "report") and not is_first():
        return 0  # there is nothing to share
    if mode == "train":
        from score_diffusion.run.commands.train import train as command
    elif mode == "sample":
        from score_diffusion.run.commands.sample import sample as command
    elif mode == "data":
        from score_diffusion.run.commands.data import inspect_data as command
    elif mode == "likelihood":
        from score_diffusion.run.commands.likelihood import likelihood as command
    elif mode == "report":
        from score_diffusion.run.commands.report import report as command
    else:
        from score_diffusion.run.commands.evaluate import evaluate as command
    return command(config, workdir, device)


if __name__ == "__main__":
    code = main()
    if code and "RANK" in os.environ:  # taking a broken process group down in order may hang or crash
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
