"""Train a score model, draw samples with it, restore images, score held-out data, measure the samples.

    python run/main.py --mode train --config vpsde
    python run/main.py --mode sample --config vpsde --sampler eabm --nfe 20
    python run/main.py --mode interpolate --config vpsde
    python run/main.py --mode restore --config vpsde --task inpaint --mask left
    python run/main.py --mode likelihood --config vpsde
    python run/main.py --mode evaluate --config vpsde
    python run/main.py --mode compare runs/vpsde runs/vesde --config.compare.nfe=8,15,30
    python run/main.py --mode data --config.data.path=FOLDER
    python run/main.py --mode report --config vpsde
    python run/main.py --mode demo runs/vpsde runs/vpsde_cfg
    torchrun --nproc-per-node 4 run/main.py --mode train --config vpsde
    python run/main.py --mode convert --from diffusers FOLDER --workdir runs/NAME

Any key of the configuration can be set: --config.training.steps=1000. --help_config explains the keys; those
of one section with --help_config training. Modes that use a trained model read the configuration from the run
directory, and take only the keys that they use.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # run as a script: import the packages next to this folder, not its files
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path).resolve() != here)]

from absl import flags

from score_diffusion import __version__
from score_diffusion.run.command_line import CommandLine, read_command_line
from score_diffusion.run.errors import UserError, some_of
from score_diffusion.run.help_text import help_text
from score_diffusion.run.standard_streams import prepare_standard_streams

if TYPE_CHECKING:  # imported where they are needed: --help must not wait for torch
    import torch
    from ml_collections import ConfigDict

SYSTEM_MODES = ("train", "sample", "evaluate", "report")
"""The modes that work on a system of several runs as a whole."""
ADVICE = {
    errno.EMFILE: "raise the limit on open files (ulimit -n), or lower data.workers",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EPIPE: "",
    errno.EIO: "check the disk",
}
"""What to do about errors of the operating system, which may come without the name of a file."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    An error of the user's ends in one sentence on stderr and code 2; any other error in its traceback and
    code 1.
    """
    if argv is None:
        prepare_standard_streams()
    try:
        line = read_command_line(sys.argv[1:] if argv is None else argv)
        if not line.flags.quiet:
            return _run(line)
        from score_diffusion.run.console import silence

        with silence():
            return _run(line)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            _report_bug(error)
            return 1
        _explain(sentence)
        return 2


def _sentence(error: Exception) -> str | None:
    """What an error says that the user can put right; None for any other error."""
    if isinstance(error, OSError) and (error.filename or error.errno in ADVICE):
        named, advice = f": {error.filename}" if error.filename else "", ADVICE.get(error.errno or 0, "")
        return f"{error.strerror or error}{named}{f' ({advice})' if advice else ''}"
    if isinstance(error, FileNotFoundError) and not _has_working_directory():
        return "the working directory was deleted: change to another one"
    if isinstance(error, UserError | flags.Error):
        return str(error)
    if isinstance(error, ValueError):
        from score_diffusion.sde_lib import InputError  # here, because importing torch is slow

        return str(error) if isinstance(error, InputError) else None
    return None


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _explain(sentence: str) -> None:
    """Says in one line on stderr why the command ends.

    Processes of one job often fail together: rank 0 prints first, and torchrun ends the others with it.
    torchrun names the process that ends first as the cause, so that those that only lost their connection to
    another one wait.
    """
    rank, sentence = os.environ.get("RANK"), " ".join(sentence.split())
    if rank in (None, "0"):
        print("error:", sentence, file=sys.stderr, flush=True)
        time.sleep(0 if rank is None else 1)
    else:
        time.sleep(3)
        print(f"error of rank {rank}:", sentence, file=sys.stderr)


def _report_bug(error: Exception) -> None:
    print(
        f"error: score-diffusion {__version__} failed unexpectedly. Please report this with the command and "
        "the traceback below.",
        file=sys.stderr,
    )
    traceback.print_exception(error)


def _run(line: CommandLine) -> int:
    values = line.flags
    if values.help:
        usage = str(__doc__)
        if Path(sys.argv[0]).stem == "score-diffusion":  # as installed
            usage = usage.replace("python run/main.py", "score-diffusion")
        print(help_text(usage, values.get_help()))
        return 0
    if values.version:
        print(f"score-diffusion {__version__}")
        return 0
    if "torch" not in sys.modules and not values.quiet and os.environ.get("RANK", "0") == "0":
        print("loading PyTorch ...", file=sys.stderr, flush=True)  # for seconds that say nothing else
    if values.help_config is not None:
        from score_diffusion.run.commands.help_config import help_config

        return help_config(values.help_config)
    if values.mode == "sample" and values.sampler == "list":
        return _list_samplers()
    if values.mode == "convert":
        return _convert(line)
    from score_diffusion.run.distributed.devices import pick_device
    from score_diffusion.run.distributed.processes import joined_processes
    from score_diffusion.run.machine import memory_explained

    if values.mode == "compare":
        from score_diffusion.run.commands.compare import compare

        if values.dry_run:
            raise UserError("--dry_run has no meaning for --mode compare, whose runs have their own settings")
        with joined_processes(), memory_explained(values.mode):
            return compare(line.runs, line.overrides, line.workdir, pick_device(values.device))
    if values.mode == "demo":
        return _demo(line)
    if _is_of_system(line):
        with joined_processes(), memory_explained(values.mode):
            return _run_system(line, pick_device(values.device))
    with memory_explained(values.mode):
        config = _configuration(line)
    with joined_processes(), memory_explained(values.mode):
        if values.dry_run:
            from score_diffusion.run.commands.dry_run import dry_run

            return dry_run(values.mode, config, line.workdir)
        # A mode is a function of its name in a file of its name, and imports what it needs itself.
        command = getattr(importlib.import_module(f"score_diffusion.run.commands.{values.mode}"), values.mode)
        return command(config, line.workdir, pick_device(values.device))


def _demo(line: CommandLine) -> int:
    """Runs `--mode demo`, whose runs have their own settings."""
    from score_diffusion.run.demo.demo import demo
    from score_diffusion.run.machine import memory_explained

    if line.flags.dry_run:
        raise UserError("--dry_run has no meaning for --mode demo, which computes nothing by itself")
    if line.runs and line.flags.workdir:
        raise UserError("--mode demo takes run directories or one --workdir, not both")
    with memory_explained("demo"):
        return demo(line.runs or (line.workdir,), line.overrides, line.flags.device)


def _is_of_system(line: CommandLine) -> bool:
    """Whether a command is about a system of several runs: the one that its directory holds, or, to train it
    or where there is no directory yet, the one that its experiment defines.
    """
    from score_diffusion.run.systems.configuration import names_system
    from score_diffusion.run.systems.system import is_system

    config_is_given = line.flags["config"].present or not line.flags.workdir
    if line.workdir.exists() and (line.flags.mode not in ("train", "data") or not config_is_given):
        return is_system(line.workdir)
    return bool(config_is_given) and names_system(line.config)


def _run_system(line: CommandLine, device: torch.device) -> int:
    from score_diffusion.run.systems.configuration import load_system, read_stages
    from score_diffusion.run.systems.system import is_system, read_system

    mode, workdir = line.flags.mode, line.workdir
    if mode == "train" and line.flags["config"].present:
        system, configs = load_system(line.config, workdir, line.overrides)
    elif is_system(workdir):
        system = read_system(workdir)
        configs = read_stages(system, line.overrides, mode)
    else:
        raise UserError(f"{workdir} holds no system: train it by --mode train --config {line.config}")
    if mode not in SYSTEM_MODES:
        system.refuse_whole(mode)
    if line.flags.dry_run:
        from score_diffusion.run.system_commands.dry_run import dry_run

        return dry_run(mode, system, configs)
    command = getattr(importlib.import_module(f"score_diffusion.run.system_commands.{mode}"), mode)
    return command(system, configs, device)


def _convert(line: CommandLine) -> int:
    """Runs `--mode convert`, the only mode that takes a path after its options."""
    from score_diffusion.run.commands.convert import READERS, WRITERS, export_checkpoint, import_checkpoint
    from score_diffusion.run.config import apply_overrides, load_config, read_config
    from score_diffusion.run.keys import CONVERT_TO

    source, target = line.flags["from"].value, line.flags["to"].value
    if line.flags.dry_run:
        raise UserError("--dry_run has no meaning for --mode convert, which computes nothing")
    if (source is None) == (target is None):
        raise UserError(
            f"--mode convert needs one of --from={'|'.join(READERS)} and --to={'|'.join(WRITERS)}"
        )
    choices = READERS if target is None else WRITERS
    name = str(source if target is None else target)
    if name not in choices:
        raise UserError(f"unknown format {name!r}: choose one of {some_of(name, choices)} (docs/networks.md)")
    if line.path is None:
        raise UserError("--mode convert needs the path of the checkpoint after its options")
    if target is not None:
        config = apply_overrides(read_config(line.workdir), line.overrides, CONVERT_TO)
        return export_checkpoint(config, line.workdir, name, line.path)
    return import_checkpoint(load_config(line.config), line.overrides, line.workdir, name, line.path)


def _list_samplers() -> int:
    from score_diffusion.run.console import print_table
    from score_diffusion.samplers import sampler_table

    print_table(sampler_table())
    return 0


def _configuration(line: CommandLine) -> ConfigDict:
    """The configuration to work with: the experiment's for training, else that of the run directory."""
    from score_diffusion.run.config import CONFIG_FILE, load_config, read_run
    from score_diffusion.run.fit_to_data import experiment

    mode, name, workdir = line.flags.mode, line.config, line.workdir
    if mode in ("train", "data"):
        config_is_given = line.flags["config"].present or not line.flags.workdir
        if config_is_given or not (workdir / CONFIG_FILE).exists():
            return experiment(name, line.overrides, mode)
    elif not workdir.exists():
        load_config(name)  # a mistyped name deserves its own message
    return read_run(workdir, line.overrides, mode)


if __name__ == "__main__":
    code = main()
    if code and "RANK" in os.environ:  # taking a broken process group down in order may hang or crash
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
