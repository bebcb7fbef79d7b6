"""Training from Python: an experiment as `--mode train`, or one's own network and data in the same engine."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from score_diffusion.run.commands.train import train as train_command
from score_diffusion.run.config import apply_overrides
from score_diffusion.run.distributed.devices import pick_device
from score_diffusion.run.files import default_workdir, expanded
from score_diffusion.run.fit_to_data import experiment
from score_diffusion.run.python.run import Run, load_run
from score_diffusion.run.setting_files import dotted


def train(
    config: str | ConfigDict = "vpsde",
    workdir: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    *,
    device: str = "auto",
) -> Run:
    """Trains as `--mode train` does, or resumes the training of the directory; returns the trained model.

        run = train("vpsde", "runs/digits", {"training.steps": 2000, "training.batch_size": 64})

    Args:
        config: The name of an experiment or the path of its file, as `--config`, or a configuration.
        workdir: The run directory; by default runs/NAME, runs/own for a configuration.
        settings: Keys of the configuration with their values: {"training.steps": 2000}, or in sections,
            {"training": {"steps": 2000}}.
        device: "auto" for CUDA where there is one, "cuda" or "cpu".

    Raises:
        UserError: If a setting is wrong, the directory holds another run, or training diverges.
        KeyboardInterrupt: After Ctrl-C, when the step is done and its checkpoint is saved.
    """
    overrides = dotted(settings or {})
    if isinstance(config, str):
        resolved, folder = experiment(config, overrides), default_workdir(config)
    else:
        resolved, folder = apply_overrides(config, overrides), default_workdir("own")
    folder = folder if workdir is None else expanded(str(workdir))
    code = train_command(resolved, folder, pick_device(device))
    if code:  # 128 + the signal that stopped it
        raise stopped_by(code - 128)
    return load_run(folder, device)


def stopped_by(number: int) -> KeyboardInterrupt:
    """The exception for a training that a signal stopped."""
    return KeyboardInterrupt(f"training stopped by {signal.Signals(number).name}: call it again to resume")
