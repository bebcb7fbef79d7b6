"""Run directories to and from the Hugging Face hub: what is written, and which files are read.

A folder that is shared holds config.json, data.json, one checkpoint, results, a picture of samples and a
model card. Paths of this machine and the optimizer's moments are left out. Of a repository only files of
these names are downloaded, and they are read as those of any run directory: nothing that they hold is
executed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.config import CONFIG_FILE, flatten, save_config, with_values
from score_diffusion.run.constructor_keys import declared_keys
from score_diffusion.run.data.condition_files import CONDITIONS_FILE
from score_diffusion.run.data.info import write_data_info
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic, write_json
from score_diffusion.run.inference.prompts import CAPTIONS_FILE
from score_diffusion.run.inference.trained_model import TrainedModel, chosen_checkpoint
from score_diffusion.run.json_files import read_json
from score_diffusion.run.python.model_card import Card, card_text

ON_HUB = re.compile(r"hf:\w[\w.-]*/[\w.-]+(:[\w.-]+)?")  # a data set of the hub, by its name
RESULTS = ("likelihood*.json", "evaluation*.json")
OTHERS = (CONDITIONS_FILE, CAPTIONS_FILE)  # held-out conditions that samples are drawn under
CARD, PICTURE = "README.md", "samples.png"
PATTERNS = (
    *("config.json", "data.json", *OTHERS, *RESULTS),
    *("checkpoints/*/*.safetensors", "checkpoints/*/*.json", "checkpoints/*/training.pt"),
)
"""The files of a repository that are downloaded."""


@dataclass(frozen=True)
class SharedRun:
    """A run as it is shared."""

    config: ConfigDict
    trained: TrainedModel
    workdir: Path
    name: str
    """What its card calls it, OWNER/NAME."""
    licence: str | None
    """Of the weights, an identifier of the hub; None if none is stated."""

    def write(self, folder: Path, draw_picture: Callable[[Path], object] | None) -> None:
        """Writes it to a folder.

        Args:
            folder: Where to; must not exist or be empty.
            draw_picture: Saves a picture of samples; None for no picture.

        Raises:
            UserError: If the folder holds something, or the run is that of a network of the user's own.
        """
        if not (self.workdir / CONFIG_FILE).exists():
            raise UserError("the run of a network of your own cannot be shared: its code would be needed")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not empty: give the path of a new folder")
        saved = chosen_checkpoint(self.workdir, self.config.sampling.checkpoint)
        folder.mkdir(parents=True, exist_ok=True)
        config = without_paths(self.config)
        save_config(config, folder)
        write_data_info(folder, self.trained.data)
        for name in OTHERS:
            if (self.workdir / name).is_file():
                shutil.copyfile(self.workdir / name, folder / name)
        for path in results_of(self.workdir):
            write_json(folder / path.name, _blanked(read_json(path, {}, "repair or remove it")))
        weights = checkpoint.save(folder, without_moments(saved), keep=1)
        if draw_picture is not None:
            draw_picture(folder / PICTURE)
        card = Card(self.name, config, self.trained, self.licence, PICTURE if draw_picture else "")
        write_atomic(folder / CARD, card_text(card, folder, weights, results_of(folder)).encode())


def results_of(workdir: Path) -> list[Path]:
    """The result files of a run directory."""
    return [path for pattern in RESULTS for path in sorted(workdir.glob(pattern))]


def without_paths(config: ConfigDict) -> ConfigDict:
    """The configuration with the defaults of keys whose values are paths; locked."""
    keys, flat = declared_keys(config), flatten(config)
    paths = [name for name, value in flat.items() if _is_path(value) and value != keys[name].default]
    return with_values(config, {name: keys[name].default for name in paths})


def _is_path(value: object) -> bool:
    return (
        isinstance(value, str) and re.search(r"[/\\]|^~", value) is not None and not ON_HUB.fullmatch(value)
    )


def _blanked(value: Any) -> Any:  # noqa: ANN401 - what JSON holds
    """What a JSON file holds, with nothing in place of texts that name a path."""
    if isinstance(value, dict):
        return {key: _blanked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_blanked(item) for item in value]
    return "" if _is_path(value) else value


def without_moments(saved: Checkpoint) -> Checkpoint:
    """A checkpoint whose optimizer starts afresh, in a third of the space."""
    groups = saved.optimizer["param_groups"]
    return Checkpoint(
        step=saved.step,
        model=saved.model,
        ema=saved.ema,
        optimizer={"state": {}, "param_groups": groups},
        seconds=saved.seconds,
        ema_updates=saved.ema_updates,
        averages=saved.averages,
        times=saved.times,
        objective=saved.objective,
        held_out_loss=saved.held_out_loss,
    )


def download(repository: str, revision: str | None, token: str | None) -> Path:
    """The folder of a repository of the hub, with the files of `PATTERNS`.

    Raises:
        UserError: If huggingface_hub is not installed, or the repository cannot be read.
    """
    hub = _hub()
    try:
        folder = hub.snapshot_download(
            repository, revision=revision, token=token, allow_patterns=list(PATTERNS)
        )
    except Exception as error:  # of the client, the network, the server
        raise UserError(
            f"{repository} is no folder here, and the hub gives no run: {_first_line(error)}"
        ) from error
    return Path(str(folder))


def upload(folder: Path, repository: str, private: bool, token: str | None, message: str) -> str:
    """Uploads a folder to a repository of the hub, which is created if need be; returns its address.

    Raises:
        UserError: If huggingface_hub is not installed, or the hub refuses it.
    """
    hub = _hub()
    try:
        api = hub.HfApi(token=token)
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # as above
        raise UserError(f"{repository} cannot be written to: {_first_line(error)}") from error
    return str(address)


def _hub() -> Any:  # noqa: ANN401 - the package is optional
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            "the hub needs the package huggingface_hub: pip install 'score-diffusion[hub]'"
        ) from error
    return huggingface_hub


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
