"""One's own network and data set in the engine of `--mode train`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from torch import nn
from torch.utils.data import Dataset as TorchDataset

from score_diffusion.run.build import data_options
from score_diffusion.run.builders.previews import build_preview
from score_diffusion.run.builders.training import (
    assemble_trainer,
    build_loop_settings,
    build_times,
)
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import CONFIG_FILE, apply_overrides, flatten, load_config
from score_diffusion.run.data.info import DataInfo, read_data_info, write_data_info
from score_diffusion.run.data.load import load_arrays
from score_diffusion.run.distributed.devices import pick_device
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded, write_json
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.json_files import read_json
from score_diffusion.run.key_types import Values, with_tuples
from score_diffusion.run.keys import KEYS
from score_diffusion.run.python.run import OWN_FILE, Run
from score_diffusion.run.python.training import stopped_by
from score_diffusion.run.resolve_auto import resolve_precision
from score_diffusion.run.setting_files import dotted
from score_diffusion.run.training.interruptions import full_disk_explained
from score_diffusion.run.training.log_targets import LogSettings
from score_diffusion.run.training.previews import Preview, ReconstructionPreview, save_real
from score_diffusion.run.training.run_directory import locked, refuse_if_checkpoints_vanished
from score_diffusion.run.training.session import train_in_directory
from score_diffusion.sde_lib import SDE, VPSDE, ScoreModel

SECTIONS = ("seed", "data", "training")  # that decide the training of one's own network
FIELDS = {"model": Values(kind=str), "settings": Values(kind=dict)}


class Trainer:
    """Trains one's own network on one's own data as `train` does: log, checkpoints, averages, exact resuming.

        run = Trainer(net, images, VPSDE(), workdir="runs/mine").fit(steps=5000)

    Args:
        net: A network, called as net(x, noise) or net(x, noise, cond) with x (B, *shape) and noise (B,); or a
            `ScoreModel` of one, whose SDE and prediction then hold.
        data: An array or tensor of whole-numbered pixels (N, H, W) or (N, H, W, C), or of numbers: points
            (N, D), otherwise channels first; (train, test); a dictionary with x_train and optionally y_train,
            x_test, ...; or a torch data set of samples or of (sample, label). A tenth is held out if there is
            no test set.
        sde: The SDE; None for the `ScoreModel`'s, or for VPSDE().
        workdir: Where checkpoints, log and pictures are kept, and from where the same Trainer resumes; None
            for a folder that is removed with it.
        prediction: What the network predicts; None for "v", or for the `ScoreModel`'s.
        settings: Keys of the configuration except for those of `model` and `sde`:
            {"training.batch_size": 128}.
        device: "auto" for CUDA where there is one, "cuda" or "cpu".

    Raises:
        UserError: If the data or a setting cannot be used.
    """

    def __init__(
        self,
        net: nn.Module,
        data: object,
        sde: SDE | None = None,
        *,
        workdir: str | Path | None = None,
        prediction: str | None = None,
        settings: Mapping[str, object] | None = None,
        device: str = "auto",
    ) -> None:
        self._temporary = None if workdir else tempfile.TemporaryDirectory(prefix="score_diffusion-")
        self.workdir = expanded(str(workdir or self._temporary.name))  # type: ignore[union-attr]
        self.model = _score_model(net, sde, prediction)
        self.device = pick_device(device)
        overrides = dotted(settings or {})
        for name, _ in overrides:
            if name.startswith(("model.", "sde.")):
                raise UserError(
                    f"{name} is not for a network of your own: give the network and the SDE themselves"
                )
        self.config = apply_overrides(load_config("vpsde"), overrides)
        self.dataset = load_arrays(_arrays(data), data_options(self.config.data))

    def fit(self, steps: int) -> Run:
        """Trains until so many steps are done, from the newest checkpoint of `workdir` if there is one.

        Returns:
            The model with averaged weights.

        Raises:
            UserError: If `workdir` holds another training, or training diverges.
            KeyboardInterrupt: After Ctrl-C, when the step is done and its checkpoint is saved.
        """
        config = apply_overrides(self.config, [("training.steps", steps)])
        config = resolve_precision(config, self.device, self.dataset.shape)
        trainer = assemble_trainer(config, self.dataset, self.model, self.device)
        preview = build_preview(config, self.dataset, self.model.sde)
        with locked(self.workdir), full_disk_explained(self.workdir):
            self._check_same_training(config)
            outcome = train_in_directory(
                trainer,
                build_loop_settings(config.training),
                preview,
                self.workdir,
                self._description(config, preview),
                self._log_settings(config),
            )
        if outcome.signal:
            raise stopped_by(outcome.signal)
        first_time, info = build_times(config.training, self.model.sde).first, DataInfo.of(self.dataset)
        trained = TrainedModel(trainer.average, self.model.sde, info, trainer.step, first_time)
        return Run(config, lambda _: trained, self.workdir)

    def _record(self, config: ConfigDict) -> dict[str, Any]:
        """What decides the training, as far as it can be written down."""
        model, flat = self.model, flatten(config)
        count = sum(p.numel() for p in model.parameters())
        words = f"{type(model.net).__name__} of {count:,} weights for {model.prediction}, {model.sde}"
        return {"model": words, "settings": {key: flat[key] for key in flat if key.split(".")[0] in SECTIONS}}

    def _log_settings(self, config: ConfigDict) -> LogSettings:
        record = self._record(config)
        return LogSettings(record["settings"] | {"model": record["model"]}, config.training.wandb)

    def _description(
        self, config: ConfigDict, preview: Preview | ReconstructionPreview
    ) -> Callable[[], None]:
        def write() -> None:
            write_json(self.workdir / OWN_FILE, self._record(config))
            write_data_info(self.workdir, DataInfo.of(self.dataset))
            save_real(self.workdir, self.dataset, preview, config.training.conditional)

        return write

    def _check_same_training(self, config: ConfigDict) -> None:
        """Refuses a directory that holds another training."""
        other, path = f"{self.workdir} holds another training", self.workdir / OWN_FILE
        if (self.workdir / CONFIG_FILE).exists():
            raise UserError(f"{other}, of an experiment: give another workdir")
        if not checkpoint.exists(self.workdir):
            refuse_if_checkpoints_vanished(self.workdir)
            return
        saved, now = read_json(path, FIELDS, "restore it, or give another workdir"), self._record(config)
        if saved["model"] != now["model"]:
            raise UserError(f"{other}, of {saved['model']}, not of {now['model']}: give another workdir")
        if not DataInfo.of(self.dataset).is_same(read_data_info(self.workdir)):
            raise UserError(f"{other}, on other data: give another workdir")
        before = with_tuples(saved["settings"])
        for name, value in now["settings"].items():
            if name in KEYS and not KEYS[name].may_change and before.get(name) != value:
                raise UserError(
                    f"{other}: {name} is {before.get(name)!r} there and {value!r} here; give another workdir"
                )


def _score_model(net: nn.Module, sde: SDE | None, prediction: str | None) -> ScoreModel:
    if not isinstance(net, ScoreModel):
        return ScoreModel(net, sde or VPSDE(), prediction or "v")
    if sde is not None or prediction is not None:
        raise UserError("a ScoreModel has its SDE and its prediction: leave out sde and prediction")
    return net


def _arrays(data: object) -> object:
    """The arrays of a torch data set; other data as they are."""
    if not isinstance(data, TorchDataset):
        return data
    items = [data[i] for i in range(len(data))]  # type: ignore[arg-type]
    if not isinstance(items[0], tuple):
        return np.stack([np.asarray(item) for item in items])
    samples, labels = (np.stack([np.asarray(part) for part in parts]) for parts in zip(*items, strict=True))
    return {"x_train": samples, "y_train": labels}
