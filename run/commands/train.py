"""`--mode train`: starts a training in a run directory, or resumes the one that is there."""

from __future__ import annotations

import signal
from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_diffusion.models.conditions import condition_sizes
from score_diffusion.run.build import build_sde
from score_diffusion.run.builders.data import load_latent_space, load_run_data
from score_diffusion.run.builders.previews import build_preview
from score_diffusion.run.builders.training import (
    build_loop_settings,
    build_trainer,
    initial_weights,
    total_training_steps,
)
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import (
    CONFIG_FILE,
    changed_text,
    differing_keys,
    flatten,
    read_config,
    save_config,
)
from score_diffusion.run.console import format_duration, print_result, warn
from score_diffusion.run.constructor_keys import declared_keys
from score_diffusion.run.data.condition_files import MOST_ROWS, write_conditions
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import (
    DataInfo,
    is_data_picture,
    read_data_info,
    write_data_info,
)
from score_diffusion.run.data.low_resolution import LOW_RESOLUTION, small_copies
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.inference.prompts import write_captions
from score_diffusion.run.resolve_auto import resolve, take_resolved
from score_diffusion.run.training.autoencoding import FIGURES
from score_diffusion.run.training.interruptions import full_disk_explained
from score_diffusion.run.training.log import CSV_FILE, LOG_FILE, LOSS_CURVE
from score_diffusion.run.training.log_targets import LogSettings
from score_diffusion.run.training.previews import Preview, ReconstructionPreview, save_real
from score_diffusion.run.training.run_directory import (
    locked,
    preview_path,
    refuse_if_checkpoints_vanished,
    refuse_if_locked,
)
from score_diffusion.run.training.session import Outcome, train_in_directory
from score_diffusion.run.training.trainer import Trainer

MOST_NAMED = 4  # settings of another run
OF_RUN = ("seed", "data", "sde", "model", "training")  # sections that decide what is trained


def train(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Trains in a run directory, or resumes training there.

    Args:
        config: The configuration.
        workdir: The run directory, created if need be.
        device: Where to train.

    Returns:
        The exit code: 0, or 128 + n when signal n stopped the training.

    Raises:
        UserError: If the directory holds another run or is in use, the data cannot be used, or training
            diverges.
    """
    refuse_if_locked(workdir)
    resumes = _has_checkpoint(workdir)
    if resumes:
        config = take_resolved(config, read_config(workdir))
    _check_same_run(config, workdir, resumes)
    _check_ranks_agree(config)
    dataset = load_run_data(config.data, _recorded_data(config, workdir, resumes), device)
    config = resolve(config, dataset, device)
    initial = None if resumes else initial_weights(config, dataset)
    trainer = build_trainer(config, dataset, device, initial)
    with locked(workdir), full_disk_explained(workdir):
        if _has_checkpoint(workdir) != resumes:
            raise UserError(f"another training has just started in {workdir}: give the same command again")
        return _run(config, dataset, trainer, workdir)


def is_finished(config: ConfigDict, workdir: Path) -> bool:
    """Whether a run directory holds this training, and it has taken all of its steps.

    Raises:
        UserError: If the directory holds another run.
    """
    if not _has_checkpoint(workdir):
        return False
    _check_same_run(take_resolved(config, read_config(workdir)), workdir, True)
    return checkpoint.steps(workdir)[-1] >= total_training_steps(config.training)


def _recorded_data(config: ConfigDict, workdir: Path, resumes: bool) -> DataInfo | None:
    """What the run, or the one that it follows, has recorded about its data; None for a new run."""
    if resumes:
        return read_data_info(workdir)
    return read_data_info(expanded(config.training.run)) if config.training.run else None


def _run(config: ConfigDict, dataset: Dataset, trainer: Trainer, workdir: Path) -> int:
    """Trains in a run directory that is locked."""
    print(changed_text(config))
    if condition_sizes(trainer.model) and not config.training.conditional:
        warn("training.conditional=False: the network takes conditions, and the model will be unconditional")
    space = load_latent_space(config.data, DataInfo.of(dataset), trainer.device, config.sampling.tile)
    preview = build_preview(config, dataset, build_sde(config.sde), space)
    outcome = train_in_directory(
        trainer,
        build_loop_settings(config.training),
        preview,
        workdir,
        lambda: _write_description(config, dataset, workdir, preview),
        _log_settings(config),
    )
    _report(config.training, trainer, workdir, outcome)
    return 128 + outcome.signal if outcome.signal else 0


def _log_settings(config: ConfigDict) -> LogSettings:
    decide = {key: value for key, value in flatten(config).items() if key.split(".")[0] in OF_RUN}
    return LogSettings(decide, config.training.wandb)


def _write_description(
    config: ConfigDict, dataset: Dataset, workdir: Path, preview: Preview | ReconstructionPreview
) -> None:
    save_config(config, workdir)
    write_data_info(workdir, DataInfo.of(dataset))
    save_real(workdir, dataset, preview, config.training.conditional)
    if not config.training.conditional:
        return
    if dataset.vocabulary is not None:
        write_captions(workdir, dataset.held_out_conditions["text"], dataset.vocabulary)
    factor = config.model.upscale
    if factor:
        small = small_copies(dataset.held_out, factor, dataset.scaling, MOST_ROWS)
        write_conditions(workdir, {**dataset.held_out_conditions, LOW_RESOLUTION: small})
    elif dataset.vocabulary is None and dataset.conditions.keys() != {"label"}:
        write_conditions(workdir, dataset.held_out_conditions)


def _has_checkpoint(workdir: Path) -> bool:
    return (workdir / CONFIG_FILE).exists() and checkpoint.exists(workdir)


def _check_same_run(config: ConfigDict, workdir: Path, resumes: bool) -> None:
    """Refuses a directory that holds something else, and settings that differ from those of its run."""
    if not (workdir / CONFIG_FILE).exists():
        if workdir.exists() and any(not _is_ours(path) for path in workdir.iterdir()):
            raise UserError(
                f"{workdir} is not empty and holds no run, {CONFIG_FILE} is missing: give another --workdir"
            )
        return
    if not resumes:
        refuse_if_checkpoints_vanished(workdir)
        return
    saved = read_config(workdir)
    keys = declared_keys(saved) | declared_keys(config)
    if read_data_info(workdir).num_train:
        fixed = [key for key in differing_keys(saved, config) if not keys[key].may_change]
    else:  # weights from another library: only what they are is fixed
        fixed = [key for key in differing_keys(saved, config) if key.startswith(("sde.", "model."))]
    if fixed:
        before, now = flatten(saved), flatten(config)
        in_both = [key for key in fixed if key in before and key in now] or fixed
        changes = [
            f"{key} is {before.get(key, 'absent')!r} there and {now.get(key, 'absent')!r} here"
            for key in in_both[:MOST_NAMED]
        ]
        more = f", and {len(fixed) - len(changes)} more" if len(fixed) > len(changes) else ""
        raise UserError(
            f"{workdir} holds a run with other settings ({', '.join(changes)}{more}): give another --workdir"
        )


def _is_ours(path: Path) -> bool:
    return path.name.startswith(".") or is_data_picture(path)


def _check_ranks_agree(config: ConfigDict) -> None:
    """Refuses ranks that were started with different settings."""
    mine = flatten(config)
    first = processes.from_rank_0(lambda: mine)
    differing = [key for key in mine | first if mine.get(key) != first.get(key)]
    problem = [f"rank {processes.rank()} has another {differing[0]} than rank 0"] if differing else []
    problems = processes.gather(problem)
    for sentence in processes.from_rank_0(lambda: problems or []):
        raise UserError(f"{sentence}: start all processes with the same settings")


def _report(section: ConfigDict, trainer: Trainer, workdir: Path, outcome: Outcome) -> None:
    step, objective = trainer.step, trainer.objective
    noise = " at all noise levels" if objective.uses_times else ""
    rows: list[tuple[str, object]] = [
        ("steps", f"{step:,} of {total_training_steps(section):,}"),
        ("images", f"{step * section.batch_size:,}"),
        ("time", format_duration(outcome.seconds)),
        *([] if outcome.loss is None else [("loss", f"{outcome.loss:.4f}")]),
        *(
            []
            if outcome.accuracy is None
            else [("accuracy", f"{outcome.accuracy:.1%} {objective.accuracy_of}{noise}")]
        ),
        *((FIGURES[name], f"{value:.4g} on held-out samples") for name, value in outcome.figures.items()),
        ("checkpoint", workdir / checkpoint.FOLDER / f"{step:08d}"),
        ("samples", preview_path(workdir, step)),
        ("loss curve", workdir / LOSS_CURVE),
        ("log", workdir / LOG_FILE),
        ("the same as CSV", workdir / CSV_FILE),
    ]
    rows = [(name, value) for name, value in rows if not isinstance(value, Path) or value.exists()]
    if outcome.signal:
        title = f"Training stopped by {signal.Signals(outcome.signal).name}"
        rows.append(("to resume", "give the same command again"))
    elif outcome.ended == "max_minutes":
        title = f"Training stopped at its time limit, training.max_minutes={section.max_minutes:g}"
        rows.append(("to resume", "give the same command again with a larger --config.training.max_minutes"))
    else:
        limit = "steps" if step >= section.steps else "images"
        title = f"Training finished, training.{limit}={section[limit]:,}"
    print_result(title, rows)
